"""A loss or a gradient that is not finite: the step and its samples are named, and what was asked for happens."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.numerics.runs import BATCH, configuration, train_in
from tests.workers import alone, run_workers
from trainer import checkpoint
from trainer.config import ModelConfig, OptimConfig
from trainer.data.naming import samples_of_step
from trainer.data.sampler import StepPlan
from trainer.distributed import World
from trainer.errors import TrainingError
from trainer.rundir import RunDir, read_json_lines

TRAINING_IMAGES = 1617
BLANK = 500


def plan_of(world_size: int) -> StepPlan:
    return StepPlan(TRAINING_IMAGES, BATCH, world_size)


def step_of(sample: int, epoch: int = 0) -> int:
    """The step, from 1, that takes a sample in an epoch."""
    plan = plan_of(1)
    first = epoch * plan.steps_per_epoch
    steps = range(first, first + plan.steps_per_epoch)
    return next(s + 1 for s in steps if sample in samples_of_step(plan, seed=0, step=s).tolist())


def events(folder: Path, kind: str) -> list[dict[str, object]]:
    return [row for row in read_json_lines(RunDir(folder).events) if row["event"] == kind]


def stopped(world: World, folder: Path) -> tuple[str, dict[str, object]]:
    error, _ = train_in(world, folder, configuration([BLANK]))
    assert isinstance(error, TrainingError)
    return error.problem, error.details


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_step_and_its_samples_are_named_and_no_later_checkpoint_is_kept(world_size: int, tmp_path: Path) -> None:
    results = run_workers(world_size, stopped, tmp_path) if world_size > 1 else [stopped(alone(), tmp_path)]
    bad = step_of(BLANK)
    plan = plan_of(world_size)
    for problem, details in results:
        assert f"the loss is not finite in step {bad} (epoch 1" in problem
        assert details["step"] == bad
        assert BLANK in details["samples"]  # type: ignore[operator]
        assert f"/images/{BLANK}.png" in details["paths"]  # type: ignore[operator]
        if world_size == 2:
            # Only the rank that took it is suspected.
            [rank] = details["ranks"]  # type: ignore[misc]
            assert f"rank {rank})" in problem
            mine = samples_of_step(plan, seed=0, step=bad - 1, ranks=[rank]).tolist()
            assert details["samples"] == mine
            assert len(mine) == BATCH // 2
    [event] = events(tmp_path, "nonfinite")
    assert event["step"] == bad
    assert event["samples"] == results[0][1]["samples"]
    kept = checkpoint.steps(RunDir(tmp_path))
    assert kept
    assert max(kept) < bad
    assert max(kept) > bad - 6


class Overflowing(nn.Module):
    """Finite losses whose gradients are not: the square root's at 0."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(64, num_classes)

    def forward(self, images):  # type: ignore[no-untyped-def]
        flat = images.flatten(1)
        blank = (flat == flat[:, :1]).all(1, keepdim=True)
        return self.layer(flat) + torch.where(blank, self.layer.bias * 0, torch.ones(())).sqrt()


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_gradients_that_are_not_finite_never_reach_a_checkpoint(clip_norm: float | None, tmp_path: Path) -> None:
    bad = step_of(BLANK)
    config = configuration(
        [BLANK],
        model=ModelConfig(_target_="tests.numerics.test_nonfinite.Overflowing"),
        optim=OptimConfig(lr=0.05, clip_norm=clip_norm),
    )
    config = replace(config, checkpoint=replace(config.checkpoint, every_steps=bad))
    error, _ = train_in(alone(), tmp_path, config)
    assert isinstance(error, TrainingError)
    assert f"the {'weights' if clip_norm is None else 'gradients'} are not finite in step {bad} " in error.problem
    assert checkpoint.steps(RunDir(tmp_path)) == []
    assert not RunDir(tmp_path).weights("last").exists()
