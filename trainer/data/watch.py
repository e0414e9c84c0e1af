"""A watch over loading processes: one that hangs while it hands a batch over would hold up the training for ever.

A DataLoader's own time limit covers the wait for a message. The tensors' file descriptors are then fetched from the
process, without a limit, and a process that is stopped, or whose code holds Python's lock, never answers.
"""

import threading
import weakref
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from typing import TypeVar

from trainer.data.bench import AtWork, Bench

_TICK_S = 1.0
_GRACE_S = 2.0
Awaited = TypeVar("Awaited")
_TORCH_TIMED_OUT = "DataLoader timed out after"


class Watch:
    """Ends the loading processes when no batch comes from them for too long.

    Args:
        processes: the loading processes.
        bench: theirs.
        timeout_s: how long a batch may take, seconds; a DataLoader that has the same limit comes first.

    Attributes:
        hanging: what the processes were doing when the limit had passed; empty: it has not.
    """

    def __init__(self, processes: Sequence[BaseProcess], bench: Bench, timeout_s: float) -> None:
        self.hanging: list[AtWork] = []
        self._processes, self._bench, self._limit_s = processes, bench, timeout_s + _GRACE_S
        self._taken, self._is_waiting = 0, False
        self._over = threading.Event()

    def begin(self, owner: object) -> None:
        """Watches for as long as `owner` lives."""
        weakref.finalize(owner, self._over.set)
        threading.Thread(target=self._watch, name="watch over data loading", daemon=True).start()

    def wait(self, get: Callable[[], Awaited]) -> Awaited:
        """What `get` returns, which is watched."""
        self._is_waiting = True
        try:
            return get()
        except RuntimeError as error:
            if str(error).startswith(_TORCH_TIMED_OUT):
                self.hanging = self.hanging or self._bench.look()
            raise
        finally:
            self._is_waiting = False
            self._taken += 1

    def end(self) -> None:
        """Ends the processes, be they stopped or deaf; not to be waited for, nor to be woken again."""
        self._over.set()
        for process in self._processes:
            process.kill()

    def _watch(self) -> None:
        # Ticks are counted, since the time in which a whole job was suspended is nobody's fault.
        ticks, taken = 0, -1
        while not self._over.wait(_TICK_S):
            ticks = ticks + 1 if self._is_waiting and taken == self._taken else 0
            taken = self._taken
            if ticks * _TICK_S >= self._limit_s:
                self.hanging = self._bench.look()
                # The read that the training is blocked in ends, or torch's handler of the process's end breaks it off.
                self.end()
