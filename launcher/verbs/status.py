"""`paceline status`: all runs at a glance, or one in detail."""

import functools
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launcher import runs
from launcher.arguments import Parser
from launcher.runs import RunView
from launcher.verdict import next_step
from trainer import wording
from trainer.answer import as_json
from trainer.rundir import read_json

if TYPE_CHECKING:
    import rich.console

HELP = """\
paceline status [RUN] [--dir DIR] [--json] [-q]

  paceline status               every run in runs/, the latest first
  paceline status RUN           one run; RUN is its name or its directory

A run is lost when it says that it runs and nobody is there.
Only files are read, from any terminal.

  --dir DIR   where the runs are (runs)
  --json      for programs
  -q          names only"""

_COLOURS = {
    "running": "green",
    "finished": "blue",
    "failed": "red",
    "lost": "red",
    "pending": "yellow",
    "unreadable": "red",
}
_HEADINGS = ("RUN", "STATE", "STEP", "VAL ACC", "IMAGES/S", "GPU", "ETA", "WHERE")
_OPTIONAL = ("IMAGES/S", "GPU", "ETA", "VAL ACC")
_GAP, _LEAST, _READABLE = 2, 8, 40
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def main(arguments: Sequence[str]) -> int:
    """Shows runs; returns the exit code."""
    options = Parser("status", HELP, flags=["--json", "-q"], values=["--dir"]).read(arguments)
    if options.help:
        print(HELP)
        return 0
    directory = Path(options.dir or "runs")
    chosen = runs.chosen("status", options) if options.words else runs.find_all(directory)
    if options.q:
        print("".join(f"{run.name}\n" for run in chosen), end="")
        return 0
    views = [runs.look(run) for run in chosen]
    if options.json:
        print(as_json(runs=[view.to_json() for view in views]))
    elif options.words:
        print("\n".join(details(views[0])))
    elif views:
        _print_table(views)
    else:
        print(f"no runs in {directory}", file=sys.stderr)
    return 0


def cells(view: RunView) -> list[str]:
    """The row of a run in the table: name, state, step, accuracy, rate, GPU, time to go, where."""
    rate, gpu, eta = view.images_per_second, view.gpu_percent, view.eta_s
    return [
        view.run.name,
        view.state,
        _step(view),
        "-" if view.accuracy is None else wording.percent(view.accuracy) + (" best" if view.is_best else ""),
        "-" if rate is None else wording.number(rate),
        "-" if gpu is None else f"{gpu:.0f} %",
        "-" if eta is None else wording.duration(eta),
        _why(view) or ", ".join(part for part in (_where(view), _event(view, time.time())) if part),
    ]


def details(view: RunView, *, now: float | None = None) -> list[str]:
    """One run in a few lines, with what to do next."""
    now = time.time() if now is None else now
    ago = wording.duration(max(0.0, now - view.updated))
    name, state, step, accuracy, rate, gpu, eta, _ = cells(view)
    summary = read_json(view.run.summary) if view.state == "finished" else {}
    ended = f"{state} {ago} ago" + (f", exit code {view.exit_code}" if view.exit_code else "")
    shown = {
        "state": f"{state}, last sign of life {ago} ago" if view.is_live or view.state == "lost" else ended,
        "step": step,
        "val acc": accuracy,
        "images/s": rate,
        "GPU": gpu,
        "ETA": eta,
        "where": _where(view),
        "event": _event(view, now),
        "why": _why(view),
        **_advice(view),
        "took": wording.duration(summary["seconds"]) if "seconds" in summary else "",
        "directory": wording.short_path(view.run.path),
        **_files(view),
        "next": _next(view, name),
        **_again(view),
    }
    return [name, *(f"  {label:<10} {text}" for label, text in shown.items() if text not in ("", "-"))]


def fitting(columns: Mapping[str, Sequence[str]], width: int) -> dict[str, int]:
    """The columns of the table that are shown, each with its width; a state and a step are never cut.

    First WHERE gives way, as long as a reason can still be read, then what no run has anything for, then WHERE again,
    and RUN.

    Args:
        columns: the cells below each heading, in their order.
        width: of the terminal.
    """
    from rich.cells import cell_len

    widths = {heading: max(map(cell_len, (heading, *cells))) for heading, cells in columns.items()}

    def cut(heading: str, least: int) -> int:
        excess = max(0, sum(widths.values()) + _GAP * (len(widths) - 1) - width)
        return widths[heading] - min(excess, max(0, widths[heading] - least))

    for heading in _OPTIONAL:
        missing = sum(widths.values()) - widths["WHERE"] + cut("WHERE", _READABLE) + _GAP * (len(widths) - 1) > width
        if missing and set(columns[heading]) == {"-"}:
            del widths[heading]
    for heading in ("WHERE", "RUN"):
        widths[heading] = cut(heading, _LEAST)
    return widths


def _print_table(views: Sequence[RunView]) -> None:
    import rich.console

    console = rich.console.Console(highlight=False, markup=False, emoji=False)
    # What another program has written must not steer the terminal.
    rows = [[_CONTROL.sub("?", cell) for cell in cells(view)] for view in views]
    columns = dict(zip(_HEADINGS, zip(*rows, strict=True), strict=True))
    # A line is a line where nobody looks at it.
    widths = fitting(columns, console.width if console.is_terminal else sys.maxsize)
    print("\n".join(_lines(columns, widths, console)))


def _lines(
    columns: Mapping[str, Sequence[str]], widths: Mapping[str, int], console: "rich.console.Console"
) -> Iterator[str]:
    """The table; put together by hand, since rich takes a millisecond a row."""
    from rich.cells import cell_len, set_cell_size
    from rich.text import Text

    @functools.cache
    def painted(text: str, style: str) -> str:
        with console.capture() as shown:
            console.print(Text(text, style=style), end="", soft_wrap=True)
        return shown.get()

    def cell(text: str, width: int) -> str:
        return set_cell_size(text, width) if cell_len(text) <= width else f"{set_cell_size(text, width - 1)}…"

    gap = " " * _GAP
    yield painted(gap.join(cell(name, width) for name, width in widths.items()).rstrip(), "bold")
    for row in zip(*(columns[name] for name in widths), strict=True):
        shown = {name: cell(text, widths[name]) for name, text in zip(widths, row, strict=True)}
        state = shown["STATE"].rstrip()
        shown["STATE"] = painted(state, _COLOURS.get(state, "")) + shown["STATE"].removeprefix(state)
        # Without the blanks that fill up the last column.
        yield gap.join(shown.values()).rstrip()


def _step(view: RunView) -> str:
    if view.step is None:
        return "-"
    unknown = view.total_steps is None or view.state == "failed" or view.step > view.total_steps
    step = f"{view.step:,}" if unknown else f"{view.step:,}/{view.total_steps:,}"
    if view.is_live or view.state == "finished" or view.step <= (view.saved_step or 0):
        return step
    return f"{step}, saved up to {view.saved_step:,}" if view.saved_step else f"{step}, nothing saved"


def _where(view: RunView) -> str:
    job = f"slurm {view.job_id}" if view.job_id else ""
    attempt = f"attempt {view.attempt}" if view.attempt else ""
    return ", ".join(part for part in (job, view.host, attempt) if part)


def _event(view: RunView, now: float) -> str:
    """The last thing that happened to a run that lives, in a few words."""
    event = view.event
    if not view.is_live or "time" not in event:
        return ""
    step = f" at step {event['step']:,}" if "step" in event else ""
    ago = wording.duration(max(0.0, now - event["time"]))
    return f"{event['event'].replace('_', ' ')}{step}, {ago} ago"


def _why(view: RunView) -> str:
    if not view.failure:
        return view.reason
    message = str(view.failure.get("message", "")).strip().splitlines()
    rank = view.failure.get("rank")
    # Before there are workers it is nobody's.
    who = f"{view.failure.get('type', '')}{'' if rank is None else f' on rank {rank}'}"
    return f"{who}: {message[0] if message else ''}"


def _advice(view: RunView) -> dict[str, str]:
    """What the error of a failed run means and what to try, where its message does not say it, by its label."""
    told = {"means": view.failure.get("meaning"), "do": view.failure.get("advice")}
    message = str(view.failure.get("message", ""))
    return {label: str(text) for label, text in told.items() if text and text not in message}


def _files(view: RunView) -> dict[str, str]:
    """What there is to look at, by its label."""
    if view.state == "unreadable":
        return {}
    weights = next((path for name in ("best", "last") if (path := view.run.weights(name)).exists()), None)
    found = {"weights": weights, "metrics": view.run.metrics, "said": runs.said(view)}
    return {label: wording.short_path(path) for label, path in found.items() if path is not None and path.exists()}


def _next(view: RunView, name: str) -> str:
    paceline = wording.command("paceline")
    where = "" if view.run.path.parent == Path("runs") else f" --dir {wording.short_path(view.run.path.parent)}"
    if view.is_live:
        return f"{paceline} logs {name}{where} -f, or {paceline} stop {name}{where}"
    if view.state in ("failed", "lost"):
        return f"{paceline} logs {name}{where}"
    return ""


def _again(view: RunView) -> dict[str, str]:
    """The command that goes on with a run that has ended early, and from where it does, by its label."""
    words = None if view.is_live or view.state in ("finished", "unreadable") else runs.again(view.run)
    if words is None:
        return {}
    command = shlex.join([wording.command("paceline"), "run", *words])
    code = int(view.failure.get("exit_code") or 1) if view.failure else 0
    step = next_step(code, command, ours="--" not in words, override=str(view.failure.get("override") or ""))
    saved = "" if view.saved_step is None else f"   (from step {view.saved_step:,})"
    return {label: command + saved for label, command in step.items()}
