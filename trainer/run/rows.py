"""The .jsonl files of a run: a JSON object a line, appended whole, cut off only at the end. Standard library only."""

import errno
import json
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any


def json_line(row: Mapping[str, Any]) -> str:
    """A row as one line of a .jsonl file."""
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n"


def append_json_line(path: Path, row: Mapping[str, Any]) -> None:
    """Appends one JSON object as one line in a single write, so that lines of several processes do not mix.

    Raises:
        OSError: the disk is full, the directory is not writable, and so on; a part of the line may be there.
    """
    # As in whole files: names that are no UTF-8 are escaped.
    line = json_line(row).encode(errors="backslashreplace")
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        # A line that a crash or a full disk cut short must not swallow this one.
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line
        # A row that lacks nothing but its end of line is there: it must not come a second time.
        if os.write(descriptor, line) < len(line) - 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(descriptor)


def is_superseded(row: Mapping[str, Any], step: int, *, evaluates_again: bool) -> bool:
    """Whether a row of metrics or steps will be written again by a run that goes on, or back, to after `step`.

    One whose step is no number is damaged, and goes with those beside it.
    """
    of = row.get("step", 0)
    if evaluates_again and of == step and any(name.startswith("val/") for name in row):
        return True
    return not (isinstance(of, (int, float)) and of <= step)


def supersede_rows(path: Path, step: int, *, evaluates_again: bool) -> int:
    """Drops the last rows of metrics.jsonl or steps.jsonl that `is_superseded` names; returns how many.

    Raises:
        OSError: the file cannot be changed.
    """
    return _cut_rows(path, lambda row: is_superseded(row, step, evaluates_again=evaluates_again))


def _cut_rows(path: Path, is_over: Callable[[dict[str, Any]], bool]) -> int:
    """Cuts off the last rows of a .jsonl file up to one that stays, whatever its length; returns how many.

    A damaged line among them, such as one that a crash has cut short, goes with them. The file's length changes at
    once: a crash leaves the old one or the new one.
    """
    try:
        stream = path.open("r+b")
    except FileNotFoundError:
        return 0
    with stream:
        if not (size := os.fstat(stream.fileno()).st_size):
            return 0
        cut, rows = size, 0
        with mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ) as content:
            while cut:
                start = content.rfind(b"\n", 0, cut - 1) + 1
                row = _parsed(content[start:cut])
                if row is not None and not is_over(row):
                    break
                cut, rows = start, rows + (row is not None)
        if cut < size:
            stream.truncate(cut)
            os.fsync(stream.fileno())
    return rows


def _parsed(line: str | bytes) -> dict[str, Any] | None:
    """The object in a line of a .jsonl file; None where it is damaged."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the objects of a .jsonl file; a truncated or damaged line is passed over."""
    try:
        stream = path.open(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    with stream:
        for line in stream:
            if (row := _parsed(line)) is not None:
                yield row
