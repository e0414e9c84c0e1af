"""Lines to a stream and to a log file; the loss of either never reaches the one who speaks."""

import threading
from pathlib import Path
from typing import TextIO

import rich.console
import rich.text


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
        self.screen = _Screen(
            file=stream, highlight=False, markup=False, emoji=False, soft_wrap=not stream.isatty()
        )
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
