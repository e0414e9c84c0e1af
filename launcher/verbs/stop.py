"""`paceline stop`: asks a run to end, from any terminal or machine that sees its directory."""

import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launcher import runs
from launcher.arguments import Parser, typed
from launcher.runs import RunView
from trainer import wording
from trainer.errors import ConfigError, UnfitError

HELP = """\
paceline stop RUN [--wait | --now] [--dir DIR]

  paceline stop RUN          ask it to end; a training saves a checkpoint first
  paceline stop RUN --wait   and wait until it has
  paceline stop RUN --now    kill it; what no checkpoint has is lost

RUN is a run's name or its directory.
The same command that began a training goes on from the checkpoint.
A script of your own gets SIGTERM, and SIGKILL after cluster.grace_seconds.

  --wait      wait, and say at which step it ended
  --now       the same at once, without a checkpoint
  --dir DIR   where the runs are (runs)"""

_PERIOD_S = 0.2
_WORD_S = 10.0
_HEARD_S = 15.0
_HEARD_ELSEWHERE_S = 90.0
"""A file system over the network may show a new file to other machines after a minute only."""


def main(arguments: Sequence[str]) -> int:
    """Asks a run to stop; returns the exit code."""
    parser = Parser("stop", HELP, flags=["--wait", "--now"], values=["--dir"])
    options = parser.read(arguments)
    if options.help:
        return parser.print_text()
    (run,) = runs.chosen("stop", options)
    view = runs.look(run)
    if not view.is_live:
        print(f"run {run.name} is {view.state}: there is nothing to stop", file=sys.stderr)
        return 0
    if options.now and not runs.is_launched(run):
        raise ConfigError(
            f"run {run.name} was not begun by paceline run, which alone could end it at once",
            f"Ctrl-C twice where it was started, or {typed('stop', *(word for word in arguments if word != '--now'))}",
        )
    request = run.stop_now if options.now else run.stop
    try:
        request.touch()
    except OSError as error:
        raise UnfitError(
            f"cannot ask run {run.name} to stop: {error.strerror} ({request})",
            f"Ctrl-C where it was started, or SIGTERM to it on {view.host or 'its machine'}",
        ) from error
    saves = "its workers get SIGTERM" if runs.is_script(run) else "it saves a checkpoint first"
    how = "its workers are killed" if options.now else saves
    print(f"asked run {run.name} to stop; {how}", file=sys.stderr)
    return _wait(view, request, at_once=options.now) if options.wait or options.now else 0


def _wait(view: RunView, request: Path, *, at_once: bool) -> int:
    """Waits for the end, and says what it was.

    Raises:
        UnfitError: it was to end at once, and nobody there has heard that.
    """
    run, began = view.run, time.monotonic()
    told = began
    heard_s = _HEARD_S if view.host == socket.gethostname() else _HEARD_ELSEWHERE_S
    while view.is_live:
        time.sleep(_PERIOD_S)
        view = runs.look(run)
        waited = time.monotonic() - began
        if at_once and view.state == "running" and waited > heard_s and request.exists():
            request.unlink(missing_ok=True)
            raise UnfitError(
                f"nobody has heard it for {wording.duration(waited)}: the launcher of run {run.name} does not answer",
                f"SIGKILL to its process on {view.host or 'its machine'}: all that it has started ends with it",
            )
        if time.monotonic() - told > _WORD_S:
            told = time.monotonic()
            step = "" if view.step is None else f", at step {view.step:,}"
            print(f"  {view.state}{step}, after {wording.duration(waited)}", file=sys.stderr)
    # It ended by itself before it saw the request, which must not meet the next attempt.
    request.unlink(missing_ok=True)
    at = "" if view.step is None else f" at step {view.step:,}"
    print(f"run {run.name} is {view.state}{at}, after {wording.duration(time.monotonic() - began)}", file=sys.stderr)
    return 1 if view.state in ("failed", "lost", "unreadable") else 0
