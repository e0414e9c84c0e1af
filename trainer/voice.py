"""Where and how often lines are written; the loss of a stream or a log never reaches the one who speaks."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import rich.console
import rich.text

# Off a terminal a progress line comes at most this often, and at most once for each hundredth of the run.
_SOBER_PERIOD_S = 30.0
_SOBER_SHARE = 0.01


class _Screen(rich.console.Console):
    """rich's console, but a broken pipe is an error like any other: rich would end the process."""

    def on_broken_pipe(self) -> None:
        """Raises again the error that rich is handling."""
        raise BrokenPipeError


class Voice:
    """Writes lines to a stream and, plain, to a log file; neither one's loss reaches the caller."""

    def __init__(self, stream: TextIO, log: Path | None) -> None:
        self.broken = False
        # Off a terminal rich would wrap at 80 columns; a line is a line there.
        self.screen = _Screen(file=stream, highlight=False, markup=False, emoji=False, soft_wrap=not stream.isatty())
        self._log = log
        self._log_lock = threading.Lock()

    def line(self, text: str, *, style: str = "") -> None:
        """Writes a line, or several."""
        self.to_log(text)
        if self.broken:
            return
        try:
            self.screen.print(rich.text.Text(text, style=style), soft_wrap=True)
        except (OSError, ValueError):
            # The pipe's other end or the terminal is gone, or the stream was closed: training goes on unseen.
            self.broken = True

    def to_log(self, text: str) -> None:
        """Appends a line to the log file only."""
        with self._log_lock:
            if self._log is None:
                return
            try:
                self._log.parent.mkdir(parents=True, exist_ok=True)
                with self._log.open("a", encoding="utf-8") as file:
                    file.write(text + "\n")
                return
            except OSError as error:
                notice = f"warning: {self._log} cannot be written and is given up: {error.strerror}"
                self._log = None
        self.line(notice, style="yellow")


class Pace:
    """Decides which progress lines are worth writing off a terminal."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._time = float("-inf")
        self._step = float("-inf")

    def is_due(self, step: int, total_steps: int) -> bool:
        """Whether 30 s and a hundredth of the run have passed since the line before."""
        now = self._clock()
        with self._lock:
            if now - self._time < _SOBER_PERIOD_S:
                return False
            if step - self._step < _SOBER_SHARE * total_steps:
                return False
            self._time, self._step = now, step
            return True
