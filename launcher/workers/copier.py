"""Copies a worker's output to the terminal and, as plain lines, to its log: `copier.py LOG SOURCE:TARGET ...`.

A process of its own, since what native code prints and the last words of a crash must come through as well. It ends
when nobody can write any more. Standard library only and run as a script, so it is there in 20 ms.

The log comes first: a terminal that takes nothing (Ctrl-S, a pager that waits) keeps neither it nor the worker.
"""

import fcntl
import os
import re
import select
import signal
import struct
import sys
import termios
import threading
import time
from collections import deque
from collections.abc import Callable

_CHUNK = 1 << 16
_PIECE = 1 << 12
_MOST_WAITING = 1 << 17
_PATIENCE_S, _PATIENCE_WITH_PERSONS_S = 5.0, 1.0
_LAST_PATIENCE_S = 2.5
_LONGEST_LINE = 1 << 16
_MOST_ROWS = 200
_UP = re.compile(rb"\x1b\[(\d{0,4})A")
_ESCAPE = re.compile(rb"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-Z\\^_=>78]|[()*+][0-9A-B])")


class PlainLines:
    """What a terminal shows in the end: without escape codes, and without what is drawn over.

    Complete lines are handed out at once; as many are held back as a live display has ever moved the cursor up.
    """

    def __init__(self) -> None:
        self._part = b""
        self._held: list[bytes] = []
        self._rows = 0

    def feed(self, data: bytes) -> bytes:
        """Takes output; returns the lines that are final."""
        *lines, self._part = (self._part + data).split(b"\n")
        for line in lines:
            self._move_up(line)
            self._held.append(_shown(line) + b"\n")
        # A bar that is redrawn for hours without a new line must not grow.
        cut = self._part.rstrip(b"\r").rfind(b"\r") + 1
        self._move_up(self._part[:cut])
        self._part = self._part[cut:]
        if len(self._part) > _LONGEST_LINE:
            self._held.append(_shown(self._part))
            self._part = b""
        final = len(self._held) - self._rows
        done, self._held = (self._held[:final], self._held[final:]) if final > 0 else ([], self._held)
        return b"".join(done)

    def rest(self) -> bytes:
        """What has not been handed out yet, at the end."""
        last = _shown(self._part)
        return b"".join([*self._held, last + b"\n" if last else b""])

    def _move_up(self, line: bytes) -> None:
        up = sum(int(count or 1) for count in _UP.findall(line))
        if up:
            self._rows = min(max(self._rows, up), _MOST_ROWS)
            del self._held[-up:]


def _shown(line: bytes) -> bytes:
    """A line after all that overwrote it."""
    return _ESCAPE.sub(b"", line.rstrip(b"\r").rpartition(b"\r")[2])


class _Screen:
    """A terminal, or what stands in its place, written to by a thread of its own; its loss or silence is nobody's.

    Of what it has not taken yet 128 KiB wait. When there is more, whoever writes waits, too, as long as it takes
    anything at all. Where a terminal has taken nothing for a second, or a pipe, whose reader is no person who has
    stopped it, for five, the oldest is dropped; this is told when it takes something again.

    Args:
        descriptor: of the terminal.
        log: where everything is.
    """

    def __init__(self, descriptor: int, log: str) -> None:
        self._descriptor, self._log = descriptor, log
        self._turn = threading.Condition()
        self._pieces: deque[bytes] = deque()
        self._waiting = self._dropped = 0
        self._is_busy = self._is_gone = False
        self._taken_at = 0.0
        self._patience_s = _PATIENCE_WITH_PERSONS_S if os.isatty(descriptor) else _PATIENCE_S
        threading.Thread(target=self._serve, daemon=True).start()

    def write(self, data: bytes) -> None:
        """Has it shown after all that came before."""
        with self._turn:
            if self._is_gone:
                return
            if not self._is_busy and not self._pieces:
                self._taken_at = time.monotonic()
            self._pieces.extend(data[start : start + _PIECE] for start in range(0, len(data), _PIECE))
            self._waiting += len(data)
            self._turn.notify_all()
            if not self._wait(lambda: self._waiting <= _MOST_WAITING):
                self._drop()

    def finish(self, deadline: float) -> None:
        """Waits until all is shown, as long as it takes anything, and until `deadline` (`time.monotonic()`)."""
        with self._turn:
            self._wait(lambda: not self._is_busy and not self._pieces, deadline)

    def _wait(self, is_so: Callable[[], bool], deadline: float = float("inf")) -> bool:
        """Waits for something; False where it does not come since the terminal takes nothing."""
        while not (self._is_gone or is_so()):
            left = min(self._taken_at + self._patience_s, deadline) - time.monotonic()
            if left <= 0:
                return False
            self._turn.wait(left)
        return True

    def _drop(self) -> None:
        while self._waiting > _MOST_WAITING:
            piece = self._pieces.popleft()
            self._waiting -= len(piece)
            self._dropped += piece.count(b"\n")
        # What remains shall begin with a line.
        first, newline, rest = self._pieces.popleft().partition(b"\n")
        self._pieces.appendleft(rest if newline else first)
        self._waiting -= len(first + newline) if newline else 0
        self._dropped += len(newline)

    def _serve(self) -> None:
        while True:
            with self._turn:
                self._is_busy = False
                self._turn.notify_all()
                self._turn.wait_for(lambda: self._pieces)
                self._is_busy = True
                dropped, self._dropped = self._dropped, 0
                piece = b"" if dropped else self._pieces.popleft()
                self._waiting -= len(piece)
            if dropped:
                missing = f"{dropped} line{'s' if dropped > 1 else ''}"
                piece = f"\n[{missing} not shown while this took nothing: {self._log} has all]\n".encode()
            try:
                _write_all(self._descriptor, piece)
            except OSError:
                with self._turn:
                    self._is_gone = True
                    self._pieces.clear()
                    self._turn.notify_all()
                return
            with self._turn:
                self._taken_at = time.monotonic()


class _Log:
    def __init__(self, path: str, tell: Callable[[bytes], None]) -> None:
        self._path, self._tell = path, tell
        self._file: int | None = None
        self._given_up = False

    def write(self, data: bytes) -> None:
        """Appends to the log, and makes it if it is not there; without data too."""
        if self._given_up:
            return
        try:
            if self._file is None:
                os.makedirs(os.path.dirname(self._path), exist_ok=True)  # noqa: PTH103, PTH120  # pathlib takes 10 ms
                self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            _write_all(self._file, data)
        except OSError as error:
            self._given_up = True
            self._tell(f"warning: {self._path} cannot be written and is given up: {error.strerror}\n".encode())


def main(log_path: str, *pairs: str) -> None:
    """Copies until all sources are closed.

    Args:
        log_path: the log, appended to.
        pairs: `SOURCE:TARGET`, file descriptors.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    targets = {int(source): int(target) for source, target in (pair.split(":") for pair in pairs)}
    screens = {source: _Screen(target, log_path) for source, target in targets.items()}
    log = _Log(log_path, list(screens.values())[-1].write)
    # One that prints nothing has a log, too, as the other ranks have.
    log.write(b"")
    lines = {source: PlainLines() for source in targets}
    poll = select.poll()
    for source in targets:
        poll.register(source, select.POLLIN)
    while lines:
        for source, _ in poll.poll():
            data = _read(source)
            if data:
                log.write(lines[source].feed(data))
                screens[source].write(data)
                follow_size(source, targets[source])
            else:
                poll.unregister(source)
                log.write(lines.pop(source).rest())
    deadline = time.monotonic() + _LAST_PATIENCE_S
    for screen in screens.values():
        screen.finish(deadline)
    # A thread may still be in the middle of a write.
    os._exit(0)


def _read(source: int) -> bytes:
    try:
        return os.read(source, _CHUNK)
    except OSError:
        # A pseudo-terminal's way to say that nobody has it open any more.
        return b""


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            # Somebody who shares the terminal has made it non-blocking.
            select.select([], [descriptor], [])


def follow_size(source: int, target: int) -> None:
    """Tells a pseudo-terminal, by its master side, the size of the real one."""
    try:
        size = fcntl.ioctl(target, termios.TIOCGWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
        fcntl.ioctl(source, termios.TIOCSWINSZ, size)
    except OSError:
        # No terminals: pipes have no size.
        pass


if __name__ == "__main__":
    main(*sys.argv[1:])
