"""Copies a worker's output to the terminal and, as plain lines, to its log: `copier.py LOG SOURCE:TARGET ...`.

A process of its own, since what native code prints and the last words of a crash must come through as well. It ends
when nobody can write any more. Standard library only and run as a script, so it is there in 20 ms.
"""

import fcntl
import os
import re
import select
import signal
import struct
import sys
import termios

_CHUNK = 1 << 16
_LONGEST_LINE = 1 << 16
_MOST_ROWS = 200
_UP = re.compile(rb"\x1b\[(\d*)A")
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


class _Log:
    def __init__(self, path: str) -> None:
        self._path = path
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
            _to_terminal(2, f"warning: {self._path} cannot be written and is given up: {error.strerror}\n".encode())


def main(log_path: str, *pairs: str) -> None:
    """Copies until all sources are closed.

    Args:
        log_path: the log, appended to.
        pairs: `SOURCE:TARGET`, file descriptors.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    log = _Log(log_path)
    # One that prints nothing has a log, too, as the other ranks have.
    log.write(b"")
    targets = {int(source): int(target) for source, target in (pair.split(":") for pair in pairs)}
    lines = {source: PlainLines() for source in targets}
    poll = select.poll()
    for source in targets:
        poll.register(source, select.POLLIN)
    while lines:
        for source, _ in poll.poll():
            data = _read(source)
            if data:
                _to_terminal(targets[source], data)
                log.write(lines[source].feed(data))
                follow_size(source, targets[source])
            else:
                poll.unregister(source)
                log.write(lines.pop(source).rest())


def _read(source: int) -> bytes:
    try:
        return os.read(source, _CHUNK)
    except OSError:
        # A pseudo-terminal's way to say that nobody has it open any more.
        return b""


_gone: set[int] = set()


def _to_terminal(target: int, data: bytes) -> None:
    """Writes to the terminal, or to what stands in its place; when that is gone, the log still has it."""
    if target in _gone:
        return
    try:
        _write_all(target, data)
    except OSError:
        _gone.add(target)


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
