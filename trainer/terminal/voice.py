"""Where and how often lines are written; the loss of a stream or a log never reaches the one who speaks."""

import io
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
_LAST_PATIENCE_S = 2.0
_WAITING_LINES = 10_000


class _Screen(rich.console.Console):
    """rich's console, but a broken pipe is an error like any other: rich would end the process."""

    def on_broken_pipe(self) -> None:
        """Raises again the error that rich is handling."""
        raise BrokenPipeError


class Voice:
    """Writes lines to a stream and, plain, to a log file; neither one's loss, or silence, reaches the caller."""

    def __init__(self, stream: TextIO, log: Path | None) -> None:
        self.broken = False
        # Off a terminal rich would wrap at 80 columns; a line is a line there.
        self.screen = _Screen(
            file=_apart(stream), highlight=False, markup=False, emoji=False, soft_wrap=not stream.isatty()
        )
        # Where nobody else holds it, its end would close the descriptor.
        self._stream = stream
        self._shown = _Turns("terminal")
        self._log = None if log is None else _Log(log)

    def line(self, text: str, *, style: str = "") -> None:
        """Writes a line, or several."""
        self.to_log(text)
        self.show(lambda: self.screen.print(rich.text.Text(text, style=style), soft_wrap=True))

    def show(self, draw: Callable[[], None], *, passing: bool = False) -> None:
        """Has something drawn on the screen after all that was said before.

        Args:
            draw: draws it.
            passing: it is not waited for, and it may be left out where another such drawing follows at once.
        """
        if not self.broken:
            self._shown.add(lambda: self._try(draw), wait=not passing, passing=passing)

    def drain(self) -> None:
        """Waits until all is shown, but no longer than two seconds for a terminal that takes nothing."""
        self._shown.drain()

    def to_log(self, text: str) -> None:
        """Appends a line to the log file only."""
        log = self._log
        if log is None or (error := log.add(text)) is None:
            return
        self._log = None
        self.line(f"warning: {log.path} cannot be written and is given up: {error.strerror}", style="yellow")

    def _try(self, draw: Callable[[], None]) -> None:
        if self.broken:
            return
        try:
            draw()
        except Exception:
            # The pipe's other end or the terminal is gone, or the stream was closed: training goes on unseen.
            self.broken = True


def _apart(stream: TextIO) -> TextIO:
    """The same file with a buffer of its own: while a write to it hangs, nobody else could flush the stream's."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return stream
    raw = io.FileIO(descriptor, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=stream.encoding, errors=stream.errors)


class _Turns:
    """Does one thing after the other; where one hangs, the others wait, and the first speaker is held up a second.

    Of more than ten thousand that wait the oldest are dropped.

    Args:
        name: of its threads.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Callable[[], None], bool]] = deque(maxlen=_WAITING_LINES)
        self._thread: threading.Thread | None = None
        self._hangs = False
        self._done, self._done_at_last_drain = 0, -1

    def add(self, act: Callable[[], None], *, wait: bool = True, passing: bool = False) -> None:
        """Has something done, and usually it is done on return; a `passing` one takes the place of one just before."""
        with self._lock:
            if passing and self._waiting and self._waiting[-1][1]:
                self._waiting.pop()
            self._waiting.append((act, passing))
            served = self._thread is not None or self._begin()
        if not served:
            # No more threads are to be had, which may be the very thing to tell.
            self._serve()
        elif wait and not self._hangs:
            self._wait(_PATIENCE_S)

    def drain(self) -> None:
        """Waits until all is done, at most two seconds; not again where nothing came of it the last time."""
        if self._done != self._done_at_last_drain:
            self._wait(_LAST_PATIENCE_S)
            self._done_at_last_drain = self._done if self._hangs else -1

    def _begin(self) -> bool:
        # A thread for the moment, not for good: only it may hang, and none is left behind.
        thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return False
        self._thread = thread
        return True

    def _wait(self, seconds: float) -> None:
        thread = self._thread
        if thread is not None:
            thread.join(seconds)
            with self._lock:
                self._hangs = self._thread is thread

    def _serve(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread, self._hangs = None, False
                    return
                act, _ = self._waiting.popleft()
            act()
            self._done += 1


class _Log:
    """A file that lines are appended to; on a storage that hangs they wait, and hold up the first speaker a second.

    Args:
        path: the file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: deque[str] = deque(maxlen=_WAITING_LINES)
        self._turns = _Turns("log")
        self._error: OSError | None = None

    def add(self, text: str) -> OSError | None:
        """Appends a line, and usually it is there on return; returns why no more can be written, once that is known."""
        self._lines.append(text)
        # Lines that wait together are written together.
        self._turns.add(self._write, passing=True)
        return self._error

    def _write(self) -> None:
        if not self._lines:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                while self._lines:
                    file.write(f"{self._lines.popleft()}\n")
        except OSError as error:
            self._error = error


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
