"""Rows of steps that will be trained again are cut off, however long the run is."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from trainer import checkpoint
from trainer.run.parting import trace_of
from trainer.run.rows import append_json_line, json_line
from trainer.rundir import RunDir, read_json, write_json

TRAIN, VALIDATION = {"train/loss": 1.0}, {"val/loss": 2.0}
ROWS: list[dict[str, Any]] = [
    {"step": 5, **TRAIN}, {"step": 10, **TRAIN}, {"step": 10, **VALIDATION}, {"step": 15, **TRAIN},
    {"step": 20, **TRAIN}, {"step": 20, **VALIDATION},
]  # fmt: skip


@pytest.mark.parametrize("tail", ["", '{"step":2'], ids=["whole", "cut short"])
@pytest.mark.parametrize(
    ("step", "again", "kept"), [(20, False, 6), (20, True, 5), (12, False, 3), (10, True, 2), (3, False, 0)]
)
def test_what_will_be_done_again_is_cut_off(tmp_path: Path, step: int, again: bool, kept: int, tail: str) -> None:
    run = RunDir(tmp_path)
    run.metrics.write_text("".join(map(json_line, ROWS)) + tail)
    run.steps.write_text(json_line({"first": 1, "step": 10}) + json_line({"first": 11, "step": 20}))
    assert run.supersede_metrics(step, evaluates_again=again) == 6 - kept
    append_json_line(run.metrics, {"step": 99})
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert lines == [*ROWS[:kept], {"step": 99}]
    assert len(run.steps.read_text().splitlines()) == (step >= 10) + (step >= 20)


def test_a_run_that_has_not_begun_has_no_rows_to_cut(tmp_path: Path) -> None:
    RunDir(tmp_path).steps.touch()
    assert RunDir(tmp_path).supersede_metrics(0) == 0


def test_cutting_does_not_read_the_rows_that_stay(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    row = json_line({"epoch": 1, "samples": 64, **TRAIN})[1:]
    run.metrics.write_text("".join(f'{{"step":{step},{row}' for step in range(200_000)))
    started = time.process_time()
    assert run.supersede_metrics(199_000) == 999
    assert time.process_time() - started < 0.2


@pytest.mark.parametrize("damaged", [None, "x", [3], float("nan")])
def test_a_row_whose_step_is_no_number_goes_with_those_beside_it(tmp_path: Path, damaged: object) -> None:
    run = RunDir(tmp_path)
    rows = [
        {"step": 5, **TRAIN},
        {"step": damaged},
        {"step": 10, **TRAIN},
        {"step": 15},
        {"step": damaged},
        {"step": 20},
    ]
    run.metrics.write_text("".join(map(json_line, rows)))
    run.steps.write_text(json_line({"first": 1, "step": 5, "losses": [1.0], "digest": "a"}) + json_line(rows[1]))
    assert trace_of(run).digests == {5: "a"}
    assert run.supersede_metrics(10) == 3
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()][::2] == [5, 10]


@pytest.mark.parametrize("content", [b"\xff{", b'{"state": "\x93"}', b"[" * 100_000, b"[]", b""])
def test_a_damaged_file_is_as_none(tmp_path: Path, content: bytes) -> None:
    run = RunDir(tmp_path)
    for path in (run.status, run.job, run.holder):
        path.write_bytes(content)
        assert read_json(path) == {}
    run.update_status(state="running")
    assert run.read_status()["state"] == "running"
    assert run.next_attempt() == 0


def test_the_attempts_go_on_counting_when_logs_or_records_are_gone(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert run.next_attempt() == 0
    run.log(1, 0).parent.mkdir(parents=True)
    (tmp_path / "logs" / "attempt-²").mkdir()
    assert run.next_attempt() == 2
    write_json(run.job, {"attempts": [{"attempt": 3}, {}, None]})
    assert run.next_attempt() == 4
    write_json(run.status, {"attempt": 6})
    assert run.next_attempt() == 7


def test_names_that_are_not_ours_are_no_checkpoints(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for name in ("step-²", "step-٣", "step-20", "step-00000020", "step--0000020"):
        (run.checkpoints / name).mkdir(parents=True)
    assert checkpoint.steps(run) == [20]


def test_a_name_that_is_no_utf_8_comes_back_as_it_was(tmp_path: Path) -> None:
    row = {"path": "caf\udce9", "é": "ü"}
    write_json(tmp_path / "one.json", row)
    append_json_line(tmp_path / "many.jsonl", row)
    assert read_json(tmp_path / "one.json") == json.loads((tmp_path / "many.jsonl").read_text()) == row
