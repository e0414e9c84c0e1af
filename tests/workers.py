"""Runs a function on several real gloo worker processes and hands back what each returned."""

import os
import pickle
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from tests.trainer_command import free_port, rank_variables
from trainer.config import DistributedConfig, compose
from trainer.distributed import World, join
from trainer.rundir import RunDir
from trainer.stop import StopRequest
from trainer.terminal.console import LineConsole
from trainer.tracking import NullTrackers
from trainer.train import Job, train

if not torch.cuda.is_available():
    # Torch starts its autograd threads in a process's first backward pass, one for each device that it sees, and then
    # forks of that process cannot go backward. Without devices there are none; a test with fake ones may come first.
    torch.zeros((), requires_grad=True).backward()


def run_workers(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Calls `function(world, *arguments)` on every rank; `function` must be importable by name.

    The processes are forked, so torch is imported once.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(
            _work, (world_size, free_port(), folder, function, arguments), nprocs=world_size, start_method="fork"
        )
        return [pickle.loads((Path(folder) / str(rank)).read_bytes()) for rank in range(world_size)]


def on_each(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """As `run_workers`; a world of one is this process itself, without a process group, as in the trainer."""
    if world_size == 1:
        return [function(alone(), *arguments)]
    return run_workers(world_size, function, *arguments)


def check_weights(results: list[tuple[list[torch.Tensor], float]], weights: list[torch.Tensor], loss: float) -> None:
    """Asserts that every rank's float64 weights and summed loss are these, up to rounding."""
    for found, found_loss in results:
        for one, other in zip(found, weights, strict=True):
            assert torch.allclose(one, other, rtol=0, atol=1e-10)
        assert found_loss == pytest.approx(loss, abs=1e-9)


def _work(rank: int, world_size: int, port: int, folder: str, function: Callable[..., Any], arguments: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(rank_variables(rank, world_size, port))
    with join(DistributedConfig(timeout_s=60), device="cpu") as world:
        result = function(world, *arguments)
    (Path(folder) / str(rank)).write_bytes(pickle.dumps(result))
    # As the trainer ends: Python's own way would end loading processes first, and torch then take that for a failure.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def alone() -> World:
    """The world of a single process."""
    return World(0, 0, 1, 1, 0, torch.device("cpu"), distributed=False)


def train_here(world: World, overrides: list[str], stop_after: int | None = None) -> None:
    """Trains as `python -m trainer OVERRIDES` would, in this worker; run.dir and run.name must be among them.

    What it says goes to `said-RANK.txt` in the run directory.
    """
    config = compose(overrides)
    run = RunDir(Path(config.run.dir) / str(config.run.name))
    run.path.mkdir(exist_ok=True)
    console = LineConsole((run.path / f"said-{world.rank}.txt").open("a"), None, clock=time.monotonic)
    train(config, Job(world, run, console, NullTrackers(), StopRequest(), lambda: None), stop_after=stop_after)
