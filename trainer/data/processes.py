"""How loading processes are made: what they ignore, how they are ended, how their batches and troubles come back."""

import ctypes
import multiprocessing.queues
import signal
from collections.abc import Generator
from contextlib import contextmanager
from multiprocessing.context import ForkContext, ForkProcess
from multiprocessing.popen_fork import Popen
from multiprocessing.process import BaseProcess
from typing import Any

from torch.utils.data import get_worker_info

from trainer.data import shared_memory
from trainer.data.samples import BadBatch

_PR_SET_PDEATHSIG = 1
_FOR_THE_TRAINER = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@contextmanager
def held_back() -> Generator[None]:
    """Over a fork: what reaches the new process before it ignores it must not meet the trainer's handlers there."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_TRAINER)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin(number: int) -> None:
    """Called first in a loading process."""
    # Ctrl-C, and what a scheduler or systemd sends, reach every process of a job: the training process decides what
    # it means, and needs its batches until the step at which all ranks stop.
    for wish in _FOR_THE_TRAINER:
        signal.signal(wish, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FOR_THE_TRAINER)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    info = get_worker_info()
    assert info is not None
    info.dataset.bench.take(number)  # type: ignore[attr-defined]  # it is Samples


class _Queue(multiprocessing.queues.Queue):
    def _on_queue_feeder_error(self, e: Exception, obj: Any) -> None:
        """Hands the trouble over in the batch's place; Python's way loses the batch, and it would be waited for."""
        if not isinstance(obj, tuple):
            super()._on_queue_feeder_error(e, obj)  # type: ignore[misc]  # concurrent.futures overrides it, too
            return
        trouble = shared_memory.unsent(e)
        self.put((obj[0], BadBatch(trouble.problem, trouble.fix)))


class _Popen(Popen):
    def terminate(self) -> None:
        # torch, and multiprocessing at exit, end with it what does not end by itself; SIGTERM is ignored there.
        self.kill()


class _Process(ForkProcess):
    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Popen:
        return _Popen(process_obj)


class Context(ForkContext):
    """Makes them by fork, for a DataLoader."""

    Process = _Process  # type: ignore[assignment]  # a subclass of it

    def Queue(self, maxsize: int = 0) -> _Queue:
        """One that loses nothing."""
        return _Queue(maxsize, ctx=self.get_context())


def try_room() -> None:
    """Makes, and gives back, what torch's iterator begins with: it complains of itself where it finds no room.

    Raises:
        OSError: shared memory is full.
    """
    context = Context()
    _ = context.Queue(), context.Event()
