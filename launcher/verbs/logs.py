"""`paceline logs`: what a rank of a run has printed, or is printing."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launcher import runs
from launcher.arguments import Parser
from trainer.errors import ConfigError
from trainer.rundir import RunDir

HELP = """\
paceline logs RUN [--rank R] [--attempt N] [-f] [--dir DIR]

  paceline logs RUN              the rank that failed first, else rank 0; the latest attempt
  paceline logs RUN --rank 5     another rank
  paceline logs RUN -f           follow it until the job ends, over restarts too

RUN is a run's name or its directory.

  --rank R       which rank
  --attempt N    which attempt, from 0
  -f, --follow   go on as it grows
  --dir DIR      where the runs are (runs)"""

_PERIOD_S = 0.25
_CHUNK = 1 << 16


def main(arguments: Sequence[str]) -> int:
    """Shows a log; returns the exit code."""
    parser = Parser("logs", HELP, flags=["-f", "--follow"], values=["--rank", "--attempt", "--dir"])
    options = parser.read(arguments)
    if options.help:
        return parser.print_text()
    (run,) = runs.chosen("logs", options)
    attempt = _number(options.attempt, "--attempt")
    latest = runs.look(run).attempt if attempt is None else attempt
    failed_first = int(run.read_failure(latest).get("rank", 0))
    rank = _number(options.rank, "--rank")
    rank = failed_first if rank is None else rank
    follow = (options.f or options.follow) and attempt is None
    if not run.log(latest, rank).exists() and not (follow and runs.look(run).is_live):
        raise _absent(run, latest, rank)
    print(f"{run.log(latest, rank)}", file=sys.stderr)
    if follow:
        _follow(run, rank, latest)
    else:
        _copy(run.log(latest, rank), 0)
    return 0


def _follow(run: RunDir, rank: int, attempt: int) -> None:
    """Shows a log as it grows, and those of later attempts, until the job has ended."""
    position = 0
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


def _number(text: str | None, option: str) -> int | None:
    if text is None:
        return None
    if not text.isdecimal():
        raise ConfigError(f"{option} {text} is not a number", f"{option} 0")
    return int(text)


def _absent(run: RunDir, attempt: int, rank: int) -> ConfigError:
    folder = run.log(attempt, 0).parent
    ranks = sorted(int(path.stem.removeprefix("rank-")) for path in folder.glob("rank-*.log"))
    if not ranks:
        return ConfigError(f"run {run.name} has no logs of attempt {attempt}", f"ls {run.path / 'logs'}")
    return ConfigError(
        f"run {run.name} has no log of rank {rank} in attempt {attempt}", f"--rank {ranks[0]} to {ranks[-1]}"
    )
