"""Runs a function on several real gloo worker processes and hands back what each returned."""

import os
import pickle
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from trainer.config import DistributedConfig
from trainer.distributed import World, join


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
