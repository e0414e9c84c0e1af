"""Runs a plan on this machine: prepares the run directory, starts the agent and hands signals on to it."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from launcher.agent import busy_port
from launcher.plan import JobPlan, again_command, redact
from launcher.processes import adopt_orphans, descendants, end_descendants
from launcher.stop import STOP_SIGNALS, heard
from trainer import runname
from trainer.rundir import RunDir, write_atomic, write_json

if TYPE_CHECKING:
    from trainer.config import Config

DIFF_LIMIT = 1 << 20
"""Bytes of uncommitted changes that are kept with a run."""

_GIT_TIMEOUT_S = 5
_LEFTOVER_GRACE_S = 1.0
# The current directory must not shadow our packages: a user may well have a trainer.py.
_BOOT = "import sys; sys.path[0] = sys.argv.pop(1); from launcher.agent import main; main()"
_HERE = Path(__file__).resolve().parent.parent


def prepare(plan: JobPlan, config: "Config", *, recipe: str, argv: list[str]) -> JobPlan:
    """Makes the run directory and writes config.yaml and job.json; returns the plan with its run and attempt.

    Args:
        plan: the job.
        config: the composed configuration; a copy with the run's final name is frozen.
        recipe: what an unnamed run is called after.
        argv: the command line, for job.json.

    Raises:
        ConfigError: the run exists and was begun with a configuration that computes something else.
        UnfitError: the run directory cannot be made or written to, or the rendezvous port is taken.
    """
    if plan.port:
        check_port(plan.port)
    check_agreement(plan, config, runname.choose(config.run, recipe))
    run = RunDir(runname.create(config.run, recipe).absolute())
    attempt = run.next_attempt()
    logs = run.log(attempt, 0).parent
    try:
        logs.mkdir(parents=True)
        frozen = _freeze(config, run, attempt)
        plan = replace(
            plan,
            run_dir=str(run.path),
            config=str(frozen),
            attempt=attempt,
            again=again_command(plan, run.name),
        )
        write_json(run.job, job_record(plan, run, argv))
    except OSError as error:
        # What was not started is no attempt.
        shutil.rmtree(logs, ignore_errors=True)
        raise runname.unwritable(run.path, error) from error
    return plan


def check_agreement(plan: JobPlan, config: "Config", path: Path) -> None:
    """Refuses to continue a run of ours with a configuration that would compute something else.

    Raises:
        ConfigError: see above.
    """
    run = RunDir(path)
    if plan.program.kind == "trainer" and run.config.exists():
        from trainer import config as configuration

        before = configuration.from_yaml(run.config.read_text())
        configuration.check_agreement(before, config, name=run.name)


def check_port(port: int) -> None:
    """Refuses a rendezvous port that somebody listens on.

    Raises:
        UnfitError: see above.
    """
    dual = socket.has_dualstack_ipv6()
    try:
        socket.create_server(
            ("", port), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual
        ).close()
    except OSError as error:
        raise busy_port(port) from error


def run(plan: JobPlan) -> int:
    """Starts the agent, hands it every signal, and returns the job's exit code (DESIGN's table)."""
    environment = {
        **os.environ,
        **{variable.name: variable.value for variable in plan.environment if variable.value is not None},
        "PACELINE_CONFIG": plan.config,
        "PACELINE_RUN_DIR": plan.run_dir,
        "PACELINE_ATTEMPT": str(plan.attempt),
        "PACELINE_STARTED": str(time.time()),
        "PACELINE_DEVICE": plan.device,
    }
    adopt_orphans()
    before = descendants()
    # Held back until both sides have their handlers: a request is never a death.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    # A session of its own, so that Ctrl-C reaches the workers once, through us, and not by the terminal.
    agent = subprocess.Popen(
        [sys.executable, "-c", _BOOT, str(_HERE), str(os.getpid())],
        stdin=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    with _handing_on_signals(agent) as received:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        assert agent.stdin is not None
        try:
            agent.stdin.write(plan.to_json().encode())
            agent.stdin.close()
        except BrokenPipeError:
            # The agent has ended already; its exit code says how.
            pass
        code = agent.wait()
        # Nothing, unless the agent was killed: then its workers are gone, too, but not what they had started.
        end_descendants(before, grace_s=_LEFTOVER_GRACE_S)
    if code >= 0:
        return code
    number = received[0] if received else -code
    if not received:
        print(f"error: the agent was killed by {signal.Signals(number).name}", file=sys.stderr)
    return 128 + number


@contextmanager
def _handing_on_signals(agent: "subprocess.Popen[bytes]") -> Generator[list[int]]:
    received: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if agent.poll() is None:
            # Who asks a third time finds that the agent itself does not answer; its workers die with it.
            agent.send_signal(signal.SIGKILL if received.count(signal.SIGINT) > 2 else number)

    before = {number: signal.signal(number, hand_on) for number in heard()}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def job_record(plan: JobPlan, run: RunDir, argv: list[str]) -> dict[str, Any]:
    """The content of job.json; the values of secret variables are replaced by their names."""
    return {
        "argv": [redact(text) for text in argv],
        "job_id": None,
        "time": time.time(),
        "host": socket.gethostname(),
        "user": _user(),
        "directory": str(Path.cwd()),
        "nodes": plan.nodes,
        "world_size": plan.world_size,
        "attempt": plan.attempt,
        "code": _code(run),
        "python": sys.version.split()[0],
        "packages": {d.metadata["Name"]: d.version for d in metadata.distributions() if d.metadata["Name"]},
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container's arbitrary uid has no entry in the password file.
        return str(os.getuid())


def _code(run: RunDir) -> dict[str, Any] | None:
    """Commit and uncommitted changes of the checkout in the current directory; None outside of one."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    diff = _git("diff", "HEAD", "--no-color", "--no-ext-diff") or b""
    saved = bool(diff) and len(diff) <= DIFF_LIMIT
    if saved:
        write_atomic(run.code_diff, redact(diff.decode(errors="surrogateescape")).encode(errors="surrogateescape"))
    return {
        "commit": commit.decode().strip(),
        "dirty": bool(diff),
        "diff": run.code_diff.name if saved else None,
        "diff_bytes": len(diff),
    }


def _git(*arguments: str) -> bytes | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, timeout=_GIT_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _freeze(config: "Config", run: RunDir, attempt: int) -> Path:
    """Writes the configuration where this attempt reads it; what the run was begun with stays."""
    from trainer.config import to_yaml

    text = to_yaml(replace(config, run=replace(config.run, name=run.name, fresh=False)))
    if not run.config.exists():
        write_atomic(run.config, text.encode())
    if run.config.read_text() == text:
        return run.config
    write_atomic(run.attempt_config(attempt), text.encode())
    return run.attempt_config(attempt)
