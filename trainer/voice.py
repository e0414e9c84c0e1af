"""Where and how often lines are written; the loss of a stream or a log never reaches the one who speaks."""

import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import rich.console
import rich.text

# Off a terminal a progress line comes at most this often, and at most once for each hundredth of the run.
_SOBER_PERIOD_S = 30.0
_SOBER_SHARE = 0.01
_PATIENCE_S = 1.0
_WAITING_LINES = 10_000


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
        self._log = None if log is None else _Log(log)

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
        log = self._log
        if log is None or (error := log.add(text)) is None:
            return
        self._log = None
        self.line(f"warning: {log.path} cannot be written and is given up: {error.strerror}", style="yellow")


class _Log:
    """A file that lines are appended to; on a storage that hangs they wait, and hold up the first speaker a second.

    Args:
        path: the file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._waiting: deque[str] = deque(maxlen=_WAITING_LINES)
        self._writer: threading.Thread | None = None
        self._hangs = False
        self._error: OSError | None = None

    def add(self, text: str) -> OSError | None:
        """Appends a line, and usually it is there on return; returns why no more can be written, once that is known."""
        with self._lock:
            self._waiting.append(text)
            if self._writer is None:
                # A thread for the moment, not for good: only it may hang, and none is left behind.
                self._writer = threading.Thread(target=self._write, name="log", daemon=True)
                self._writer.start()
            writer = self._writer
        if not self._hangs:
            writer.join(_PATIENCE_S)
            self._hangs = writer.is_alive()
        return self._error

    def _write(self) -> None:
        while True:
            with self._lock:
                lines = "".join(f"{text}\n" for text in self._waiting)
                self._waiting.clear()
                if not lines:
                    self._writer = None
                    return
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(lines)
            except OSError as error:
                self._error = error
            self._hangs = False


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
