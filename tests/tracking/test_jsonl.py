import errno
import resource
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trainer.run.lease import LeaseLost
from trainer.run.rows import append_json_line, read_json_lines
from trainer.rundir import RunDir
from trainer.tracking import Trackers, jsonl
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


def test_a_job_that_has_lost_the_run_adds_nothing_to_any_of_its_files(tmp_path: Path) -> None:
    run, said = RunDir(tmp_path), list[str]()
    trackers = Trackers([JsonlTracker(run, said.append)], said.append)
    trackers.event({"event": "start"})

    def fenced() -> None:
        raise LeaseLost(errno.ESTALE, "process 7 on there has taken this run over")

    run.guard = fenced
    trackers.monitor({"node": 0})
    trackers.event({"event": "late"})
    trackers.metrics({"step": 1})
    trackers.finish({})
    assert [path.name for path in tmp_path.iterdir()] == ["events.jsonl"]
    assert list(read_json_lines(run.events)) == [{"event": "start"}]
    assert len(said) == 1
    assert "process 7 on there has taken this run over" in said[0]


def test_rows_wait_while_nobody_can_tell_who_has_the_run(tmp_path: Path) -> None:
    run, clock = RunDir(tmp_path), Clock()
    tracker = JsonlTracker(run, lambda text: None, clock=clock)

    def unreadable() -> None:
        raise OSError(errno.EIO, "Input/output error")

    run.guard = unreadable
    tracker.event({"event": "one"})
    assert not run.events.exists()
    run.guard, clock.now = (lambda: None), clock.now + 10
    tracker.event({"event": "two"})
    assert [row["event"] for row in read_json_lines(run.events)] == ["one", "two"]


@pytest.mark.parametrize("room", [0, 45, 1000], ids=["none written", "some written", "all written"])
def test_rows_that_wait_for_space_do_not_come_back_when_their_steps_are_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    run, clock, cut = RunDir(tmp_path), Clock(), jsonl.supersede_rows
    tracker = JsonlTracker(run, lambda text: None, clock=clock)

    def refused(path: Path, step: int, *, evaluates_again: bool) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with files_of_at_most(room):
        for step in range(1, 7):
            tracker.metrics({"step": step, "of": "first"})
            tracker.steps({"step": step, "of": "first"})
        # Where even the cut fails, nothing is written after the rows that should have gone.
        clock.now += 10
        monkeypatch.setattr(jsonl, "supersede_rows", refused)
        tracker.supersede(3, evaluates_again=False)
        tracker.supersede_steps(3)
        for step in range(4, 6):
            tracker.metrics({"step": step, "of": "second"})
            tracker.steps({"step": step, "of": "second"})
    monkeypatch.setattr(jsonl, "supersede_rows", cut)
    clock.now += 10
    tracker.event({"event": "again"})
    expected = [(1, "first"), (2, "first"), (3, "first"), (4, "second"), (5, "second")]
    for path in (run.metrics, run.steps):
        assert [(row["step"], row["of"]) for row in read_json_lines(path)] == expected


def test_a_row_that_lacks_its_end_of_line_alone_is_not_written_twice(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with files_of_at_most(len('{"step":1}')):
        append_json_line(path, {"step": 1})
    append_json_line(path, {"step": 2})
    assert list(read_json_lines(path)) == [{"step": 1}, {"step": 2}]
