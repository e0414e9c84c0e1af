"""What a person sees while a job runs: a live line on a terminal, sober lines elsewhere; all on stderr."""

import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TextIO

import rich.console
import rich.live
import rich.progress_bar
import rich.table
import rich.text

from trainer import wording
from trainer.terminal.voice import Pace, Voice


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run is.

    Attributes:
        step: optimizer steps done.
        total_steps: optimizer steps of the whole run.
        epoch: the running epoch, from 1.
        epochs: epochs of the run.
        loss: mean training loss of the latest steps.
        images_per_second: of all workers together.
        data_wait_fraction: share (0-1) of the time that the training waited for data.
        eta_s: seconds to the end; None while unknown.
        gpu_percent: mean GPU utilisation, 0-100; None where unknown.
    """

    step: int
    total_steps: int
    epoch: int
    epochs: int
    loss: float
    images_per_second: float
    data_wait_fraction: float
    eta_s: float | None = None
    gpu_percent: float | None = None


class Console(Protocol):
    """How the trainer talks; every method may be called from any thread.

    A terminal that takes nothing (Ctrl-S, a pager, tmux's copy mode) holds up a speaker a second, and nobody after it
    until it takes all that waits: the newest ten thousand lines.
    """

    def say(self, text: str) -> None:
        """Says something."""

    def warn(self, text: str) -> None:
        """Says something that deserves attention."""

    def error(self, problem: str, fix: str = "") -> None:
        """Says what is wrong and what mends it."""

    def progress(self, progress: Progress) -> None:
        """Shows where the run is; cheap, a few times a second at most."""

    def evaluation(self, *, epoch: int | None, step: int, metrics: Mapping[str, float], best: bool) -> None:
        """Shows the result of an evaluation; `epoch` is None in the middle of one."""

    def summary(self, lines: Sequence[str]) -> None:
        """Shows the results of the run."""

    def close(self) -> None:
        """Leaves the terminal as it was."""


def open_console(
    *,
    is_rank_zero: bool,
    log: Path | None,
    rank: int | None = None,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Console:
    """The console of a worker: rank 0 speaks, the others only warn.

    Args:
        is_rank_zero: whether this worker speaks.
        log: a file to which all that is said is appended, without colours; None for none.
        rank: named in other ranks' warnings; by default RANK of the environment.
        stream: where to speak; by default stderr.
        clock: seconds, steadily rising.
    """
    stream = stream if stream is not None else sys.stderr
    if not is_rank_zero:
        return QuietConsole(rank if rank is not None else int(os.environ.get("RANK", "0")), stream)
    if stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown"):
        return TerminalConsole(stream, log, clock=clock)
    return LineConsole(stream, log, clock=clock)


class QuietConsole:
    """The console of every rank but 0: only what is wrong is said, with rank and host before it."""

    def __init__(self, rank: int, stream: TextIO) -> None:
        self._prefix = f"[rank {rank} {socket.gethostname()}] "
        self._voice = Voice(stream, None)

    def say(self, text: str) -> None:
        """Says nothing: rank 0 says it."""

    def warn(self, text: str) -> None:
        """Says it with rank and host before it."""
        self._voice.line(f"{self._prefix}warning: {text}", style="yellow")

    def error(self, problem: str, fix: str = "") -> None:
        """Says it with rank and host before it."""
        self._voice.line(f"{self._prefix}error: {problem}", style="red")
        if fix:
            self._voice.line(f"{self._prefix}  {fix}")
        self._voice.drain()

    def progress(self, progress: Progress) -> None:
        """Shows nothing."""

    def evaluation(self, *, epoch: int | None, step: int, metrics: Mapping[str, float], best: bool) -> None:
        """Shows nothing."""

    def summary(self, lines: Sequence[str]) -> None:
        """Shows nothing."""

    def close(self) -> None:
        """Has nothing to put back; what was said is there, unless the terminal takes nothing."""
        self._voice.drain()


class LineConsole:
    """Rank 0 off a terminal: whole lines, no escape codes unless FORCE_COLOR asks, progress now and then."""

    def __init__(self, stream: TextIO, log: Path | None, *, clock: Callable[[], float]) -> None:
        self._voice = Voice(stream, log)
        self._pace = Pace(clock)

    def say(self, text: str) -> None:
        """Says something."""
        self._voice.line(text)

    def warn(self, text: str) -> None:
        """Says something that deserves attention."""
        self._voice.line(f"warning: {text}", style="yellow")

    def error(self, problem: str, fix: str = "") -> None:
        """Says what is wrong and what mends it."""
        self._voice.line(f"error: {problem}", style="bold red")
        if fix:
            self._voice.line(f"  {fix}")
        self._voice.drain()

    def progress(self, progress: Progress) -> None:
        """Writes a line when 30 s and a hundredth of the run have passed since the last one."""
        if self._pace.is_due(progress.step, progress.total_steps):
            self._voice.line(progress_line(progress))

    def evaluation(self, *, epoch: int | None, step: int, metrics: Mapping[str, float], best: bool) -> None:
        """Shows the result of an evaluation."""
        line = evaluation_line(epoch=epoch, step=step, metrics=metrics)
        self._voice.line(f"{line}   best so far" if best else line, style="green" if best else "")

    def summary(self, lines: Sequence[str]) -> None:
        """Shows the results of the run."""
        for line in lines:
            self._voice.line(f"  {line}")
        self._voice.drain()

    def close(self) -> None:
        """Has nothing to put back; what was said is there, unless the terminal takes nothing."""
        self._voice.drain()


class TerminalConsole(LineConsole):
    """Rank 0 on a terminal: one live line at the bottom, everything else above it."""

    def __init__(self, stream: TextIO, log: Path | None, *, clock: Callable[[], float]) -> None:
        super().__init__(stream, log, clock=clock)
        # The terminal's thread alone touches it.
        self._live: rich.live.Live | None = None

    def progress(self, progress: Progress) -> None:
        """Redraws the live line; the log file gets one at the pace of a run off a terminal."""
        if self._pace.is_due(progress.step, progress.total_steps):
            self._voice.to_log(progress_line(progress))
        self._voice.show(lambda: self._draw(progress), passing=True)

    def _draw(self, progress: Progress) -> None:
        if self._live is None:
            # Redrawn by us alone: rich's own thread would take the GIL ten times a second.
            # Not its place to redirect sys.stdout: what a user's model prints is data, not talk.
            self._live = rich.live.Live(
                console=self._voice.screen,
                auto_refresh=False,
                redirect_stdout=False,
                redirect_stderr=False,
                transient=True,
            )
            self._live.start()
        self._live.update(_live_line(progress, self._voice.screen.width), refresh=True)

    def _take_away(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def close(self) -> None:
        """Takes the live line away and shows the cursor again."""
        self._voice.show(self._take_away)
        super().close()

    def summary(self, lines: Sequence[str]) -> None:
        """Shows the results of the run, in place of the live line."""
        self._voice.show(self._take_away)
        super().summary(lines)


def progress_line(progress: Progress) -> str:
    """The progress line: `  step 234/936  epoch 2/4  loss 0.412  1,930 images/s  data wait 1 %  ...`."""
    return f"  {_position(progress)}  {'  '.join(_figures(progress))}"


def evaluation_line(*, epoch: int | None, step: int, metrics: Mapping[str, float]) -> str:
    """The line of an evaluation: `  epoch 1  val accuracy 85.9 %  loss 0.391`.

    Args:
        epoch: the epoch that has ended, or None in the middle of one: then the step is shown.
        step: optimizer steps done.
        metrics: values by metric name; those with `accuracy` in it are shares (0-1) and come first.
    """
    words = [f"epoch {epoch}" if epoch is not None else f"step {step:,}"]
    for name, value in sorted(metrics.items(), key=lambda item: "accuracy" not in item[0]):
        short = name.removeprefix("val/").replace("_", " ").replace("/", " ")
        words.append(f"{short} {wording.percent(value) if 'accuracy' in name else wording.significant(value)}")
    words[1:2] = [f"val {words[1]}"] if len(words) > 1 else []
    return "  " + "  ".join(words)


def _position(progress: Progress) -> str:
    total = f"{progress.total_steps:,}"
    return f"step {progress.step:>{len(total)},}/{total}"


def _figures(progress: Progress) -> list[str]:
    figures = [
        f"epoch {progress.epoch}/{progress.epochs}",
        f"loss {wording.significant(progress.loss)}",
        f"{wording.number(progress.images_per_second)} images/s",
        f"data wait {wording.whole_percent(progress.data_wait_fraction)}",
    ]
    if progress.gpu_percent is not None:
        figures.append(f"GPU {progress.gpu_percent:.0f} %")
    if progress.eta_s is not None:
        figures.append(f"ETA {wording.duration(progress.eta_s)}")
    return figures


def _live_line(progress: Progress, width: int) -> rich.table.Table:
    """The live line in at most `width` columns: the bar gives way first, then the figures in their order."""
    position, figures = _position(progress), _figures(progress)
    while len(figures) > 1 and 4 + len(position) + len("  ".join(figures)) > width:
        # The end of the line, the ETA, is worth more than what stands before it.
        figures.pop(-2)
    text = "  ".join(figures)
    room = width - len(position) - len(text) - 6
    line = rich.table.Table.grid(padding=(0, 2, 0, 0))
    cells: list[rich.console.RenderableType] = [rich.text.Text(f"  {position}", no_wrap=True)]
    if room >= 8:
        cells.append(
            rich.progress_bar.ProgressBar(
                total=max(1, progress.total_steps), completed=progress.step, width=min(40, room)
            )
        )
    cells.append(rich.text.Text(text, no_wrap=True, overflow="ellipsis"))
    line.add_row(*cells)
    return line
