"""Whether a process that computes only spins in a wait for its device, as `loss.item()` does on a GPU."""

import os
import subprocess
from contextlib import suppress

from launcher.hang import stacks
from launcher.hang.waiting import waits_for_others

_RATE_HZ = 20
_MARGIN_S = 1.0
"""py-spy has written what it saw that much later."""


class Spin:
    """A look at a process, twenty times a second, without halting it: does its main thread stay at one place?

    A training that waits for its GPU nearly all the time is at the same place whenever it is looked at once.

    Args:
        pid: the process.
        seconds: after which `has_stayed` may be asked.
    """

    def __init__(self, pid: int, seconds: float) -> None:
        self._pid = pid
        self._seen = os.fdopen(os.memfd_create("spin"), "w+b")
        self._spy: subprocess.Popen[bytes] | None = None
        options = ["--nonblocking", "--idle", "--threads", "--full-filenames", "--format", "raw"]
        times = ["--rate", str(_RATE_HZ), "--duration", str(max(1, int(seconds - _MARGIN_S)))]
        # What it says itself on standard output would be in between.
        output = f"/proc/{os.getpid()}/fd/{self._seen.fileno()}"
        with suppress(OSError):
            command = [stacks.spy(), "record", *options, *times, "--output", output, "--pid", str(pid)]
            self._spy = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def has_stayed(self) -> bool | None:
        """Whether the main thread was at one place all the time; not if it could not be seen; None: not known yet."""
        code = self._spy.poll() if self._spy is not None else 1
        if code != 0:
            return None if code is None else False
        self._seen.seek(0)
        heading = f"thread ({self._pid})".encode()
        return sum(line.startswith(heading) for line in self._seen) == 1

    def wait(self) -> None:
        """Waits until `has_stayed` knows."""
        if self._spy is not None:
            self._spy.wait()


def begin(pid: int, seconds: float) -> Spin | None:
    """Begins to look whether a process stays in a wait for its device, or for others; None: it is in none now.

    For that its native calls are needed, for which it is halted for a moment.
    """
    seen = stacks.take([pid], {}, native=True)[pid]
    return Spin(pid, seconds) if waits_for_others(seen.main) else None
