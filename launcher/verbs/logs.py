"""`paceline logs`: what a rank of a run has printed, or is printing."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher import runs
from launcher.arguments import Parser
from launcher.ending.told import errors
from trainer.answer import as_json
from trainer.errors import ConfigError
from trainer.rundir import RunDir, is_number

HELP = """\
paceline logs RUN [-f] [--rank R | --errors] [--attempt N] [--json | -q]

  paceline logs RUN            the rank that failed first, else 0; last attempt
  paceline logs RUN --rank 5   another rank
  paceline logs RUN -f         follow it until the job ends, over restarts too
  paceline logs RUN --errors   each error of all ranks once, the cause first

RUN is a run's name or its directory.

  --rank R       which rank
  --errors       errors alone, with their tracebacks
  --attempt N    which attempt, from 0
  -f, --follow   go on as it grows
  --dir DIR      where the runs are (runs)
  --json         for programs: the logs of all ranks, and the errors
  -q             where the log is, not what it has"""

_PERIOD_S = 0.25
_WORD_S = 10.0
_CHUNK = 1 << 16


def main(arguments: Sequence[str]) -> int:
    """Shows a log; returns the exit code."""
    flags = ["-f", "--follow", "--errors", "--json", "-q"]
    options = Parser("logs", HELP, flags=flags, values=["--rank", "--attempt", "--dir"]).read(arguments)
    if options.help:
        print(HELP)
        return 0
    (run,) = runs.chosen("logs", options)
    attempt, rank = _number(options.attempt, "--attempt"), _number(options.rank, "--rank")
    latest = runs.look(run).attempt if attempt is None else attempt
    follow = (options.f or options.follow) and attempt is None
    if options.json:
        print(as_json(**_listing(run, latest)))
        return 0
    if options.errors:
        _show_errors(run, latest, follow=follow)
        return 0
    log = _log(run, latest, rank, follow=follow)
    if options.q:
        print(log)
        return 0
    print(log, file=sys.stderr)
    if follow:
        _follow(run, int(log.stem.removeprefix("rank-")), latest)
    else:
        _copy(log, 0)
    return 0


def _log(run: RunDir, attempt: int, rank: int | None, *, follow: bool) -> Path:
    """The log to be shown.

    Raises:
        ConfigError: there is none.
    """
    failed_first = run.read_failure(attempt).get("rank")
    chosen = rank if rank is not None else failed_first if isinstance(failed_first, int) else 0
    log = run.log(attempt, chosen)
    if log.exists() or (follow and runs.look(run).is_live):
        return log
    # A job without a terminal that came to nothing before its workers has said why there.
    if rank is None and not follow and run.terminal_log(attempt).exists():
        return run.terminal_log(attempt)
    raise _absent(run, attempt, chosen)


def _listing(run: RunDir, attempt: int) -> dict[str, Any]:
    """The logs of an attempt and the errors that its ranks have told."""
    logs = [
        {"rank": rank, "path": str(run.log(attempt, rank)), "bytes": run.log(attempt, rank).stat().st_size}
        for rank in _ranks(run, attempt)
    ]
    told = [error.to_json() for error in errors(run, attempt)]
    return {"run": run.name, "attempt": attempt, "logs": logs, "errors": told}


def _show_errors(run: RunDir, attempt: int, *, follow: bool) -> None:
    """Shows the errors of an attempt, with `follow` as they come, of later attempts too, until the job has ended."""
    shown: set[tuple[int, str, str]] = set()
    while True:
        view = runs.look(run)
        last = max(attempt, view.attempt) if follow else attempt
        for number in range(attempt, last + 1):
            for error in errors(run, number):
                if (number, error.type, error.message) not in shown:
                    print("\n".join(error.lines()), flush=True)
                    shown.add((number, error.type, error.message))
        if not follow or not view.is_live:
            break
        time.sleep(_PERIOD_S)
    if not shown:
        print(f"no rank has told an error in attempt {attempt} of run {run.name}", file=sys.stderr)


def _follow(run: RunDir, rank: int, attempt: int) -> None:
    """Shows a log as it grows, and those of later attempts, until the job has ended."""
    position, told = 0, time.monotonic()
    while True:
        # Asked before the log is read: what was printed before the end is still shown.
        view = runs.look(run)
        position = _copy(run.log(attempt, rank), position)
        if view.attempt > attempt:
            position = _copy(run.log(attempt, rank), position)
            attempt, position = view.attempt, 0
            print(f"{run.log(attempt, rank)}", file=sys.stderr)
        elif not view.is_live:
            return
        else:
            if not position and sys.stderr.isatty() and time.monotonic() - told > _WORD_S:
                told = time.monotonic()
                print(f"  {view.state}; rank {rank} has said nothing yet", file=sys.stderr)
            time.sleep(_PERIOD_S)


def _copy(path: Path, position: int) -> int:
    """Copies what a file has from a position on to standard output; returns the position after it."""
    sys.stdout.flush()
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return position
    try:
        os.lseek(descriptor, position, os.SEEK_SET)
        while data := os.read(descriptor, _CHUNK):
            sys.stdout.buffer.write(data)
            position += len(data)
        sys.stdout.buffer.flush()
    finally:
        os.close(descriptor)
    return position


def _ranks(run: RunDir, attempt: int) -> list[int]:
    """The ranks of which there is a log."""
    names = (path.stem.removeprefix("rank-") for path in run.log(attempt, 0).parent.glob("rank-*.log"))
    return sorted(int(name) for name in names if is_number(name))


def _number(text: str | None, option: str) -> int | None:
    if text is None:
        return None
    if not text.isdecimal():
        raise ConfigError(f"{option} {text} is not a number", f"{option} 0")
    return int(text)


def _absent(run: RunDir, attempt: int, rank: int) -> ConfigError:
    ranks = _ranks(run, attempt)
    if not ranks:
        return ConfigError(f"run {run.name} has no logs of attempt {attempt}", f"ls {run.path / 'logs'}")
    return ConfigError(
        f"run {run.name} has no log of rank {rank} in attempt {attempt}", f"--rank {ranks[0]} to {ranks[-1]}"
    )
