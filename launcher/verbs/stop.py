"""`paceline stop`: asks a run to end, from any terminal or machine that sees its directory."""

import sys
import time
from collections.abc import Sequence

from launcher import runs
from launcher.arguments import Parser
from launcher.runs import RunView
from trainer import wording
from trainer.errors import UnfitError

HELP = """\
paceline stop RUN [--wait] [--dir DIR]

  paceline stop RUN          ask it to end; a training saves a checkpoint first
  paceline stop RUN --wait   and wait until it has

RUN is a run's name or its directory. The same command that began a training goes on from the checkpoint.
A script of your own gets SIGTERM, and SIGKILL after cluster.grace_seconds.

  --wait      wait, and say at which step it ended
  --dir DIR   where the runs are (runs)"""

_PERIOD_S = 0.2
_WORD_S = 10.0


def main(arguments: Sequence[str]) -> int:
    """Asks a run to stop; returns the exit code."""
    parser = Parser("stop", HELP, flags=["--wait"], values=["--dir"])
    options = parser.read(arguments)
    if options.help:
        return parser.print_text()
    (run,) = runs.chosen("stop", options)
    view = runs.look(run)
    if not view.is_live:
        print(f"run {run.name} is {view.state}: there is nothing to stop", file=sys.stderr)
        return 0
    try:
        run.stop.touch()
    except OSError as error:
        raise UnfitError(
            f"cannot ask run {run.name} to stop: {error.strerror} ({run.stop})",
            f"Ctrl-C where it was started, or SIGTERM to it on {view.host or 'its machine'}",
        ) from error
    how = "its workers get SIGTERM" if runs.is_script(run) else "it saves a checkpoint first"
    print(f"asked run {run.name} to stop; {how}", file=sys.stderr)
    return _wait(view) if options.wait else 0


def _wait(view: RunView) -> int:
    """Waits for the end, and says what it was."""
    run, began = view.run, time.monotonic()
    told = began
    while view.is_live:
        time.sleep(_PERIOD_S)
        view = runs.look(run)
        if time.monotonic() - told > _WORD_S:
            told = time.monotonic()
            step = "" if view.step is None else f", at step {view.step:,}"
            print(f"  {view.state}{step}, after {wording.duration(told - began)}", file=sys.stderr)
    # It ended by itself before it saw the request, which must not meet the next attempt.
    run.stop.unlink(missing_ok=True)
    at = "" if view.step is None else f" at step {view.step:,}"
    print(f"run {run.name} is {view.state}{at}, after {wording.duration(time.monotonic() - began)}", file=sys.stderr)
    return 1 if view.state in ("failed", "lost") else 0
