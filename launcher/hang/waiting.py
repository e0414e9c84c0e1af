"""What a stack says: whether its process waits for others, and where in whose code it is. Pure."""

import itertools
import re
from collections.abc import Sequence

from launcher.hang.stacks import Frame
from trainer.trouble.frames import is_theirs

_COLLECTIVE = re.compile(r"\b(c10d|gloo)::|\bnccl[A-Z]")
# A copy to the host waits, too, and so does a launch when the queue of the device is full.
_DEVICE = re.compile(r"\b(cuda|cu|hip)(Stream|Event|Device|Ctx)Synchronize|\b(cuda|cu|hip)(Memcpy|LaunchKernel)")
_AUTOGRAD = "torch/autograd/graph.py"
_PLUMBING = (
    "torch/distributed/c10d_logger.py",
    _AUTOGRAD,
    "torch/autograd/__init__.py",
    "torch/_tensor.py",
    "torch/utils/_contextlib.py",
)
_QUEUES = ("/multiprocessing/", "/selectors.py", "/threading.py", "/torch/utils/data/_utils/worker.py")
_DEBUGGERS = ("/pdb.py", "/bdb.py", "/debugpy/", "/pydevd", "/IPython/", "/ipdb/", "/pudb/")
_COMPILE_LIMIT_S = 1800.0
_DATA_GRACE_S = 15.0
_COMPILERS = (
    "/torch/_dynamo/",
    "/torch/_inductor/",
    "/torch/utils/cpp_extension.py",
    "/triton/compiler/",
    "/triton/runtime/",
)


def waits_for_others(frames: Sequence[Frame]) -> bool:
    """Whether a stack ends in a wait for other ranks, or for the device, which waits for them.

    Args:
        frames: innermost first; with native ones more is known.
    """
    for frame in frames:
        if frame.is_native:
            if _COLLECTIVE.search(frame.function) or _DEVICE.search(frame.function):
                return True
        elif "/torch/distributed/" in frame.file or frame.file.endswith("trainer/exchange.py"):
            return True
        elif not frame.file.endswith(_PLUMBING):
            return False
    return False


def waits_for_device(frames: Sequence[Frame]) -> bool:
    """Whether a stack, seen with native calls, ends in a wait for the device."""
    native = itertools.takewhile(lambda frame: frame.is_native, frames)
    return any(_DEVICE.search(frame.function) for frame in native)


def is_in_backward(frames: Sequence[Frame]) -> bool:
    """Whether a stack, seen without native calls, ends in autograd's: DDP waits there, and Python does not show it."""
    return bool(frames) and frames[0].file.endswith(_AUTOGRAD)


def rests(frames: Sequence[Frame]) -> bool:
    """Whether a stack of a process that works for another one ends in its wait for work.

    Args:
        frames: innermost first, from where its own program begins.
    """
    python = [frame.file for frame in frames if not frame.is_native]
    return bool(python) and all(any(word in file for word in _QUEUES) for file in python)


def excuse(frames: Sequence[Frame], silent_s: float, data_timeout_s: float | None) -> str:
    """Why a process that gives no sign of life may be silent for longer, in words; empty: there is no reason.

    Args:
        frames: innermost first.
        silent_s: how long it has been silent.
        data_timeout_s: how long it may wait for its loading processes, over which it watches itself; None: unknown.
    """
    files = [frame.file for frame in frames if not frame.is_native]
    if any(word in file for file in files for word in _DEBUGGERS):
        return "it is in a debugger"
    if silent_s < _COMPILE_LIMIT_S and any(word in file for file in files for word in _COMPILERS):
        return "it compiles"
    watched = any(file.endswith("trainer/data/watch.py") for file in files)
    if watched and data_timeout_s is not None and silent_s < data_timeout_s + _DATA_GRACE_S:
        return "it waits for its loading processes"
    return ""


def place(frames: Sequence[Frame]) -> str:
    """Where a stack ends, `function (file:line)`, and what called that in the user's own code."""
    python = [frame for frame in frames if not frame.is_native]
    inner = next((frame for frame in python if not frame.file.endswith(_PLUMBING)), None)
    if inner is None:
        return frames[0].function if frames else "an unknown place"
    own = next((frame for frame in python if is_theirs(frame.file)), None)
    # Not in which of its queues.
    inner = next((frame for frame in python[: python.index(own) if own else None] if _is_next(frame)), inner)
    through = python[: python.index(inner)]
    backward = any(frame.file.endswith(_AUTOGRAD) for frame in through)
    what = f"backward, called in {inner.function}" if backward else inner.function
    text = f"{what} ({short(inner)})"
    return text if own is None or own is inner else f"{text}, from {own.function} ({short(own)})"


def _is_next(frame: Frame) -> bool:
    return frame.file.endswith("torch/utils/data/dataloader.py") and frame.function.endswith("__next__")


def key(frames: Sequence[Frame]) -> tuple[str, ...]:
    """What stacks at the same place have in common: Python's calls, without lines inside of libraries."""
    return tuple(f"{frame.file}:{frame.line}:{frame.function}" for frame in frames if not frame.is_native)


def short(frame: Frame) -> str:
    """A frame's file and line, with the file's folder."""
    return "/".join(frame.file.split("/")[-2:]) + f":{frame.line}"
