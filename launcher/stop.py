"""Signals turned into a request: the workers are asked once, given time, and ended by force only after it."""

import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from launcher.processes import catches
from trainer.rundir import RunDir
from trainer.stop import asked_by

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""Requests to stop: a scheduler's and a person's."""

_FILE_PERIOD_S = 1.0


class StoppedEarly(BaseException):
    """A request came before there was a worker to hand it to; no error, so nothing may catch it as one."""


class Stop:
    """The requests to stop that this agent got.

    Attributes:
        signal: the first one, None before.
        reason: who asked, in words; empty before.
        deadline: `time.monotonic()` at which the workers are ended by force, None before.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._interrupts = 0
        self._at_once = False
        self.signal: signal.Signals | None = None
        self.reason = ""
        self.deadline: float | None = None

    def listen(self) -> None:
        """Takes the requests from now on, those that were held back too."""
        for number in STOP_SIGNALS:
            signal.signal(number, self.note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Here a request raises StoppedEarly at once: imports take seconds, on a slow file system minutes."""
        self._at_once = True
        try:
            self.check()
            yield
        finally:
            self._at_once = False

    def check(self) -> None:
        """Raises StoppedEarly if a request has come."""
        if self.signal is not None:
            raise StoppedEarly

    @property
    def is_insisted_on(self) -> bool:
        """Whether a person did not want to wait any longer."""
        return self._interrupts > 1

    @property
    def is_over(self) -> bool:
        """Whether the workers have had their time to stop."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def ask(self, why: str) -> None:
        """A request that came by another way than a signal: it counts as SIGTERM."""
        self.reason = self.reason or why
        self.note(signal.SIGTERM, None)

    def hear(self, number: int, reason: str, *, insisted: bool) -> None:
        """A request that another agent got; one that is known already changes nothing."""
        # Not counted: the same Ctrl-C may come here, too.
        self._begin(number, reason)
        if insisted and not self.is_insisted_on:
            self._interrupts = 2
            self.deadline = time.monotonic()

    def _begin(self, number: int, reason: str) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number)
            self.reason = self.reason or reason
            self.deadline = time.monotonic() + self._grace_s

    def note(self, number: int, frame: FrameType | None) -> None:
        """A signal has come; a handler's signature."""
        self._begin(number, asked_by(number))
        # Schedulers repeat SIGTERM; only a person who asks twice means "at once".
        if number == signal.SIGINT:
            self._interrupts += 1
            if self.is_insisted_on:
                self.deadline = time.monotonic()
        if self._at_once:
            raise StoppedEarly


@contextmanager
def held_back() -> Iterator[None]:
    """Has requests wait until somebody listens to them, at the latest until the end of this."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


class StopFiles:
    """Requests by a file in the run directory: whoever makes one asks.

    Args:
        run: the run.
        ours: whether our trainer runs, which looks for the one with which there is time to stop itself.
    """

    def __init__(self, run: RunDir, *, ours: bool) -> None:
        self._run, self._ours = run, ours
        self._next_look = 0.0

    def look(self, stop: Stop) -> None:
        """To be called all the time; hands the request to `stop`."""
        now = time.monotonic()
        if now < self._next_look or stop.is_insisted_on:
            return
        self._next_look = now + _FILE_PERIOD_S
        if _taken(self._run.stop_now):
            stop.hear(signal.SIGTERM, _asked_by(self._run.stop_now), insisted=True)
        elif stop.signal is None and not self._ours and _taken(self._run.stop):
            stop.ask(_asked_by(self._run.stop))


def _taken(path: Path) -> bool:
    """Whether a file was there; now it is not."""
    if not path.exists():
        return False
    # If it cannot be removed, it will stop the next attempt as well: whoever made it must remove it.
    with suppress(OSError):
        path.unlink()
    return True


def _asked_by(path: Path) -> str:
    return f"asked to stop ({path.name} in the run directory)"


def hand_on(number: signal.Signals, pids: Iterable[int], *, ours: bool) -> None:
    """Hands workers what each knows to tell apart: SIGTERM is what everybody understands.

    Args:
        number: the request.
        pids: the workers.
        ours: whether they run our trainer, which holds signals back until it listens.
    """
    # A script has a handler for SIGINT without knowing of it, Python's own.
    own = number in (signal.SIGUSR1, signal.SIGUSR2) or (ours and number == signal.SIGINT)
    for pid in pids:
        takes = own and (ours or catches(pid, number))
        os.kill(pid, number if takes else signal.SIGTERM)


def outlive_terminal() -> None:
    """Lets a job go on when its terminal is closed; the agents and workers that this process starts do as well."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
