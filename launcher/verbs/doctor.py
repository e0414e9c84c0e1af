"""`paceline doctor`: what is wrong with this environment, or with a disk, before it costs hours."""

import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from launcher.arguments import Parser, check_overrides
from launcher.doctor.finding import FAIL, WARN, Finding, examine, lines, worst
from trainer.answer import as_json
from trainer.errors import UnfitError

HELP = """\
paceline doctor [KEY=VALUE ...] [--quick] [--storage DIR] [--json | -q]

  paceline doctor                     Python, packages, GPUs, memory, ports
  paceline doctor data.workers=16     the same for a job with these settings
  paceline doctor --storage /scratch  does a disk keep what checkpoints rely on?

  --quick        without the trials of torch (matmul, all-reduce, decoding)
  --storage DIR  replace, rename, sync, lock, append, links, room, speed, clock
  --json         for programs
  -q             the names of what is not well, and nothing else

Each line is pass, warn or fail. Exit code 3 when one is fail."""


def main(arguments: Sequence[str]) -> int:
    """Examines the environment or a disk; returns 0, or 3 where something is unfit."""
    parser = Parser(
        "doctor", HELP, flags=["--json", "--quick", "-q"], values=["--storage", "--config-dir"], overrides=True
    )
    options = parser.read(arguments)
    if options.help:
        return parser.print_text()
    check_overrides(options.words)

    def show(findings: Sequence[Finding]) -> None:
        if not (options.json or options.q):
            print("\n".join(lines(findings)), flush=True)

    if options.storage is not None:
        subject = Path(options.storage).expanduser()
        try:
            findings = examine_storage(subject)
        except UnfitError as error:
            findings = [Finding("place", FAIL, error.problem, error.fix)]
        show(findings)
        verdict = _storage_verdict(subject, findings)
    else:
        findings = examine_environment(options.words, options.config_dir, live=not options.quick, show=show)
        verdict = _environment_verdict(findings)
    if options.json:
        rows = [finding.to_json() for finding in findings]
        print(as_json(state=worst(findings), verdict=verdict, findings=rows))
    elif options.q:
        print("".join(f"{finding.name}\n" for finding in findings if finding.state in (WARN, FAIL)), end="")
    else:
        print(f"\n{verdict}")
    return UnfitError.exit_code if worst(findings) == FAIL else 0


def examine_storage(path: Path) -> list[Finding]:
    """Tries the storage below a directory; nothing is left there.

    Raises:
        ConfigError: it is no directory.
        UnfitError: nothing can be written there, or it does not answer.
    """
    from launcher.doctor import storage

    # As after Ctrl-C, so that nothing is left there.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with storage.trial_folder(path) as folder:
        room = examine([storage.room], folder)
        enough = room[0].state != FAIL or shutil.disk_usage(folder).free >= storage.TRIAL_BYTES
        return room + (examine(storage.CHECKS[1:], folder) if enough else [])


def examine_environment(
    overrides: Sequence[str], config_dir: str | None, *, live: bool, show: Callable[[Sequence[Finding]], None]
) -> list[Finding]:
    """Looks at this machine for a job with these settings.

    Args:
        overrides: the settings.
        config_dir: where the user's own configurations lie.
        live: whether torch is tried, too.
        show: called with findings as soon as they are known.

    Raises:
        ConfigError: the settings cannot be composed.
    """
    from launcher.doctor import environment
    from launcher.doctor import live as trials
    from launcher.doctor.gpu_facts import Machine, look
    from launcher.doctor.surroundings import Surroundings
    from trainer.config.compose import compose

    config = compose(list(overrides), config_dir=Path(config_dir) if config_dir else None)
    # What a job cannot use it cannot be held up by.
    machine = Machine() if config.device == "cpu" else look(os.environ)
    here = Surroundings(config, os.environ, machine)
    findings = []
    for check in environment.checks(here):
        findings += examine([check], here)
        show(findings[-1:])
    for finding in trials.examine(here) if live else ():
        show([finding])
        findings.append(finding)
    return findings


def _storage_verdict(path: Path, findings: Sequence[Finding]) -> str:
    broken, doubtful = _named(findings, FAIL), _named(findings, WARN)
    if broken:
        return f"{path} does not keep its promises ({broken}): a checkpoint may be lost there"
    if doubtful:
        return f"{path} works, with reservations ({doubtful})"
    return f"{path} keeps its promises"


def _environment_verdict(findings: Sequence[Finding]) -> str:
    broken, doubtful = _named(findings, FAIL), _named(findings, WARN)
    if broken:
        return f"unfit: {broken}"
    return f"fit, with reservations: {doubtful}" if doubtful else "fit"


def _named(findings: Sequence[Finding], state: str) -> str:
    return ", ".join(finding.name for finding in findings if finding.state == state)
