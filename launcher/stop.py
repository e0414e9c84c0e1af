"""Signals turned into a request: the workers are asked once, given time, and ended by force only after it."""

import signal
import time
from types import FrameType

from launcher import worker


class Stop:
    """The requests to stop that this agent got.

    Attributes:
        signal: the first one, None before.
        deadline: `time.monotonic()` at which the workers are ended by force, None before.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._interrupted = False
        self.signal: signal.Signals | None = None
        self.deadline: float | None = None

    def listen(self) -> None:
        """Takes SIGTERM, SIGINT and, unless it is ignored (nohup), SIGHUP from now on."""
        for number in worker.STOP_SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number)
            self.deadline = time.monotonic() + self._grace_s
        # Schedulers repeat SIGTERM; only a person who asks twice means "at once".
        if number == signal.SIGINT:
            if self._interrupted:
                self.deadline = time.monotonic()
            self._interrupted = True
