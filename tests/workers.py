"""Runs a function on several real gloo worker processes and hands back what each returned."""

import os
import pickle
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from trainer.config import DistributedConfig, compose
from trainer.console import LineConsole
from trainer.distributed import World, join
from trainer.rundir import RunDir
from trainer.stop import StopRequest
from trainer.tracking import NullTrackers
from trainer.train import Job, train


def run_workers(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Calls `function(world, *arguments)` on every rank; `function` must be importable by name.

    The processes are forked, so torch is imported once.
    """
    with tempfile.TemporaryDirectory() as folder:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        mp.start_processes(
            _work, (world_size, port, folder, function, arguments), nprocs=world_size, start_method="fork"
        )
        return [pickle.loads((Path(folder) / str(rank)).read_bytes()) for rank in range(world_size)]


def _work(rank: int, world_size: int, port: int, folder: str, function: Callable[..., Any], arguments: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
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
