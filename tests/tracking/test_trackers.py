import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from trainer.config import Config, TrackingConfig
from trainer.run.rows import read_json_lines
from trainer.rundir import RunDir
from trainer.tracking import NullTrackers, Trackers, open_trackers


class Memory:
    """A tracker that remembers, and fails from the n-th call on."""

    def __init__(self, name: str, fails_from: int | None = None) -> None:
        self.name = name
        self.calls: list[tuple[str, Mapping[str, Any]]] = []
        self._fails_from = fails_from

    def _take(self, kind: str, row: Mapping[str, Any]) -> None:
        self.calls.append((kind, row))
        if self._fails_from is not None and len(self.calls) >= self._fails_from:
            raise ConnectionResetError("gone")

    def metrics(self, row: Mapping[str, Any]) -> None:
        self._take("metrics", row)

    def monitor(self, row: Mapping[str, Any]) -> None:
        self._take("monitor", row)

    def event(self, row: Mapping[str, Any]) -> None:
        self._take("event", row)

    def supersede(self, step: int, *, evaluates_again: bool) -> None:
        self._take("supersede", {"step": step, "evaluates_again": evaluates_again})

    def flush(self) -> None:
        self._take("flush", {})

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._take("finish", summary)

    def hint(self) -> str | None:
        return f"look at {self.name}"


def test_every_tracker_is_told_everything_in_order() -> None:
    first, second = Memory("first"), Memory("second")
    trackers = Trackers([first, second], pytest.fail)
    trackers.metrics({"step": 1})
    trackers.monitor({"node": 0})
    trackers.event({"event": "resumed"})
    trackers.finish({"val/accuracy": 0.9})
    assert first.calls == second.calls
    assert [kind for kind, _ in first.calls] == ["metrics", "monitor", "event", "finish"]
    assert trackers.hints() == ["look at first", "look at second"]


def test_a_tracker_that_raises_is_dropped_and_said_once_and_the_others_go_on() -> None:
    broken, whole = Memory("broken", fails_from=2), Memory("whole")
    said: list[str] = []
    trackers = Trackers([broken, whole], said.append)
    for step in range(4):
        trackers.metrics({"step": step})
    trackers.finish({})
    assert len(broken.calls) == 2
    assert len(whole.calls) == 5
    assert said == ["tracking with broken has ended: ConnectionResetError: gone"]
    assert trackers.hints() == ["look at whole"]


def test_other_ranks_track_nothing() -> None:
    trackers = NullTrackers()
    trackers.metrics({"step": 1})
    trackers.finish({})
    assert trackers.hints() == []


def test_without_a_tracker_the_jsonl_files_are_still_written(tmp_path: Path) -> None:
    config = Config(tracking=TrackingConfig(wandb=None))
    trackers = open_trackers(config, RunDir(tmp_path), attempt=0, warn=pytest.fail)
    trackers.metrics({"step": 1, "train/loss": 0.5})
    trackers.monitor({"node": 0, "gpu/0/power_watts": 300.0})
    trackers.event({"event": "resumed"})
    trackers.finish({})
    assert list(read_json_lines(tmp_path / "metrics.jsonl")) == [{"step": 1, "train/loss": 0.5}]
    assert list(read_json_lines(tmp_path / "monitor.jsonl")) == [{"node": 0, "gpu/0/power_watts": 300.0}]
    assert list(read_json_lines(tmp_path / "events.jsonl")) == [{"event": "resumed"}]
    assert "wandb" not in sys.modules or not (tmp_path / "wandb").exists()


def _config_with(name: str, options: object) -> Config:
    """A configuration with one more tracker, as a new field of the schema would give it."""
    from dataclasses import make_dataclass

    config = Config()
    config.tracking = make_dataclass("Tracking", [(name, Any)])(options)
    return config


def test_a_new_tracker_is_one_module_named_like_its_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[Any, ...]] = []
    module = types.ModuleType("trainer.tracking.shelf")

    def open_shelf(options: Any, run: RunDir, *, config: Config, attempt: int, warn: Any) -> Memory:
        opened.append((options, run.path, attempt))
        return Memory("shelf")

    vars(module)["open"] = open_shelf
    monkeypatch.setitem(sys.modules, "trainer.tracking.shelf", module)
    trackers = open_trackers(_config_with("shelf", "oak"), RunDir(tmp_path), attempt=2, warn=pytest.fail)
    assert opened == [("oak", tmp_path, 2)]
    assert trackers.hints() == ["look at shelf"]


def test_a_tracker_that_cannot_start_is_said_and_training_has_the_others(tmp_path: Path) -> None:
    said: list[str] = []
    trackers = open_trackers(_config_with("nowhere", "x"), RunDir(tmp_path), attempt=0, warn=said.append)
    trackers.metrics({"step": 1})
    assert len(list(read_json_lines(tmp_path / "metrics.jsonl"))) == 1
    assert len(said) == 1
    assert "tracking with nowhere could not start" in said[0]
