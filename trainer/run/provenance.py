"""What a run was begun with: its configuration, command line and code, kept in the run directory without secrets.

The launcher and a worker that was started without it write through here. No torch.
"""

import getpass
import os
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from trainer.config.continuation import check_agreement, differences
from trainer.config.plain import from_dict, read_config, to_dict, to_yaml
from trainer.config.schema import Config
from trainer.run import launches, repository, saved
from trainer.run.runname import Naming
from trainer.run.secrets import redact_values, redact_words
from trainer.rundir import RunDir, read_json, write_atomic


def agree(run: RunDir, config: Config) -> list[str]:
    """Refuses to continue a run with a configuration that would compute something else.

    Returns:
        What `run.accept_changes` has it continued with all the same, in words.

    Raises:
        ConfigError: see above; a run that has saved nothing yet agrees with every one: it begins anew.
    """
    if not run.config.exists():
        return []
    before = read_config(run.config)
    if saved.has_checkpoint(run):
        changed = check_agreement(before, _shown(config, run), name=run.name)
        return [f"run.accept_changes=true: {change}" for change in changed]
    return []


def confirm(run: RunDir, config: Config, *, attempt: int) -> None:
    """Makes config.yaml and job.json say what the run computes from now on; for the job that has it.

    Config.yaml of the earlier attempts then lies with their logs. Another job may have written its own meanwhile.

    Args:
        run: the run.
        config: as for `begin`.
        attempt: the number with which this was launched.

    Raises:
        OSError: the directory cannot be written.
    """
    shown = _shown(config, run)
    if not run.config.exists() or differences(read_config(run.config), shown):
        _replace_config(run, shown, attempt)
    launches.confirm(run, attempt)


def begin(
    run: RunDir, config: Config, *, attempt: int, argv: Sequence[str], folder: Path, nodes: int, world_size: int
) -> None:
    """Writes config.yaml and job.json; what the first attempt wrote stays, and later ones are added.

    config.yaml is what the run computes: once it has saved something, a later attempt's with accepted changes lies
    with that one's logs until `confirm`, since its model may yet be refused. So does for good what does not matter.

    Args:
        run: the run.
        config: as composed, or in force.
        attempt: which attempt this is, from 0.
        argv: the command line.
        folder: where the code that runs lies.
        nodes: machines.
        world_size: workers.

    Raises:
        OSError: the directory cannot be written.
    """
    _write_config(run, _shown(config, run), attempt)
    checkout, problem = repository.note(run, folder, attempt)
    row = {
        "attempt": attempt,
        "argv": redact_words(argv),
        "job_id": os.environ.get("SLURM_JOB_ID"),
        "time": time.time(),
        "host": socket.gethostname(),
        "user": _user(),
        "directory": str(Path.cwd()),
        "nodes": nodes,
        "world_size": world_size,
        "elastic": _elastic_id(),
        "code": checkout,
        **({"code_problem": problem} if problem else {}),
        "python": sys.version.split()[0],
        "packages": packages(),
    }
    launches.note(run, row)


def restarted(choice: Naming) -> RunDir | None:
    """The run that this worker's elastic agent had begun, where it has restarted its workers.

    Without a name of its own, or with `run.fresh`, every attempt would choose a new directory. None where the name
    alone says which run it is, and in a first attempt.
    """
    mine = _elastic_id()
    if mine is None or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0" or (choice.name and not choice.fresh):
        return None
    jobs = Path(choice.dir).expanduser().glob(f"*/{RunDir('').job.name}")
    newest = sorted(jobs, key=lambda job: job.parent.stat().st_mtime, reverse=True)
    return next((RunDir(job.parent) for job in newest if read_json(job).get("elastic") == mine), None)


def _elastic_id() -> str | None:
    """What is the same for all attempts of an elastic agent's job; None without such an agent."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name not in (None, "", "none"):
        return name
    if name is None:
        return None
    # torchrun's default where nobody gave it an id: then it is the agent itself, our parent.
    import psutil

    agent = psutil.Process(os.getppid())
    return f"{socket.gethostname()} {agent.pid} {agent.create_time()}"


def packages() -> dict[str, str]:
    """Installed distributions and their versions, by the names of their folders: reading each would take 0.1 s."""
    found: dict[str, str] = {}
    for place in sys.path:
        for folder in Path(place or ".").glob("*.dist-info"):
            name, _, version = folder.name.removesuffix(".dist-info").partition("-")
            found.setdefault(name.replace("_", "-"), version)
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _shown(config: Config, run: RunDir) -> Config:
    """The configuration as it is kept: the run by its final name, nothing secret."""
    named = replace(config, run=replace(config.run, name=run.name, fresh=False))
    return from_dict(redact_values(to_dict(named)))


def _write_config(run: RunDir, config: Config, attempt: int) -> None:
    text = to_yaml(config).encode()
    if not run.config.exists():
        write_atomic(run.config, text)
    elif differences(read_config(run.config), config) and not saved.has_checkpoint(run):
        _replace_config(run, config, attempt)
    elif run.config.read_bytes() != text:
        write_atomic(run.attempt_config(attempt), text)


def _replace_config(run: RunDir, config: Config, attempt: int) -> None:
    known = [row.get("attempt", 0) for row in run.launches()] if run.config.exists() else []
    for number in known:
        if number < attempt and not run.attempt_config(number).exists():
            write_atomic(run.attempt_config(number), run.config.read_bytes())
    write_atomic(run.config, to_yaml(config).encode())


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container's arbitrary uid has no entry in the password file.
        return str(os.getuid())
