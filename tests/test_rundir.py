"""Rows of steps that will be trained again are cut off, however long the run is."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from trainer.rundir import RunDir, append_json_line, json_line

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
