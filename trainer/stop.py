"""A request to stop: a signal, or the end of `max_time`; acted upon at the next step boundary that all ranks share."""

import os
import signal
import time
from types import FrameType


class StopRequest:
    """Remembers that somebody asked this process to stop. Nothing is done inside the signal handler.

    Args:
        max_seconds: stop in time before this many seconds have passed; None: no limit.
    """

    def __init__(self, max_seconds: float | None = None) -> None:
        self._deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self.signal: signal.Signals | None = None

    def listen(self) -> None:
        """Takes SIGTERM, SIGUSR1, SIGUSR2 and the first SIGINT as requests; a second SIGINT ends the process."""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
            signal.signal(number, self._remember)

    def is_due(self, margin_s: float) -> bool:
        """Whether to stop now, when saving and noticing takes `margin_s` seconds."""
        return self.signal is not None or (self._deadline is not None and time.monotonic() + margin_s >= self._deadline)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        self.signal = signal.Signals(number)


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
