import resource
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trainer.rundir import RunDir, append_json_line, read_json_lines
from trainer.tracking import jsonl
from trainer.tracking.jsonl import JsonlTracker


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def files_of_at_most(size: int) -> Generator[None, None, None]:
    """As if the disk were full: the kernel writes no file beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_row_is_a_line_and_is_in_the_file_at_once(tmp_path: Path) -> None:
    tracker = JsonlTracker(RunDir(tmp_path), pytest.fail)
    for step in range(3):
        tracker.metrics({"step": step, "train/loss": 0.5})
        assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == step + 1


def test_numbers_that_json_does_not_know_become_null(tmp_path: Path) -> None:
    tracker = JsonlTracker(RunDir(tmp_path), pytest.fail)
    tracker.metrics({"step": 1, "train/loss": float("nan"), "grad": [float("inf"), 1.0], "flag": True})
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert list(read_json_lines(tmp_path / "metrics.jsonl")) == [
        {"step": 1, "train/loss": None, "grad": [None, 1.0], "flag": True}
    ]


def test_values_of_other_libraries_are_written_as_plain_ones(tmp_path: Path) -> None:
    import numpy as np

    tracker = JsonlTracker(RunDir(tmp_path), pytest.fail)
    tracker.event({"a": np.float32(0.5), "b": np.arange(2), "c": Path("/x"), "d": {"e": (1, 2)}})
    assert list(read_json_lines(tmp_path / "events.jsonl")) == [{"a": 0.5, "b": [0, 1], "c": "/x", "d": {"e": [1, 2]}}]


def test_rows_of_several_threads_do_not_mix(tmp_path: Path) -> None:
    tracker = JsonlTracker(RunDir(tmp_path), pytest.fail)
    threads = [
        threading.Thread(target=lambda n=n: [tracker.monitor({"node": n, "i": i}) for i in range(200)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = list(read_json_lines(tmp_path / "monitor.jsonl"))
    assert len(rows) == 800
    assert [row["i"] for row in rows if row["node"] == 2] == list(range(200))


def test_a_full_disk_is_said_once_and_nothing_is_lost_when_there_is_space_again(tmp_path: Path) -> None:
    said: list[str] = []
    clock = Clock()
    tracker = JsonlTracker(RunDir(tmp_path), said.append, clock=clock)
    with files_of_at_most(100):
        for step in range(20):
            tracker.metrics({"step": step, "train/loss": 0.25})
            clock.now += 1
    assert len(said) == 1
    assert "metrics.jsonl cannot be written" in said[0]
    clock.now += 10
    tracker.metrics({"step": 20, "train/loss": 0.25})
    assert [row["step"] for row in read_json_lines(tmp_path / "metrics.jsonl")] == list(range(21))
    assert said[1:] == [f"{tmp_path} can be written again; 0 lines were lost"]


def test_a_disk_that_stays_full_costs_bounded_memory_and_the_lost_lines_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "_WAITING_ROWS", 8)
    said: list[str] = []
    tracker = JsonlTracker(RunDir(tmp_path), said.append, clock=Clock())
    with files_of_at_most(0):
        for step in range(20):
            tracker.metrics({"step": step})
    tracker.finish({})
    assert [row["step"] for row in read_json_lines(tmp_path / "metrics.jsonl")] == list(range(12, 20))
    assert said[-1] == f"{tmp_path} can be written again; 12 lines were lost"


def test_lines_that_never_found_space_are_counted_at_the_end(tmp_path: Path) -> None:
    said: list[str] = []
    tracker = JsonlTracker(RunDir(tmp_path), said.append)
    with files_of_at_most(0):
        for step in range(5):
            tracker.metrics({"step": step})
        tracker.finish({})
    assert said[-1] == f"5 lines could not be written to {tmp_path}"


def test_the_disk_is_not_tried_at_every_row_while_it_is_full(tmp_path: Path) -> None:
    clock = Clock()
    tracker = JsonlTracker(RunDir(tmp_path), lambda text: None, clock=clock)
    with files_of_at_most(0):
        tracker.metrics({"step": 0})
    tracker.metrics({"step": 1})
    assert list(read_json_lines(tmp_path / "metrics.jsonl")) == []
    clock.now += 5
    tracker.metrics({"step": 2})
    assert len(list(read_json_lines(tmp_path / "metrics.jsonl"))) == 3


def test_a_line_that_a_crash_cut_short_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step":1}\n{"step":2,"train/lo')
    append_json_line(path, {"step": 3})
    append_json_line(path, {"step": 4})
    assert list(read_json_lines(path)) == [{"step": 1}, {"step": 3}, {"step": 4}]
