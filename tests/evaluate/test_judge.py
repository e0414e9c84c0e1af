import math
import shlex
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests import warm
from tests.trainer_command import DIGITS, TRAINER, run
from trainer.check.validate import validate
from trainer.config import compose
from trainer.errors import ConfigError
from trainer.evaluate.judge import Judge, Standing
from trainer.run.rows import read_json_lines
from trainer.rundir import RunDir, read_json


def judged(judge: Judge, values: list[float]) -> tuple[list[bool], Standing, list[bool]]:
    """For each value whether it was the best, and whether the run would end after it."""
    standing = Standing()
    best, ends = [], []
    for number, value in enumerate(values, start=1):
        metrics = {"val/accuracy": 0.5, judge.metric: value}
        best.append(judge.judge(standing, metrics, step=10 * number, epoch=number))
        ends.append(judge.verdict(standing) is not None)
    return best, standing, ends


def test_a_loss_is_best_when_small_and_an_accuracy_when_great() -> None:
    falling = [0.9, 0.5, 0.7]
    assert judged(Judge("val/loss", None, 0.0), falling)[0] == [True, True, False]
    assert judged(Judge("val/accuracy", None, 0.0), falling)[0] == [True, False, False]


def test_an_equal_value_is_no_improvement() -> None:
    best, standing, ends = judged(Judge("val/accuracy", 2, 0.0), [0.5, 0.5, 0.5])
    assert (best, ends) == ([True, False, False], [False, False, True])
    assert standing.step == 10


@pytest.mark.parametrize("metric", ["val/loss", "val/accuracy"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nothing_but_a_finite_number_is_ever_the_best(metric: str, bad: float) -> None:
    best, standing, _ = judged(Judge(metric, None, 0.0), [bad, 0.5, bad])
    assert best == [False, True, False]
    assert standing.value == 0.5
    assert judged(Judge(metric, 2, 0.0), [bad, bad])[2] == [False, True]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_weights_that_have_diverged_are_not_the_best_however_many_images_they_get_right(loss: float) -> None:
    standing, judge = Standing(), Judge("val/accuracy", None, 0.0)
    assert not judge.judge(standing, {"val/loss": loss, "val/accuracy": 0.9}, step=1, epoch=1)
    assert judge.judge(standing, {"val/loss": 2.0, "val/accuracy": 0.1}, step=2, epoch=2)
    assert (standing.step, standing.value) == (2, 0.1)


@pytest.mark.parametrize(
    ("standing", "said"),
    [
        (
            Standing("val/loss", 10, 1, 0.5, 0.9, 0.5, 2),
            "not improved in the last 2 evaluations; the best was 0.5 in epoch 1",
        ),
        (Standing("val/loss", improved=0.5, waited=2), "; the best was 0.5, whose weights are no longer there"),
        (Standing("val/loss", waited=2), "val/loss was never a finite number, in 2 evaluations"),
    ],
)
def test_the_verdict_knows_a_best_that_was_forgotten_from_one_that_never_was(standing: Standing, said: str) -> None:
    verdict = Judge("val/loss", 2, 0.0).verdict(standing)
    assert verdict is not None
    assert verdict.startswith("early stopping: val/loss ")
    assert verdict.endswith(said)


def test_small_improvements_are_the_best_and_add_up_before_patience_is_lost() -> None:
    best, standing, ends = judged(Judge("val/accuracy", 3, 0.1), [0.50, 0.55, 0.61, 0.65, 0.66, 0.67])
    assert best == [True] * 6
    assert ends == [False, False, False, False, False, True]
    assert standing.improved == 0.61


ENDS_EARLY = [
    *DIGITS, "epochs=400", "evaluate.patience=40", "evaluate.min_delta=1000", "evaluate.best=val/loss", "run.dir=.",
    "run.name=p",
]  # fmt: skip


def start(folder: Path, *arguments: str) -> BaseProcess:
    (process,) = warm.start(*ENDS_EARLY, *arguments, world_size=1, folder=folder)
    return process


def evaluations(run_dir: RunDir) -> list[dict[str, float]]:
    return [row for row in read_json_lines(run_dir.metrics) if "val/loss" in row]


def test_an_early_stop_finishes_the_run_and_resume_counts_on(tmp_path: Path) -> None:
    run_dir, said = RunDir(tmp_path / "p"), tmp_path / "rank-0.txt"
    process = start(tmp_path)
    deadline = time.monotonic() + 60
    while len(evaluations(run_dir)) < 3:
        assert process.is_alive(), said.read_text()
        assert time.monotonic() < deadline
    # While it trains: what is killed says nothing at its end.
    status = read_json(run_dir.status)
    assert status["best_accuracy"] in [row["val/accuracy"] for row in evaluations(run_dir)]
    process.terminate()
    process.join(60)
    assert process.exitcode == 75, said.read_text()
    assert len(evaluations(run_dir)) < 41
    process = start(tmp_path)
    process.join(60)
    assert process.exitcode == 0, said.read_text()
    rows, summary = evaluations(run_dir), read_json(run_dir.summary)
    # The first evaluation is an improvement over nothing; none after it improves by so much.
    assert [row["epoch"] for row in rows] == list(range(1, 42))
    assert read_json(run_dir.status)["state"] == "finished"
    reason = "early stopping: val/loss has not improved by at least 1000 in the last 40 evaluations"
    assert summary["reason"].startswith(reason)
    assert summary["reason"] in said.read_text()
    assert [row["reason"] for row in read_json_lines(run_dir.events) if row["event"] == "early_stop"] == [
        summary["reason"]
    ]
    best = min(rows, key=lambda row: row["val/loss"])
    assert (summary["best/step"], summary["best/value"]) == (best["step"], best["val/loss"])
    assert summary["best/accuracy"] == read_json(run_dir.status)["best_accuracy"] == best["val/accuracy"]

    process = start(tmp_path, "run.accept_changes=true", "evaluate.patience=43")
    process.join(60)
    assert process.exitcode == 0, said.read_text()
    assert [row["epoch"] for row in evaluations(run_dir)] == list(range(1, 45))

    # Judged by another metric, the loss of before is no record that an accuracy could fail to break.
    process = start(tmp_path, "run.accept_changes=true", "evaluate.best=val/accuracy", "evaluate.patience=2")
    process.join(60)
    assert process.exitcode == 0, said.read_text()
    later = evaluations(run_dir)[44:]
    assert len(later) == 3
    summary = read_json(run_dir.summary)
    assert summary["best/metric"] == "val/accuracy"
    assert summary["best/value"] == max(row["val/accuracy"] for row in later)


def test_an_unknown_metric_is_refused_before_anything_starts() -> None:
    done = run(TRAINER, *DIGITS, "evaluate.best=val/acuracy")
    assert done.returncode == 2
    problem, command = done.stderr.splitlines()
    assert problem == "error: evaluate.best=val/acuracy is not a metric of the evaluation"
    assert command.endswith(f"python -m trainer {shlex.join([*DIGITS, 'evaluate.best=val/accuracy'])}")


def test_the_moving_average_can_be_judged_only_where_there_is_one() -> None:
    config = compose(["recipe=digits", "evaluate.best=val/ema_loss"])
    with pytest.raises(ConfigError, match="needs a moving average") as caught:
        validate(config, world_size=1)
    assert caught.value.fix == "ema.decay=0.999"
    validate(compose(["recipe=digits", "evaluate.best=val/ema_loss", "ema.decay=0.999"]), world_size=1)
    standing = Standing()
    Judge("val/ema_loss", None, 0.0).judge(
        standing, {"val/ema_loss": 0.1, "val/accuracy": 0.4, "val/ema_accuracy": 0.6}, step=1, epoch=1
    )
    assert standing.accuracy == 0.6
