"""A worker's last word: its error in a file beside its log, for the verdict."""

import os
import socket
import sys
import time
import traceback
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any

from launcher.verdict import Exit, ended_with
from trainer.errors import PacelineError
from trainer.rundir import error_beside, read_json, write_json
from trainer.trouble import frames, words

_WORKER = str(Path(__file__).with_name("worker.py"))
_TOLD = [field.name for field in fields(Exit) if field.name not in ("rank", "code")]


def record(error: BaseException | None, log: Path, *, show: bool) -> None:
    """Leaves word of a failure for the agent's verdict, and its traceback in the rank's log."""
    if error is None and error_beside(log).exists():
        # Our trainer has told its error itself.
        return
    row: dict[str, Any] = {"host": socket.gethostname(), "time": time.time()}
    text = ""
    if error is not None:
        trace = _own_part(error.__traceback__)
        text = words.traceback_of(error, trace)
        ours = error if isinstance(error, PacelineError) else None
        place = frames.innermost(traceback.extract_tb(trace))
        row |= {
            "type": type(error).__name__,
            "message": ours.problem if ours else _message(error),
            "advice": ours.fix if ours else "",
            "override": ours.added if ours else "",
            "place": f"{place.filename}:{place.lineno} in {place.name}" if place else "",
            "traceback": text,
        }
        if show and int(os.environ["RANK"]) == 0:
            sys.stderr.write(text)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        if int(os.environ["RANK"]) != 0:
            append_traceback(log, row)
        write_json(error_beside(log), row)
    except OSError as problem:
        # The terminal, or what is left of the log, is the only place where it can still be seen.
        sys.stderr.write(f"{text}warning: cannot write {log}: {problem.strerror or problem}\n")


def _message(error: BaseException) -> str:
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return ended_with(error.code)
    return words.message_of(error)


def _own_part(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the user's program on: without our frames and runpy's."""
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name != _WORKER and "runpy" not in name:
            break
        trace = trace.tb_next
    return trace


def exit_of(log: Path, rank: int, code: int) -> Exit:
    """How a worker of this machine ended, with its own word of that."""
    record: dict[str, Any] = {"host": socket.gethostname(), **read_json(error_beside(log))}
    told: dict[str, Any] = {name: record[name] for name in _TOLD if name in record}
    return Exit(rank, code, **told)


def append_traceback(log: Path, record: dict[str, Any]) -> None:
    """Adds a worker's traceback to its log; the first worker's is added when the rest has been copied there."""
    if record.get("traceback") and not record.get("is_in_log"):
        # Names of files may be no UTF-8.
        with log.open("a", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(record["traceback"])
