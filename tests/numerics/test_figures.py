"""The figures of single steps: what a row of metrics is made of, and that they do not pile up."""

import math
from pathlib import Path

import pytest

from tests.numerics.runs import configuration, train_in
from tests.workers import alone
from trainer.config import EvaluateConfig
from trainer.numerics.figures import NO_SAMPLE, PASSED_OVER, Figures
from trainer.run.rows import read_json_lines
from trainer.rundir import RunDir
from trainer.training import loop


def test_a_rows_loss_and_pace_are_those_of_the_steps_that_were_computed() -> None:
    figures = Figures(1, [64.0, 0.0, 0.0, 128.0], [0.0] * 4, [0.0, PASSED_OVER, 1.0, 0.0], [0.0] * 4)
    assert figures.mean_loss(lambda step: 64) == 1.0
    assert figures.passed_over(lambda step: 64) == 64


@pytest.mark.parametrize("why", [PASSED_OVER, NO_SAMPLE])
def test_steps_without_a_sample_have_no_loss(why: float) -> None:
    nothing = Figures(1, [0.0], [0.0], [why], [0.0])
    assert math.isnan(nothing.mean_loss(lambda step: 64))
    assert math.isnan(nothing.step_losses(lambda step: 64)[0])
    more = Figures.joined([nothing, Figures(2, [30.0], [15.0], [0.0], [0.0])])
    assert more.mean_loss(lambda step: 64) == 2.0


def test_figures_of_steps_that_follow_one_another_are_joined() -> None:
    parts = [Figures(step, *([float(10 * row + step)] for row in range(4))) for step in (5, 6, 7)]
    assert Figures.joined(parts) == Figures(5, *([10.0 * row + step for step in (5, 6, 7)] for row in range(4)))


def test_a_run_that_wants_no_rows_does_not_gather_figures_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_LONGEST_INTERVAL", 9)
    config = configuration([], log_every_steps=1_000_000, max_steps=24, evaluate=EvaluateConfig(every="end"))
    error, _ = train_in(alone(), tmp_path, config)
    assert error is None
    rows = [(row["first"], row["step"]) for row in read_json_lines(RunDir(tmp_path).steps)]
    assert rows == [(1, 9), (10, 18), (19, 24)]
