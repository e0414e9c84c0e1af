"""Ranks whose weights are no longer the same are found within a row of metrics, and named; nothing of it is kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.numerics.runs import Stretching, configuration, train_in
from tests.workers import run_workers
from trainer import checkpoint
from trainer.config import CheckpointConfig, ModelConfig
from trainer.distributed import World
from trainer.errors import TrainingError
from trainer.numerics.replicas import Digest, odd_ranks
from trainer.run.rows import read_json_lines
from trainer.rundir import RunDir

FLIPS_AT = 13


class Corrupted(Stretching):
    """The lowest bit of one weight of rank 1 is another one before step 13."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += self.training
        if self.calls == FLIPS_AT and self.training and dist.get_rank() == 1:
            with torch.no_grad():
                next(self.parameters()).view(torch.int32).view(-1)[3] ^= 1
        return super().forward(images)


def trained(world: World, folder: Path, every_steps: int | None) -> tuple[str, dict[str, Any]]:
    config = configuration(
        [],
        model=ModelConfig(_target_="tests.numerics.test_replicas.Corrupted"),
        checkpoint=CheckpointConfig(every_steps=every_steps),
    )
    error, _ = train_in(world, folder, config)
    assert isinstance(error, TrainingError)
    return str(error), error.details


@pytest.mark.parametrize(("world_size", "every_steps"), [(3, None), (2, None), (2, FLIPS_AT)])
def test_a_flipped_bit_names_the_rank_and_never_reaches_a_checkpoint(
    world_size: int, every_steps: int | None, tmp_path: Path
) -> None:
    # A row every 5 steps, and before a checkpoint.
    compared = FLIPS_AT if every_steps else 15
    for said, details in run_workers(world_size, trained, tmp_path, every_steps):
        assert (details["first_step"], details["step"]) == (11, compared)
        assert f"in steps 11 to {compared}" in said
        assert details["ranks"] == ([1] if world_size == 3 else [0, 1])
        if world_size == 3:
            assert "rank 1 (" in said
            assert "other weights than the other 2 ranks" in said
        else:
            assert "replay" in said
        assert len(set(details["digests"])) == 2
    assert all(step < FLIPS_AT for step in checkpoint.steps(RunDir(tmp_path)))
    [event] = [row for row in read_json_lines(RunDir(tmp_path).events) if row["event"] == "replicas_differ"]
    assert event["step"] == compared


def trained_beside_another_machine(world: World, folder: Path) -> str:
    torch.backends.cpu.get_cpu_capability = lambda: f"of rank {world.rank}"  # type: ignore[assignment]
    model = ModelConfig(_target_="tests.numerics.test_replicas.Corrupted")
    error, said = train_in(world, folder, configuration([], model=model, epochs=1))
    assert error is None, error
    return said


def test_replicas_on_unlike_hardware_drift_by_rounding_which_is_said_once_and_ends_nothing(tmp_path: Path) -> None:
    for said in run_workers(2, trained_beside_another_machine, tmp_path):
        assert said.count("are not compared bit by bit") == 1
        assert "CPU of rank 0, 1 threads, torch " in said
        assert "(rank 0); CPU of rank 1" in said


def agreeing(world: World, folder: Path) -> None:
    error, _ = train_in(world, folder, configuration([]))
    assert error is None


def test_every_row_has_the_digest_that_all_ranks_have_and_every_steps_loss(tmp_path: Path) -> None:
    run_workers(2, agreeing, tmp_path)
    run = RunDir(tmp_path)
    steps = list(read_json_lines(run.steps))
    rows = [row for row in read_json_lines(run.metrics) if "train/loss" in row]
    assert [row["step"] for row in steps] == [row["step"] for row in rows]
    assert [row["first"] for row in steps] == [1, *(row["step"] + 1 for row in rows[:-1])]
    assert len({row["digest"] for row in steps}) == len(steps)
    full = [pair for pair in zip(steps, rows, strict=True) if pair[0]["step"] % 26]
    for step, row in full:
        assert sum(step["losses"]) / len(step["losses"]) == pytest.approx(row["train/loss"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_another_value_of_any_bit_is_another_digest(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).to(dtype)
    digest = Digest(model)
    before = int(digest())
    size = torch.finfo(dtype).bits
    integers = {16: torch.int16, 32: torch.int32, 64: torch.int64}[size]
    for parameter in model.parameters():
        bits = parameter.detach().view(integers).view(-1)
        for place in range(len(bits)):
            for bit in range(size):
                value = 1 << bit if bit < size - 1 else -(1 << bit)
                bits[place] ^= value
                assert int(digest()) != before
                bits[place] ^= value
    assert int(digest()) == before
    with torch.no_grad():
        other = replace_weights(model)
    assert int(Digest(other)()) != before


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn, torch.int8])
def test_unusual_parameters_have_a_digest_too(dtype: torch.dtype) -> None:
    values = torch.ones(4, 3).to(dtype)
    model = nn.ParameterList([nn.Parameter(tensor, requires_grad=False) for tensor in (torch.empty(0), values.t())])
    before = int(Digest(model)())
    values.view(torch.uint8)[0, -1] ^= 1
    assert int(Digest(model)()) != before


def replace_weights(model: nn.Module) -> nn.Module:
    """The same values in other tensors: the biases have changed places."""
    first, second = (layer for layer in model.children() if isinstance(layer, nn.Linear))
    first.bias[0], second.bias[0] = second.bias[0].clone(), first.bias[0].clone()
    return model


def test_the_majority_decides_which_ranks_are_odd() -> None:
    assert odd_ranks(["a", "a", "a"]) == []
    assert odd_ranks(["a", "b", "a"]) == [1]
    assert odd_ranks(["a", "b"]) == [0, 1]
    assert odd_ranks(["a", "b", "c", "a"]) == [0, 1, 2, 3]
    assert odd_ranks(["b", "a", "c", "a", "a"]) == [0, 2]
