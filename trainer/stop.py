"""A request to stop: a signal, a file in the run directory, or the end of `max_time`.

Acted upon at the next step boundary that all ranks share. Standard library only: it listens before torch is there.
"""

import functools
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
_FILE_PERIOD_S = 1.0


def asked_by(number: int) -> str:
    """Who asked by a signal, in words."""
    return f"asked to stop ({'Ctrl-C' if number == signal.SIGINT else signal.Signals(number).name})"


class StopRequest:
    """Remembers that somebody asked this process to stop. Nothing is done inside the signal handler.

    Attributes:
        reason: who asked, in words; empty while nobody has.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._deadline: float | None = None
        self._unwatched = threading.Event()

    @property
    def is_asked(self) -> bool:
        """Whether somebody has asked; the end of `max_time` does not count."""
        return bool(self.reason)

    def listen(self) -> None:
        """Takes the signals as requests; a second SIGINT ends the process. Under nohup SIGHUP stays ignored."""
        for number in STOP_SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._remember)
        # A launcher may have held them back until they are understood.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        _count_interrupts()

    def ask(self, why: str) -> None:
        """Asks to stop; from any thread."""
        self.reason = self.reason or why

    def end_by(self, deadline: float) -> None:
        """Stops in time before `deadline`, UNIX seconds."""
        self._deadline = time.monotonic() + deadline - time.time()

    def watch(self, file: Path) -> None:
        """Takes the existence of a file as a request, from a thread of its own until `unwatch`.

        The file is removed when it is seen, so that it does not stop the next attempt, too.
        """
        threading.Thread(target=self._watch, args=(file,), name="stop-file", daemon=True).start()

    def unwatch(self) -> None:
        """Leaves the file alone from now on."""
        self._unwatched.set()

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the end of `max_time`; None without one."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def is_late(self, margin_s: float) -> bool:
        """Whether the end of `max_time` asks to stop now, when noticing and saving take `margin_s` seconds."""
        return self._deadline is not None and time.monotonic() + margin_s >= self._deadline

    def _watch(self, file: Path) -> None:
        while not self.is_asked:
            try:
                file.unlink()
            except FileNotFoundError:
                pass
            except OSError as error:
                # It is there and will stop the next attempt as well: whoever made it must remove it.
                if file.exists():
                    self.reason = f"{file} is there (and cannot be removed: {error.strerror})"
            else:
                self.reason = f"{file} was there"
            if self._unwatched.wait(_FILE_PERIOD_S):
                return

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if not self.reason:
            self.reason = asked_by(number)


@functools.cache
def _count_interrupts() -> None:
    """Ends the process at a second SIGINT; begun once, for all jobs of a sweep."""
    # Python runs handlers between two of its own instructions: never, while the main thread waits in a
    # collective that does not end. The bytes in this pipe come all the same.
    arrived, arrives = os.pipe()
    os.set_blocking(arrives, False)
    signal.set_wakeup_fd(arrives, warn_on_full_buffer=False)
    threading.Thread(target=_end_at_second_interrupt, args=(arrived,), name="interrupts", daemon=True).start()


def _end_at_second_interrupt(arrived: int) -> None:
    interrupts = 0
    while interrupts < 2:
        interrupts += os.read(arrived, 64).count(signal.SIGINT)
    os._exit(128 + signal.SIGINT)


def parse_duration(text: str) -> float:
    """Seconds of HH:MM:SS, MM:SS or a number of seconds.

    Raises:
        ValueError: anything else.
    """
    seconds = 0.0
    parts = text.split(":")
    if len(parts) > 3:
        raise ValueError(f"{text!r} is not HH:MM:SS")
    for part in parts:
        seconds = seconds * 60 + float(part)
    return seconds
