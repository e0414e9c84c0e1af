"""Standard streams that outlive whoever reads them: a closed terminal is no error of the job that talks to it."""

import codecs
import io
import os
import select
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from typing_extensions import Buffer


class _Lasting(io.FileIO):
    """A descriptor whose loss is nobody's: what it does not take any more is dropped."""

    def write(self, data: "Buffer") -> int:
        """Writes; to a terminal that is gone or a full disk as if it had."""
        try:
            while (written := super().write(data)) is None:
                # Somebody who shares the terminal has made it non-blocking.
                select.select([], [self], [])
        except OSError:
            return memoryview(data).nbytes
        return written


def outlive_readers(*, stdout: bool = False) -> None:
    """Makes stderr, on request stdout too, take everything and raise nothing from here on.

    A stream that was replaced or closed before is left alone.
    """
    sys.stderr = _lasting(sys.stderr, sys.__stderr__)
    if stdout:
        sys.stdout = _lasting(sys.stdout, sys.__stdout__)


def complete() -> None:
    """Gives a process that was started with closed standard streams ones that lead nowhere.

    The next file that it opens would be one of them, and what is then said would go there.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest number that is free.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            stream = open(descriptor, "w" if descriptor else "r", closefd=False)  # noqa: SIM115  # for good
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def take_any_name() -> None:
    """Makes stdout take file names that are no text: they come out as they are, for programs that read them."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        is_utf8 = codecs.lookup(sys.stdout.encoding).name == "utf-8"
        sys.stdout.reconfigure(errors="surrogateescape" if is_utf8 else "backslashreplace")


def give_back() -> None:
    """Gives this process the streams that it was started with: a user's program finds Python's own."""
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__


def _lasting(stream: TextIO, own: TextIO | None) -> TextIO:
    if own is None or stream is not own:
        return stream
    raw = _Lasting(own.fileno(), "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=own.encoding, errors=own.errors, line_buffering=True)
