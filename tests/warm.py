"""`python -m trainer` without the seconds that importing torch takes: forked from a server that has done so."""

import multiprocessing
import os
import runpy
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

import trainer.worker  # noqa: F401  # with all that it imports
from tests.trainer_command import environment, free_port, rank_variables

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.warm"])


def start(*arguments: str, world_size: int, folder: Path) -> list[BaseProcess]:
    """Starts the ranks of a training with `folder` as their directory; what they say is in `rank-R.txt` there."""
    port = free_port()
    processes: list[BaseProcess] = []
    for rank in range(world_size):
        values = environment() | (rank_variables(rank, world_size, port) if world_size > 1 else {})
        process = _SERVER.Process(target=_trainer, args=(list(arguments), values, str(folder), rank))
        process.start()
        processes.append(process)
    return processes


def _trainer(arguments: list[str], values: dict[str, str], folder: str, rank: int) -> None:
    os.environ.clear()
    os.environ.update(values)
    torch.set_num_threads(1)
    os.chdir(folder)
    log = os.open(f"rank-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.path.insert(0, "")
    sys.argv = ["trainer", *arguments]
    runpy.run_module("trainer", run_name="__main__", alter_sys=True)
