"""The first worker's way to the terminal, which also leads to its log."""

import os
import pty
import subprocess
import sys
import threading
import tty
from pathlib import Path

from launcher.workers import copier

_DRAIN_LIMIT_S = 3.0
_SAYING_LIMIT_S = 1.0


class Output:
    """What takes the place of a worker's stdout and stderr, and the process that copies it on.

    A terminal is stood in for by a pseudo-terminal, so that live displays stay what they are; anything else by a
    pipe. What was one (`2>&1`) stays one, and so keeps its order.

    Args:
        log: the worker's log.

    Attributes:
        log: the same.
        ends: the descriptors for stdout and stderr, to be inherited by the worker.
    """

    def __init__(self, log: Path) -> None:
        self.log = log
        same = _is_same(1, 2)
        first_source, first_end = _channel(1)
        second_source, second_end = (first_source, first_end) if same else _channel(2)
        self.ends = (first_end, second_end)
        sources = {first_source: 1, second_source: 2} if not same else {first_source: 1}
        self._copier = subprocess.Popen(
            [sys.executable, "-I", "-S", copier.__file__, str(log), *(f"{s}:{t}" for s, t in sources.items())],
            stdin=subprocess.DEVNULL,
            pass_fds=list(sources),
        )
        for source in sources:
            os.close(source)

    @property
    def pid(self) -> int:
        """The copying process."""
        return self._copier.pid

    def become(self) -> None:
        """Makes this process's stdout and stderr lead here."""
        for target, end in enumerate(self.ends, start=1):
            os.dup2(end, target)
        self.close()

    def close(self) -> None:
        """Lets go of the ends: the copying goes on until the worker and all it has started have done so."""
        for end in set(self.ends):
            os.close(end)

    def drain(self) -> None:
        """Waits until everything that was written has been copied; to be called when the writers are gone."""
        try:
            self._copier.wait(_DRAIN_LIMIT_S)
        except subprocess.TimeoutExpired:
            # A writer that cannot be ended: the verdict must not wait for it.
            self._copier.kill()


def _channel(target: int) -> tuple[int, int]:
    """(where to read, where to write) in place of a descriptor of ours."""
    if not os.isatty(target):
        return os.pipe()
    source, end = pty.openpty()
    # Only the real terminal shall turn a line feed into what starts a new line.
    tty.setraw(end)
    copier.follow_size(source, target)
    return source, end


def _is_same(one: int, other: int) -> bool:
    return os.path.sameopenfile(one, other)


def say(text: str) -> None:
    """Prints to stderr in the midst of a job, which a terminal that takes nothing holds up for a second at most."""
    thread = threading.Thread(target=lambda: print(text, file=sys.stderr, flush=True), daemon=True)
    thread.start()
    thread.join(_SAYING_LIMIT_S)


def tidy_terminal() -> None:
    """Gives back what a worker that was killed on a terminal has left: a half progress line, and no cursor."""
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K\x1b[?25h")
        sys.stderr.flush()
