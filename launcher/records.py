"""What a run's files say, whatever their state: half written, damaged, or another program's.

What is no number where one is to be, or no list of words, is as if it were not there.
"""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.rundir import RunDir, is_number, read_json

FIGURES = ("step", "total_steps", "images_per_second", "gpu_percent", "eta_s")
"""The figures of status.json that change while a run lives."""

_NUMBERS = (*FIGURES, "time", "attempt", "best_accuracy", "exit_code", "rank")
_TAIL = 1 << 18


def status(run: RunDir) -> dict[str, Any]:
    """The content of status.json."""
    return _numeric(run.read_status())


def failure(run: RunDir, attempt: int) -> dict[str, Any]:
    """The first error of an attempt; empty when none was told."""
    return _numeric(run.read_failure(attempt))


def launches(run: RunDir) -> list[dict[str, Any]]:
    """The launches of job.json, at least one."""
    return [_numeric(row) for row in run.launches()]


def argv(row: dict[str, Any]) -> list[str]:
    """The command line of a launch; empty where it is not known."""
    words = row.get("argv")
    return [str(word) for word in words] if isinstance(words, list) else []


def first_argv(run: RunDir) -> list[str]:
    """The command line that a run was begun with."""
    return argv(read_json(run.job))


def newest_checkpoint(run: RunDir) -> int | None:
    """The step of the newest checkpoint; None without one."""
    numbers = (path.name.removeprefix("step-") for path in run.checkpoints.glob("step-????????"))
    return max((int(number) for number in numbers if is_number(number)), default=None)


def latest(path: Path, key: str) -> float | None:
    """The last number under a key in a .jsonl file, looked for in its last rows only."""
    return next((float(row[key]) for row in _last_rows(path, key) if _is_figure(row.get(key))), None)


def last_event(run: RunDir) -> dict[str, Any]:
    """The last row of events.jsonl; empty without one."""
    return next((_numeric(row) for row in _last_rows(run.events, "event") if isinstance(row.get("event"), str)), {})


def modified(path: Path) -> float:
    """UNIX seconds; 0 where there is no such file."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _last_rows(path: Path, key: str) -> Iterator[dict[str, Any]]:
    """The rows at the end of a .jsonl file that name a key, the last first."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - _TAIL))
            lines = stream.read().splitlines()
    except OSError:
        return
    for line in reversed(lines):
        if key.encode() in line:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row


def _numeric(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in _NUMBERS or _is_figure(value)}


def _is_figure(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
