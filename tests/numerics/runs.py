"""Whole trainings inside this process, on data with a sample that breaks a model as real ones do: a blank image."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.config import CheckpointConfig, Config, DataConfig, ModelConfig, OptimConfig
from trainer.data.datasets import Splits, TensorImages
from trainer.data.sets import digits
from trainer.distributed import World
from trainer.errors import PacelineError
from trainer.rundir import RunDir
from trainer.stop import StopRequest
from trainer.terminal.console import LineConsole
from trainer.tracking import NullTrackers, open_trackers
from trainer.train import train
from trainer.training.job import Job

BATCH = 64


class NamedImages(TensorImages):
    """Images in memory that know a file name."""

    def path_of(self, sample: int) -> str:
        return f"/images/{sample}.png"


def digits_with_blanks(blank: list[int]) -> Splits:
    """The digits, some of them blank."""
    splits = digits.build(DataConfig(val_fraction=0.1))
    assert isinstance(splits.train, TensorImages)
    images = splits.train.images.clone()
    images[blank] = 0
    return replace(splits, train=NamedImages(images, splits.train.targets))


class Stretching(nn.Module):
    """Stretches each image to its own range, which a blank one does not have: 0 / 0."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, num_classes)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        return self.layers((images - low) / (high - low))


def configuration(blank: list[int], **changes: Any) -> Config:
    """Two epochs of 26 steps; a row every 5 steps, a checkpoint every 4."""
    config = Config(
        epochs=2,
        global_batch_size=BATCH,
        precision="fp32",
        device="cpu",
        log_every_steps=5,
        data=DataConfig(_target_="tests.numerics.runs.digits_with_blanks", args={"blank": blank}, augment="none"),
        model=ModelConfig(_target_="tests.numerics.runs.Stretching"),
        optim=OptimConfig(lr=0.05, args={"momentum": 0.9}),
        checkpoint=CheckpointConfig(every_steps=4),
    )
    return replace(config, **changes)


def train_in(
    world: World, folder: Path, config: Config, *, attempt: int = 0, stop_after: int | None = None
) -> tuple[PacelineError | None, str]:
    """Trains in a run directory; the error that ended it, and what was said."""
    run, said = RunDir(folder), io.StringIO()
    console = LineConsole(said, None, clock=lambda: 0.0)
    trackers = open_trackers(config, run, attempt=attempt, warn=console.warn) if world.is_rank_zero else NullTrackers()
    folder.mkdir(exist_ok=True, parents=True)
    try:
        train(config, Job(world, run, console, trackers, StopRequest(), lambda: None, attempt), stop_after=stop_after)
    except PacelineError as error:
        return error, said.getvalue()
    return None, said.getvalue()
