"""The shared memory in which loading processes hand their batches over, and what is said where it is too small."""

import errno
import shutil
from collections.abc import Generator
from contextlib import contextmanager

from trainer import wording
from trainer.errors import UnfitError

PLACE = "/dev/shm"
WAYS_OUT = (
    "docker run --shm-size=8g (or --ipc=host), fewer data.workers, data.prefetch=1, or data.workers=0, which needs none"
)


def is_full(error: BaseException) -> bool:
    """Whether an error of torch says that it found no room there for a tensor."""
    return isinstance(error, RuntimeError) and "</torch_" in str(error) and "No space left on device" in str(error)


def full() -> UnfitError:
    """What such an error means."""
    return UnfitError(f"the shared memory of this machine or container is full ({PLACE}{_total()})", WAYS_OUT)


def unsent(error: Exception) -> UnfitError:
    """What it means that a loading process cannot hand a batch over."""
    if is_full(error):
        return full()
    if "Too many open files" in str(error):
        return UnfitError("too many open files to hand a batch over", "a higher `ulimit -n`, or data.workers=0")
    return UnfitError(f"a loading process cannot hand a batch over: {error}", "data.workers=0 loads without")


@contextmanager
def told_when_full() -> Generator[None]:
    """Around what sets up the traffic with loading processes: locks and tables lie in shared memory, too.

    Raises:
        UnfitError: there is no room for them.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if is_full(error) or (isinstance(error, OSError) and error.errno == errno.ENOSPC):
            raise full() from error
        raise


def shortage(needed: int) -> str | None:
    """A warning where evidently less is free than `needed` bytes; None: there is enough, or one cannot know."""
    try:
        free = shutil.disk_usage(PLACE).free
    except OSError:
        return None
    if free >= needed:
        return None
    return (
        f"{PLACE} has {wording.size(free)} free, and the batches that the loading processes keep ready take up to "
        f"{wording.size(needed)}: {WAYS_OUT}"
    )


def suspicion() -> str:
    """How full it is, for a process that touched a page which is not there."""
    try:
        free = shutil.disk_usage(PLACE).free
    except OSError:
        return f"is {PLACE} full? {WAYS_OUT}"
    return f"is {PLACE} full ({wording.size(free)} free now{_total(' of')})? {WAYS_OUT}"


def room() -> str:
    """How much room it has, in words."""
    try:
        return f"{PLACE} has {wording.size(shutil.disk_usage(PLACE).free)} free now{_total(' of')}"
    except OSError:
        return f"there is no {PLACE}"


def _total(before: str = ",") -> str:
    try:
        return f"{before} {wording.size(shutil.disk_usage(PLACE).total)}"
    except OSError:
        return ""
