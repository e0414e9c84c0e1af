"""The tracker that is always there: metrics.jsonl, monitor.jsonl, events.jsonl (and the recorder's steps.jsonl)."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trainer.run.lease import LeaseLost
from trainer.run.rows import append_json_line, is_superseded, supersede_rows
from trainer.rundir import RunDir

# Rows that are kept while the disk is full: an hour of samples of one node, about 5 MB.
_WAITING_ROWS = 4096
_RETRY_S = 5.0


class JsonlTracker:
    """Appends a line for each row, at once, so that a crash of any kind loses nothing.

    While the disk is full, or away, rows wait in bounded memory and are tried again every few seconds; the
    oldest are lost first, and counted. Numbers that are not finite become null, since JSON has no others.

    In a job that has lost the run to another one every call raises LeaseLost: the files are that job's.

    Args:
        run: the run directory, which exists.
        warn: told when writing fails, and how many lines were lost when it works again or the run ends.
        clock: seconds, steadily rising.
    """

    name = "jsonl"

    def __init__(
        self, run: RunDir, warn: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._run = run
        self._warn = warn
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Path, dict[str, Any]]] = deque()
        self._superseded: list[tuple[Path, int, bool]] = []
        self._lost = 0
        self._failed: OSError | None = None
        self._retry_at = 0.0

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Appends to metrics.jsonl."""
        self._append(self._run.metrics, row)

    def monitor(self, row: Mapping[str, Any]) -> None:
        """Appends to monitor.jsonl."""
        self._append(self._run.monitor, row)

    def event(self, row: Mapping[str, Any]) -> None:
        """Appends to events.jsonl."""
        self._append(self._run.events, row)

    def steps(self, row: Mapping[str, Any]) -> None:
        """Appends to steps.jsonl; the recorder's, since no other tracker takes single steps."""
        self._append(self._run.steps, row)

    def supersede(self, step: int, *, evaluates_again: bool) -> None:
        """Drops rows of metrics beyond a step, those that wait as well; nothing more is written before that is done."""
        self._supersede(self._run.metrics, step, evaluates_again=evaluates_again)

    def supersede_steps(self, step: int) -> None:
        """The same for steps.jsonl."""
        self._supersede(self._run.steps, step, evaluates_again=False)

    def flush(self) -> None:
        """Writes what waits, however recent a failure is.

        Raises:
            OSError: the disk refuses still; the rows go on waiting.
        """
        if failed := self._try_to_write(now=True):
            raise failed

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Tries once more to write what waits; the summary has a file of its own, which is not ours."""
        with self._lock:
            message = self._write_waiting()
            unwritten = self._lost + len(self._waiting)
        if message is not None:
            self._warn(message)
        elif unwritten:
            self._warn(f"{unwritten:,} lines could not be written to {self._run.path}")

    def hint(self) -> str | None:
        """Nothing: the summary names the run directory anyway."""
        return None

    def _append(self, path: Path, row: Mapping[str, Any]) -> None:
        with self._lock:
            self._waiting.append((path, {key: _plain(value) for key, value in row.items()}))
            if len(self._waiting) > _WAITING_ROWS:
                self._waiting.popleft()
                self._lost += 1
        self._try_to_write()

    def _supersede(self, path: Path, step: int, *, evaluates_again: bool) -> None:
        with self._lock:
            self._waiting = deque(
                (of, row)
                for of, row in self._waiting
                if of != path or not is_superseded(row, step, evaluates_again=evaluates_again)
            )
            self._superseded.append((path, step, evaluates_again))
        self._try_to_write()

    def _try_to_write(self, *, now: bool = False) -> OSError | None:
        """Writes what waits, unless that has failed just before; returns why it waits on."""
        message: str | None = None
        with self._lock:
            if now or self._failed is None or self._clock() >= self._retry_at:
                message = self._write_waiting()
            failed = self._failed
        # Outside the lock: a console that hangs must not hold up the monitor's thread.
        if message is not None:
            self._warn(message)
        return failed

    def _write_waiting(self) -> str | None:
        """Writes until the disk refuses; returns what is to be said about it, on a change only."""
        failed_before = self._failed is not None
        path = self._run.path
        try:
            if self._superseded or self._waiting:
                self._run.guard()
            while self._superseded:
                path, step, evaluates_again = self._superseded[0]
                supersede_rows(path, step, evaluates_again=evaluates_again)
                self._superseded.pop(0)
            while self._waiting:
                path, row = self._waiting[0]
                append_json_line(path, row)
                self._waiting.popleft()
        except LeaseLost:
            self._waiting.clear()
            raise
        except OSError as error:
            self._failed, self._retry_at = error, self._clock() + _RETRY_S
            if failed_before:
                return None
            return f"{path} cannot be written ({error.strerror}); training goes on, and writing is tried again"
        self._failed = None
        if not failed_before:
            return None
        lost, self._lost = self._lost, 0
        return f"{self._run.path} can be written again; {lost:,} lines were lost"


def _plain(value: Any) -> Any:
    """A value that JSON can say: tensors and arrays become numbers or lists, the unknown becomes text."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return str(value)
