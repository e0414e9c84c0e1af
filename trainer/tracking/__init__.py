"""Trackers: who is told what happens. A new one is one file here and one field of `TrackingConfig`.

The file `trainer/tracking/<field>.py` has `open(options, run, *, config, attempt, warn) -> Tracker`, where
`options` is the field's value. It is imported only where the field is set.
"""

import dataclasses
import importlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from trainer.config import Config
from trainer.rundir import RunDir

Warn = Callable[[str], None]
Row = Mapping[str, Any]


class Tracker(Protocol):
    """Receives rows of plain values; called from background threads, must not wait for a network."""

    name: str

    def metrics(self, row: Row) -> None:
        """Takes a row of metrics: `step`, `epoch`, `samples`, `time` and metrics by name."""

    def monitor(self, row: Row) -> None:
        """Takes a sample of a node: `time`, `node`, `host` and figures by name."""

    def event(self, row: Row) -> None:
        """Takes something that happened: `time`, `event` and whatever belongs to it."""

    def supersede(self, step: int, *, evaluates_again: bool) -> None:
        """Hears that the run goes back to after `step`: rows of metrics beyond it will come again."""

    def flush(self) -> None:
        """Writes what it has to write to the run directory; raises OSError where that cannot be done just now."""

    def finish(self, summary: Row) -> None:
        """Takes the results (empty when the run failed) and hands over all that waits, in bounded time."""

    def hint(self) -> str | None:
        """Where to look at what was tracked, in one line; None when there is nothing to say."""


class Trackers:
    """Tells every tracker; none of them can make the training fail.

    Args:
        trackers: one that raises is dropped, and `warn` told.
        warn: told once for every tracker that is dropped.
    """

    def __init__(self, trackers: Sequence[Tracker], warn: Warn) -> None:
        self._trackers = list(trackers)
        self._warn = warn
        self._lock = threading.Lock()

    def metrics(self, row: Row) -> None:
        """Passes a row of metrics on: `step`, `epoch`, `samples`, `time` and metrics by name."""
        self._each(lambda tracker: tracker.metrics(row))

    def monitor(self, row: Row) -> None:
        """Passes a node's sample on."""
        self._each(lambda tracker: tracker.monitor(row))

    def event(self, row: Row) -> None:
        """Passes something that happened on: `time`, `event` and whatever belongs to it."""
        self._each(lambda tracker: tracker.event(row))

    def supersede(self, step: int, *, evaluates_again: bool) -> None:
        """Passes on that rows of metrics beyond `step` will come again, and with it perhaps its evaluation."""
        self._each(lambda tracker: tracker.supersede(step, evaluates_again=evaluates_again))

    def flush(self) -> None:
        """Returns when all that was told is in the run directory.

        Raises:
            OSError: it cannot be written just now; it is kept.
        """
        with self._lock:
            trackers = list(self._trackers)
        for tracker in trackers:
            try:
                tracker.flush()
            except OSError:
                raise
            except Exception as error:
                self._drop(tracker, error)

    def finish(self, summary: Row) -> None:
        """Passes the results on, none when the run failed, and lets every tracker end in bounded time."""
        self._each(lambda tracker: tracker.finish(summary))

    def hints(self) -> list[str]:
        """Where to look at what was tracked, a line for each tracker that has something to say."""
        lines: list[str] = []
        self._each(lambda tracker: lines.append(tracker.hint() or ""))
        return [line for line in lines if line]

    def _each(self, tell: Callable[[Tracker], None]) -> None:
        with self._lock:
            trackers = list(self._trackers)
        for tracker in trackers:
            self._guarded(tracker, tell)

    def _guarded(self, tracker: Tracker, tell: Callable[[Tracker], None]) -> None:
        try:
            tell(tracker)
        except Exception as error:
            self._drop(tracker, error)

    def _drop(self, tracker: Tracker, error: Exception) -> None:
        with self._lock:
            known = tracker in self._trackers
            if known:
                self._trackers.remove(tracker)
        if known:
            self._warn(f"tracking with {tracker.name} has ended: {type(error).__name__}: {error}")


class NullTrackers(Trackers):
    """The trackers of every rank but 0: there are none."""

    def __init__(self) -> None:
        super().__init__([], lambda text: None)


def open_trackers(config: Config, run: RunDir, *, attempt: int, warn: Warn) -> Trackers:
    """Opens the .jsonl files and the trackers whose field of `config.tracking` is set; for rank 0.

    Args:
        config: the whole configuration; trackers may store it.
        run: the run directory, which exists.
        attempt: how often the run was started before.
        warn: told what is lost or not honoured; may be called from any thread.
    """
    from trainer.tracking.jsonl import JsonlTracker

    trackers: list[Tracker] = [JsonlTracker(run, warn)]
    for field in dataclasses.fields(config.tracking):
        options = getattr(config.tracking, field.name)
        if options is not None:
            _open_into(trackers, field.name, options, config, run, attempt, warn)
    return Trackers(trackers, warn)


def _open_into(
    trackers: list[Tracker], name: str, options: Any, config: Config, run: RunDir, attempt: int, warn: Warn
) -> None:
    try:
        module = importlib.import_module(f"trainer.tracking.{name}")
        trackers.append(module.open(options, run, config=config, attempt=attempt, warn=warn))
    except Exception as error:
        warn(f"tracking with {name} could not start: {type(error).__name__}: {error}")
