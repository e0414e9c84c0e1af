"""A job that lives on in a session of its own, whatever becomes of the terminal that started it."""

import os
import sys
from pathlib import Path

_STANDARD = (0, 1, 2)


def part(output: Path) -> bool:
    """Makes two processes of this one: the one that is to run the job is detached, the other is free to end.

    The detached one has no terminal and no stdin, and says what it has to say in a file. To be called
    in a process of one thread, with requests to stop held back.

    Args:
        output: that file; what it has stays.

    Returns:
        Whether this is the detached process.

    Raises:
        OSError: the file cannot be made, or there is no room for another process.
    """
    target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        # What waits in a buffer would be written by both.
        stream.flush()
    heard, ready = os.pipe()
    if os.fork():
        os.close(ready)
        os.close(target)
        # Returns when the other has left this session, or has died: what the terminal sends now is for us alone.
        os.read(heard, 1)
        os.close(heard)
        return False
    os.setsid()
    _let_go()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, source in zip(_STANDARD, (nothing, target, target), strict=True):
        os.dup2(source, descriptor)
    for descriptor in (nothing, target, heard, ready):
        os.close(descriptor)
    return True


def _let_go() -> None:
    """Closes what a shell has handed down: a lock or a pipe that somebody waits for must not last as long as a job."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  # descriptors, of which one is this very listing's
        descriptor = int(name)
        try:
            if descriptor not in _STANDARD and os.get_inheritable(descriptor):
                os.close(descriptor)
        except OSError:
            continue
