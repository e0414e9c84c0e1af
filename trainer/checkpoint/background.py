"""Writes an image of tensors in a thread of its own, one at a time; nothing it does can delay or fail a step."""

import threading
import time
from collections.abc import Callable, Mapping

import torch

from trainer.checkpoint.image import Image

_FIRST_RETRY_S, _LAST_RETRY_S = 30.0, 1800.0
_PATIENCE_S = 60.0
_SLOWEST_BYTES_PER_S = 10e6


class BackgroundWriter:
    """Holds one image, and one thread at a time that writes it.

    A write that takes longer than a minute and its size at 10 MB/s is overdue: that is told, and it may go on; until
    it ends, nothing else is written here.

    Args:
        on_failure: told what went wrong with a write and when it is tried again, seconds from then; from any thread.
        on_overdue: told how long a write has been under way, seconds; from any thread.
        patience_s: seconds that a write of no bytes may take.

    Attributes:
        error: what went wrong with the last write; None when it went well or is under way.
        seconds: how long the last write that went well took.
    """

    def __init__(
        self,
        *,
        on_failure: Callable[[str, float], None],
        on_overdue: Callable[[float], None],
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self._on_failure, self._on_overdue, self._patience_s = on_failure, on_overdue, patience_s
        self._image: Image | None = None
        self._write: Callable[[Image], None] = lambda image: None
        self._thread: threading.Thread | None = None
        self._overdue = threading.Event()
        self._retry_s = _FIRST_RETRY_S
        self._retry_at = self._due_at = 0.0
        self.error: str | None = None
        self.seconds = 0.0

    @property
    def is_busy(self) -> bool:
        """Whether a write is under way."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def is_overdue(self) -> bool:
        """Whether a write is under way that takes too long."""
        return self.is_busy and self._overdue.is_set()

    @property
    def overdue_in_s(self) -> float:
        """Seconds until what is under way is overdue; 0 where nothing is, or it is so already."""
        return max(0.0, self._due_at - time.monotonic()) if self.is_busy and not self.is_overdue else 0.0

    @property
    def is_ready(self) -> bool:
        """Whether nothing is under way, and no failure is so recent that another try would be of no use."""
        return not self.is_busy and (self.error is None or time.monotonic() >= self._retry_at)

    @property
    def wants_retry(self) -> bool:
        """Whether the last write failed, and long enough ago to try another."""
        return self.error is not None and self.is_ready

    def start(self, tensors: Mapping[str, torch.Tensor], write: Callable[[Image], None]) -> None:
        """Takes the tensors' values now and writes them in the background; not while it is busy.

        Args:
            tensors: their names, shapes and dtypes are usually those of the last time.
            write: writes the image; an OSError means that it could not.
        """
        assert not self.is_busy
        if self._image is None or not self._image.fits(tensors):
            self._image = None  # the old one's memory first
            self._image = Image(tensors)
        self._image.fill(tensors)
        self._write = write
        self.again()

    def again(self) -> None:
        """Writes in the background what was taken the last time; not while it is busy."""
        assert not self.is_busy
        assert self._image is not None
        self._begin(self._image, self._write)

    def wait(self, seconds: float | None = None) -> None:
        """Waits until nothing is under way, but not longer than `seconds`, if given."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _begin(self, image: Image, write: Callable[[Image], None]) -> None:
        self.error = None
        self._overdue = overdue = threading.Event()
        limit = self._patience_s + image.nbytes / _SLOWEST_BYTES_PER_S
        self._due_at = time.monotonic() + limit

        def late() -> None:
            overdue.set()
            self._on_overdue(limit)

        # The watch is a thread, too: on the storage that hangs, even saying so might.
        watch = threading.Timer(limit, late)
        watch.daemon = True

        def run() -> None:
            started = time.monotonic()
            # Off the interpreter's lock, for which the training would else wait some milliseconds.
            time.sleep(0.001)
            try:
                write(image)
            except Exception as error:
                self._fail((isinstance(error, OSError) and error.strerror) or f"{type(error).__name__}: {error}")
            else:
                self._retry_s = _FIRST_RETRY_S
                self.seconds = time.monotonic() - started
            finally:
                watch.cancel()

        self._thread = threading.Thread(target=run, name="writer", daemon=True)
        watch.start()
        self._thread.start()

    def _fail(self, reason: str) -> None:
        self._retry_at = time.monotonic() + self._retry_s
        again, self._retry_s = self._retry_s, min(2 * self._retry_s, _LAST_RETRY_S)
        self.error = reason
        self._on_failure(reason, again)
