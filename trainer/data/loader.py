"""Batches on the device, without a stop: loading processes, pinned memory, copies beside the computation."""

import atexit
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler
from torch.utils.data._utils.pin_memory import pin_memory

from trainer.cores import MOST_LOADING
from trainer.data import failure, processes, shared_memory
from trainer.data.sampler import Indices
from trainer.data.samples import BadBatch, Batch, Samples
from trainer.data.watch import Watch
from trainer.errors import PacelineError

_END_S = 0.5


def choose_workers(requested: int | None, *, in_memory: bool, cores: int) -> int:
    """Data-loading processes of one worker: what was asked for, else its cores but one, up to 8."""
    if requested is not None:
        return requested
    if in_memory:
        return 0
    return max(0, min(MOST_LOADING, cores - 1))


def load_batches(
    samples: Samples,
    sampler: Iterable[Indices],
    *,
    workers: int,
    prefetch: int,
    device: torch.device,
    timeout_s: int,
    persistent: bool = False,
) -> "Loader":
    """A loader of whole batches of indices.

    Args:
        samples: the split.
        sampler: yields the indices of one batch after the other.
        workers: loading processes; 0 loads in this process.
        prefetch: batches that each of them keeps ready.
        device: decides whether memory is pinned.
        timeout_s: seconds without a batch after which the loading processes are taken for hanging.
        persistent: keep the processes for the next iteration.

    Raises:
        UnfitError: shared memory is full.
    """
    batches: DataLoader[Any] = DataLoader(
        samples,
        batch_sampler=_AsSampler(sampler),  # type: ignore[arg-type]  # Samples takes Indices for lists
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        collate_fn=_as_it_is,
        pin_memory=device.type == "cuda",
        timeout=timeout_s if workers else 0,
        persistent_workers=persistent and workers > 0,
        worker_init_fn=processes.begin,
        multiprocessing_context=processes.Context() if workers else None,
        # An own generator: making the iterator must not draw from the one that the model uses.
        generator=torch.Generator().manual_seed(0),
    )
    with shared_memory.told_when_full():
        samples.begin_work(workers)
    return Loader(batches, samples)


class Loader(Iterable[Any]):
    """Batches from a DataLoader whose processes are known by what they do.

    Args:
        batches: the DataLoader.
        samples: what it reads.

    Attributes:
        is_over: whether the training that it was for has failed.
    """

    def __init__(self, batches: "DataLoader[Any]", samples: Samples) -> None:
        self._batches, self._samples = batches, samples
        self._iterator: Any = None
        self._watch: Watch | None = None
        self.is_over = False
        _LOADERS.add(self)

    def __iter__(self) -> Iterator[Any]:
        """Begins anew; persistent processes go on.

        Raises:
            UnfitError: shared memory is full.
        """
        if not self._batches.num_workers:
            self._iterator = self._loaded_here()
            return self._iterator
        _hear_of_ends()
        if self._watch is None or not self._batches.persistent_workers:
            with processes.held_back(), shared_memory.told_when_full():
                processes.try_room()
                iterator: Any = iter(self._batches)
            self._iterator = iterator
            self._watch = Watch(iterator._workers, self._samples.bench, self._batches.timeout)
            self._watch.begin(self)
        else:
            # They are asked to begin anew, and one that hangs does not answer.
            self._watch.wait(partial(iter, self._batches))
        return self._watched(self._watch)

    def _watched(self, watch: Watch) -> Iterator[Any]:
        get = partial(next, self._iterator, _END)
        while (batch := watch.wait(get)) is not _END:
            yield batch

    def _loaded_here(self) -> Iterator[Any]:
        """What a DataLoader without processes does; its own ways would cost a fiftieth of a small step."""
        assert self._batches.batch_sampler is not None
        for indices in self._batches.batch_sampler:
            batch = self._samples.__getitems__(indices)  # type: ignore[arg-type]  # Indices for lists, as above
            yield pin_memory(batch) if self._batches.pin_memory else batch

    def explain(self, error: BaseException) -> PacelineError | None:
        """What an error says about this loader's processes."""
        # Those that were told to end have no part in it.
        has_ended = getattr(self._iterator, "_shutdown", True)
        if not has_ended and self._watch is not None and self._watch.hanging:
            # A thread that reads from one of them, to pin memory, would be waited for at the end.
            self._watch.end()
            return failure.hang(self._watch.hanging, self._samples.split, timeout_s=int(self._batches.timeout))
        workers = [] if has_ended else self._iterator._workers
        if isinstance(error, OSError | EOFError):
            _await_an_end(workers)
        exit_codes = [process.exitcode for process in workers]
        return failure.explain(error, self._samples.split, self._samples.bench.look(), exit_codes)

    def close(self) -> None:
        """Ends the processes of a training that is over."""
        if self.is_over and hasattr(self._iterator, "_shutdown_workers"):
            self._iterator._shutdown_workers()


_END = object()
_LOADERS: "weakref.WeakSet[Loader]" = weakref.WeakSet()


def explain(error: BaseException) -> PacelineError | None:
    """The loading process that an error is about, by its name; None: it is about something else.

    torch raises its own error wherever the training happens to be when it hears of a process's end; what is left to
    do after any error is not interrupted by that any more.
    """
    _let_them_end()
    for loader in list(_LOADERS):
        loader.is_over = True
    if isinstance(error, PacelineError) or not isinstance(error, Exception):
        return None
    return next((named for loader in list(_LOADERS) if (named := loader.explain(error)) is not None), None)


def _let_them_end() -> None:
    """The end of a loading process is no news any more."""
    global _torchs_handler
    if threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _torchs_handler = before if callable(before) else _torchs_handler


def _hear_of_ends() -> None:
    """It is again in the next job of a sweep: torch installs its handler once in a process."""
    if _torchs_handler is None or threading.current_thread() is not threading.main_thread():
        return
    for loader in list(_LOADERS):
        # The dead of the job before are not this one's news.
        loader.close()
    if signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL:
        signal.signal(signal.SIGCHLD, _torchs_handler)


_torchs_handler: Callable[[int, FrameType | None], Any] | None = None


# Where Python itself ends the process, multiprocessing kills the loading processes that are kept for the next epoch.
atexit.register(_let_them_end)


def _await_an_end(processes: Sequence[BaseProcess]) -> None:
    """A dying process closes its connections a moment before its end can be asked for."""
    deadline = time.monotonic() + _END_S
    while all(process.exitcode is None for process in processes) and time.monotonic() < deadline and processes:
        time.sleep(0.01)


def on_device(batches: Iterable[Any], device: torch.device) -> Iterator[Batch]:
    """Yields the batches on the device; copies to a GPU run one batch ahead, in a stream of their own.

    Raises:
        UnfitError: an image of the batch cannot be read.
    """
    return _good(batches) if device.type == "cpu" else _copied_ahead(batches, device)


def _good(batches: Iterable[Any]) -> Iterator[Batch]:
    for batch in batches:
        if isinstance(batch, BadBatch):
            raise batch.to_error()
        yield batch


def _copied_ahead(batches: Iterable[Any], device: torch.device) -> Iterator[Batch]:
    stream = torch.cuda.Stream(device)
    ahead: tuple[Batch, torch.Event] | None = None
    for batch in batches:
        if isinstance(batch, BadBatch):
            if ahead is not None:
                yield _arrived(*ahead, device)
            raise batch.to_error()
        with torch.cuda.stream(stream):
            copied = tuple(tensor.to(device, non_blocking=True) for tensor in batch), stream.record_event()
        if ahead is not None:
            yield _arrived(*ahead, device)
        ahead = copied
    if ahead is not None:
        yield _arrived(*ahead, device)


def _arrived(batch: Batch, copied: torch.Event, device: torch.device) -> Batch:
    """Makes the computation, not the host, wait for a copy, and for this one alone."""
    current = torch.cuda.current_stream(device)
    current.wait_event(copied)
    for tensor in batch:
        # The allocator must not hand this memory to the copy stream while the computation still reads it.
        tensor.record_stream(current)
    return batch


class _AsSampler(Sampler[Indices]):
    def __init__(self, batches: Iterable[Indices]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Indices]:
        return iter(self._batches)


def _as_it_is(batch: Any) -> Any:
    return batch
