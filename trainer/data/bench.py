"""What each loading process has on its bench: kept in shared memory, so that it outlives a process that dies."""

import os
import time
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

_IDLE = -1


@dataclass(frozen=True, slots=True)
class AtWork:
    """One loading process.

    Attributes:
        number: from 0.
        pid: its process id.
        sample: the sample that it is reading, None where it waits for work.
        seconds: since it began with that.
        is_stopped: whether a signal or a debugger keeps it from running.
    """

    number: int
    pid: int
    sample: int | None
    seconds: float
    is_stopped: bool = False


class Bench:
    """Shared by the training process, which looks, and its loading processes, which write.

    Args:
        workers: loading processes; with 0 nothing is written.
    """

    def __init__(self, workers: int) -> None:
        self._rows = torch.full((workers, 3), _IDLE, dtype=torch.int64).share_memory_() if workers else None
        self._mine: NDArray[np.int64] | None = None

    def take(self, number: int) -> None:
        """Called once in a loading process, which takes the row of its number."""
        assert self._rows is not None
        self._mine = self._rows[number].numpy()
        self._mine[0] = os.getpid()

    def begin(self, sample: int) -> None:
        """This process begins to read a sample."""
        if self._mine is not None:
            self._mine[1] = sample
            self._mine[2] = time.monotonic_ns()

    def rest(self) -> None:
        """This process waits for work."""
        if self._mine is not None:
            self._mine[1] = _IDLE

    def look(self) -> list[AtWork]:
        """What each loading process that has begun to work is doing."""
        now = time.monotonic_ns()
        rows = self._rows.tolist() if self._rows is not None else []
        return [
            AtWork(number, pid, None if sample == _IDLE else sample, (now - since) / 1e9, _is_stopped(pid))
            for number, (pid, sample, since) in enumerate(rows)
            if pid != _IDLE
        ]


def _is_stopped(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    except psutil.Error:
        return False
