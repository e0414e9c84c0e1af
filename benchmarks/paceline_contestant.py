"""Paceline's own trainer as a contestant of step_overhead."""

import io
from pathlib import Path

import torch
import torch.distributed as dist
from tiny import CLASSES, IMAGES, LR, TARGETS

from trainer.config import Config, DataConfig, EvaluateConfig, ModelConfig, OptimConfig, TrackingConfig
from trainer.data.datasets import Splits, TensorImages
from trainer.distributed import World
from trainer.preprocessing import Preprocessing
from trainer.run.rows import read_json_lines
from trainer.rundir import RunDir
from trainer.stop import StopRequest
from trainer.terminal.console import LineConsole
from trainer.tracking import NullTrackers, open_trackers
from trainer.train import train
from trainer.training.job import Job


def tiny_data() -> Splits:
    """The benchmark's images as a data set; a single image to validate on."""
    return Splits(
        train=TensorImages(IMAGES, TARGETS),
        val=TensorImages(IMAGES[:1], TARGETS[:1]),
        classes=[str(number) for number in range(CLASSES)],
        preprocessing=Preprocessing(8, 8, 1, (0.5,), (0.25,)),
    )


def run_trainer(folder: Path, warm_up: int, steps: int, accumulation: int, micro_batch: int) -> float:
    """Trains in `folder`; seconds of a step after the warm-up."""
    world_size = dist.get_world_size()
    world = World(
        rank=dist.get_rank(),
        local_rank=dist.get_rank(),
        world_size=world_size,
        local_world_size=world_size,
        node_rank=0,
        device=torch.device("cpu"),
        distributed=True,
    )
    config = Config(
        epochs=None,
        max_steps=warm_up + steps,
        global_batch_size=micro_batch * accumulation * world_size,
        micro_batch_size=micro_batch,
        precision="fp32",
        device="cpu",
        evaluate=EvaluateConfig(every="end"),
        data=DataConfig(_target_="paceline_contestant.tiny_data", augment="none"),
        model=ModelConfig(_target_="tiny.TinyNet"),
        optim=OptimConfig(lr=LR, args={"momentum": 0.9}, schedule="cosine", warmup_fraction=0.0, weight_decay=0.0),
        tracking=TrackingConfig(),
    )
    run = RunDir(world.from_rank_zero(str(folder)))
    console = LineConsole(io.StringIO(), None, clock=lambda: 0.0)
    trackers = open_trackers(config, run, attempt=0, warn=print) if world.is_rank_zero else NullTrackers()
    train(config, Job(world, run, console, trackers, StopRequest(), lambda: None))
    seconds = 0.0
    if world.is_rank_zero:
        times = {row["step"]: row["time"] for row in read_json_lines(run.metrics) if "train/loss" in row}
        seconds = (times[warm_up + steps] - times[warm_up]) / steps
    dist.barrier()
    return seconds
