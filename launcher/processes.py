"""Processes below this one: tied to their parent's life, found through /proc, and ended without exception."""

import ctypes
import os
import platform
import signal
import time
from collections.abc import Collection
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_KILL_PATIENCE_S = 3.0
_PARENT_DIED = signal.SIGCONT
"""No other signal with a handler is taken by a process that somebody has stopped."""
_WAITID = {"x86_64": 247, "aarch64": 95}
"""The system call's number; glibc's function of that name leaves out what it knows of resources."""


class _Usage(ctypes.Structure):
    """The beginning of `struct rusage`, with room for the rest."""

    _fields_ = (("times", ctypes.c_long * 4), ("maxrss_kib", ctypes.c_long), ("rest", ctypes.c_long * 16))


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Makes the kernel send this process a signal when its parent dies, whatever way.

    Args:
        parent: the parent's pid; if it has died already, this process ends here and now.
        number: the signal.

    Raises:
        OSError: the kernel refused.
    """
    _prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def end_with_parent() -> None:
    """Ends this process, with all that is below it, when its parent dies, whatever way; also while it is stopped.

    Raises:
        OSError: the kernel refused.
    """
    parent = os.getppid()
    signal.signal(_PARENT_DIED, partial(_end_if_orphaned, os.getpid(), parent))
    die_with_parent(parent, _PARENT_DIED)


def _end_if_orphaned(own: int, parent: int, number: int, frame: FrameType | None) -> None:
    # Also called where somebody lets a stopped process go on, and in what was just forked from this one.
    if os.getpid() == own and os.getppid() != parent:
        end_descendants(grace_s=0)
        os._exit(128 + signal.SIGKILL)


def peak_memory(pid: int) -> int | None:
    """The most bytes that a child of this process had resident, if it has ended and was not yet waited for.

    Its entry in /proc says nothing any more, and what waits for children here does not ask: the system call does.
    """
    number = _WAITID.get(platform.machine())
    usage = _Usage()
    if number is not None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.syscall(number, os.P_PID, pid, None, os.WEXITED | os.WNOHANG | os.WNOWAIT, ctypes.byref(usage))
    return int(usage.maxrss_kib) * 1024 or None


def adopt_orphans() -> None:
    """Makes this process the parent of whatever below it loses its own, so that nothing gets out of sight.

    Raises:
        OSError: the kernel refused.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def bury_adopted(own: Collection[int]) -> None:
    """Takes adopted processes that have ended out of the process table, which they would fill in days.

    Args:
        own: children for whose ends this process asks elsewhere.
    """
    with suppress(ChildProcessError):
        while (end := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and end.si_pid not in own:
            os.waitpid(end.si_pid, os.WNOHANG)


def descendants(spare: Collection[int] = (), *, root: int | None = None) -> list[int]:
    """Processes below this one, or below `root`, that are alive, but not those to be spared nor what is below them."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The name in parentheses may hold anything, parentheses too.
            state, parent = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state not in "ZX":
            children.setdefault(int(parent), []).append(int(folder.name))
    found: list[int] = []
    level = [os.getpid() if root is None else root]
    while level:
        level = [child for parent in level for child in children.get(parent, []) if child not in spare]
        found += level
    return found


def end_descendants(spare: Collection[int] = (), *, grace_s: float) -> list[int]:
    """Ends every process below this one: SIGTERM, and SIGKILL after `grace_s` seconds.

    Returns:
        Those that are still there, in the kernel's hands or another user's; usually none.
    """
    deadline = time.monotonic() + grace_s
    sent: set[tuple[int, int]] = set()
    while left := descendants(spare):
        number = signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL
        for pid in left:
            if (pid, number) not in sent:
                sent.add((pid, number))
                _send(pid, number)
        if time.monotonic() > deadline + _KILL_PATIENCE_S:
            break
        time.sleep(0.01)
    for pid, _ in sent:
        # Adopted ones stay in the process table until this process has asked for their ends.
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return left


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        return False
    mask = next((line.split()[1] for line in lines if line.startswith("SigCgt:")), "0")
    return bool(int(mask, 16) >> (number - 1) & 1)


def _send(pid: int, number: signal.Signals) -> None:
    # Gone by itself, or another user's: the caller learns of what remains.
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")
