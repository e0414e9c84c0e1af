"""What the record says about the attempts of a run, and which of their steps it still has."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trainer import history
from trainer.config import Config, DataConfig
from trainer.history import Setup, Stretch
from trainer.rundir import RunDir, append_json_line


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
        row: dict[str, Any] = {"event": kind, "to_step" if kind == "rollback" else "step": step}
        append_json_line(run.events, row if attempt is None else {**row, "attempt": attempt})
    assert history.stretches(run) == [Stretch(*pair) for pair in expected]


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
