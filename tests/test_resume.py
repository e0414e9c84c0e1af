"""Killed at any instant and run again: the same weights, optimizer, metrics and order, bit for bit."""

import random
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import warm
from trainer import checkpoint
from trainer.run.rows import read_json_lines
from trainer.rundir import RunDir, read_json

NET = """
import torch
class Net(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.convolution = torch.nn.Conv2d(1, 8, 3)
        self.norm = torch.nn.BatchNorm2d(8)
        self.head = torch.nn.Linear(8 * 36, num_classes)
    def forward(self, images):
        features = self.norm(self.convolution(images)).relu().flatten(1)
        return self.head(torch.nn.functional.dropout(features, 0.1, self.training))
"""
ARGUMENTS = [
    "data=digits", "model=resnet18", "model._target_=net.Net", "data.workers=0", "tracking=none", "device=cpu",
    "data.mixup=0.2", "data.cutmix=1", "optim=adamw", "optim.lr=0.003", "global_batch_size=64", "micro_batch_size=23",
    "epochs=6", "log_every_steps=7", "evaluate.every=17", "checkpoint.every_steps=5", "deterministic=true", "run.dir=.",
    "ema.decay=0.99", "evaluate.best=val/ema_loss", "evaluate.patience=50", "evaluate.min_delta=9",
]  # fmt: skip
KILLS = 12


def wait(processes: list[BaseProcess], folder: Path) -> None:
    """Waits for a training's end, which must be a good one."""
    for process in processes:
        process.join(120)
    said = "".join(path.read_text() for path in sorted(folder.glob("rank-*.txt")))
    assert [process.exitcode for process in processes] == [0] * len(processes), said


def is_saving(run: RunDir) -> bool:
    """Whether a checkpoint is being written: until it is whole, its folder's name begins with a dot."""
    return next(run.checkpoints.glob(".*"), None) is not None


def kill_at_a_random_moment(
    draw: random.Random, processes: list[BaseProcess], run: RunDir, seconds: float
) -> tuple[bool, bool]:
    """Kills all ranks or one of them at some time of the run's `seconds`, half of the times inside a save.

    Returns:
        Whether the moment came before the run's end, and whether it was inside a save.
    """
    deadline, in_a_save = time.monotonic() + draw.uniform(0, seconds), draw.random() < 0.5
    victims = processes if draw.random() < 0.5 else [draw.choice(processes)]
    while time.monotonic() < deadline or (in_a_save and not is_saving(run)):
        if not processes[0].is_alive():
            return False, False
    for process in victims:
        process.kill()
    for process in processes:
        # The others find that they cannot go on, or are ended by their launcher where they wait for each other.
        process.join(2)
        process.kill()
        process.join()
    return True, is_saving(run)


def content(run: RunDir) -> dict[str, Any]:
    """All that must not depend on how often the run was killed."""
    step = read_json(run.status)["step"]
    last = checkpoint.load(run.checkpoint(step))
    progress = {name: value for name, value in last.state.pop("progress").items() if name != "seconds"}
    rows = [
        {name: value for name, value in row.items() if name != "time" and not name.startswith("perf/")}
        for row in read_json_lines(run.metrics)
    ]
    return {
        "step": step,
        "state": last.state,
        "progress": progress,
        "tensors": {name: tensor.clone() for name, tensor in last.tensors.items()},
        "rows": rows,
        "steps": list(read_json_lines(run.steps)),
        "last": run.weights("last").read_bytes(),
        "best": run.weights("best").read_bytes(),
        "last_ema": run.weights("last_ema").read_bytes(),
        "evaluations": [{**found, "time": None} for found in read_json(run.evaluation).values()],
    }


@pytest.mark.parametrize(("world_size", "precision"), [(1, "fp16"), (2, "fp32")])
def test_killed_a_dozen_times_it_ends_like_a_run_that_nothing_disturbed(
    tmp_path: Path, world_size: int, precision: str
) -> None:
    (tmp_path / "net.py").write_text(NET)

    def start(name: str) -> list[BaseProcess]:
        arguments = [*ARGUMENTS, f"precision={precision}", f"run.name={name}"]
        return warm.start(*arguments, world_size=world_size, folder=tmp_path)

    started = time.monotonic()
    wait(start("whole"), tmp_path)
    seconds = time.monotonic() - started
    draw = random.Random(world_size)
    kills = saves = ended = 0
    while kills < KILLS:
        name = f"cut-{ended}"
        processes = start(name)
        killed, in_a_save = kill_at_a_random_moment(draw, processes, RunDir(tmp_path / name), seconds)
        kills, saves, ended = kills + killed, saves + in_a_save, ended + (not killed)
    wait(start(f"cut-{ended}"), tmp_path)
    assert saves
    expected = content(RunDir(tmp_path / "whole"))
    for number in range(ended + 1):
        assert_same(content(RunDir(tmp_path / f"cut-{number}")), expected)


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["rows"] == expected["rows"]
    assert found["tensors"].keys() == expected["tensors"].keys()
    others = [name for name, tensor in found["tensors"].items() if not torch.equal(tensor, expected["tensors"][name])]
    assert others == []
    for name in found.keys() - {"rows", "tensors"}:
        assert found[name] == expected[name], name
