"""What the record says about the attempts of a run, and which of their steps it still has."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trainer.config import Config, DataConfig
from trainer.run import history
from trainer.run.history import Rollback, Setup, Stretch
from trainer.run.rows import append_json_line
from trainer.rundir import RunDir


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], [(0, None)]),
        ([("start", 0, 0), ("start", 40, 1), ("start", 60, 2)], [(0, 0), (40, 1), (60, 2)]),
        # An attempt that trains steps again has them from then on; one that got nowhere has none.
        ([("start", 0, 0), ("start", 40, 1), ("start", 20, 2), ("start", 20, 3)], [(0, 0), (20, 3)]),
        ([("start", 0, 0), ("start", 40, 1), ("rollback", 24, None)], [(0, 0), (24, 1)]),
        ([("start", 40, None)], [(0, None), (40, None)]),
    ],
)
def test_a_step_is_the_last_attempts_that_trained_it(
    events: list[tuple[str, int, int | None]], expected: list[tuple[int, int | None]], tmp_path: Path
) -> None:
    run = RunDir(tmp_path)
    for kind, step, attempt in events:
        row: dict[str, Any] = {"event": kind, "step": step, "to_step": step, "left_out": [step + 1, step + 2]}
        append_json_line(run.events, row if attempt is None else {**row, "attempt": attempt})
    assert history.course_of(run).stretches == tuple(Stretch(*pair) for pair in expected)


@pytest.mark.parametrize(
    ("events", "stands"),
    [
        ([], True),
        ([("checkpoint", 32)], True),
        ([("checkpoint", 32), ("start", 32)], True),
        # Its checkpoint was written, and the process killed before it could say so.
        ([("start", 32)], True),
        # No checkpoint has known of it; or one that took the place of the one to which it went back.
        ([("start", 24)], False),
        ([("start", 16)], False),
        ([("checkpoint", 24), ("start", 24)], True),
        ([("checkpoint", 32), ("start", 16)], False),
    ],
)
def test_steps_are_passed_over_as_long_as_a_checkpoint_knows_of_it(
    events: list[tuple[str, int]], stands: bool, tmp_path: Path
) -> None:
    run = RunDir(tmp_path)
    trouble = {"event": "nonfinite", "step": 30, "what": "gradients"}
    back = {"event": "rollback", "step": 30, "to_step": 24, "left_out": [25, 30]}
    before = [{"event": kind, "step": step} for kind, step in (("start", 0), ("checkpoint", 16), ("checkpoint", 24))]
    for row in [*before, trouble, back, *({"event": kind, "step": step} for kind, step in events)]:
        append_json_line(run.events, row)
    course = history.course_of(run)
    assert course.rollbacks == ((Rollback(25, 30, "gradients", 24),) if stands else ())
    assert course.troubles == ()


@pytest.mark.parametrize(
    ("then", "now", "names"),
    [
        ({"data": DataConfig(root="/old", workers=2)}, {"log_every_steps": 7}, []),
        ({}, {"micro_batch_size": 16}, ["micro_batch_size"]),
        ({"on_nonfinite": "stop"}, {"on_nonfinite": "rollback"}, ["on_nonfinite"]),
        ({"on_nonfinite": "stop", "precision": "fp32"}, {"on_nonfinite": "rollback", "precision": "fp32"}, []),
        ({"on_nonfinite": "skip", "precision": "fp32"}, {"precision": "fp32"}, ["on_nonfinite"]),
    ],
)
def test_set_ups_differ_in_what_decides_a_bit(then: dict[str, Any], now: dict[str, Any], names: list[str]) -> None:
    one, other = (Setup(0, Config(**values), 1, ({"threads": 1},), None, {}) for values in (then, now))
    assert list(one.differences(other)) == names
    assert "workers" in one.differences(replace(one, workers=2))
    assert "threads" in one.differences(replace(one, seen=({"threads": 2},)))
    assert "threads" not in one.differences(replace(one, seen=()))
