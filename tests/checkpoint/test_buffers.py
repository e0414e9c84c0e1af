"""Buffers of any dtype, persistent or not, and different on each rank, come back bit for bit."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.numerics import runs
from tests.workers import alone, on_each, run_workers
from trainer import checkpoint
from trainer.checkpoint import Checkpoint
from trainer.checkpoint.buffers import give_back, own_to_ranks
from trainer.config import ModelConfig
from trainer.distributed import World, average_buffers
from trainer.errors import ConfigError
from trainer.rundir import RunDir
from trainer.training.assembly import assemble
from trainer.training.fitting import check_fits
from trainer.training.state import Progress, put_back, snapshot, weights_in


class Counting(runs.Stretching):
    """Has buffers of many kinds, all of which change while it trains and count in what comes out."""

    def __init__(self, num_classes: int, width: int = 2) -> None:
        super().__init__(num_classes)
        self.register_buffer("total", torch.ones(width, dtype=torch.float64))
        self.register_buffer("product", torch.ones(1, dtype=torch.bfloat16))
        self.register_buffer("hidden", torch.zeros(width), persistent=False)
        self.register_buffer("wave", torch.ones(3, dtype=torch.complex64), persistent=False)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.total.add_(images.double().mean() / 3)
            self.product.mul_(1.5)
            self.hidden.add_(images.mean() / 7)
            self.wave.mul_(1j * images.mean().item())
            self.count.add_(1)
        factor = self.total.sum() + self.product.double().sum() + self.hidden.sum() + self.wave.real.sum() + self.count
        return super().forward(images) * (1 + factor.float() / 100)


class Rare(runs.Stretching):
    """Has buffers that no file of safetensors holds, or that DDP does not send."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("tiny", torch.zeros(2, 3).to(torch.float8_e4m3fnuz).T, persistent=False)
        self.register_buffer("short", torch.full((2, 3), int(os.environ.get("RANK", "0")), dtype=torch.int16).T)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.tiny.copy_(self.tiny.float() + 8 * images.mean())
            self.short.add_(3)
        return super().forward(images) * (1 + (self.tiny.float().sum() + self.short.sum()) / 100)


def parts_of(world: World, folder: Path, model: str = "Counting") -> Any:
    config = runs.configuration([], model=ModelConfig(_target_=f"{__name__}.{model}"))
    return assemble(config, world, RunDir(folder))


def buffers_after(
    world: World, folder: Path, steps: int, model: str = "Counting"
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """This rank's buffers after some steps, and what other parts have that go on from a checkpoint of it."""
    parts = parts_of(world, folder, model)
    batches = parts.batches(0)
    for step in range(steps):
        parts.stepper(parts.plan.share(step), batches)
    before = [buffer.clone() for buffer in parts.model.buffers()]
    taken = snapshot(parts, Progress(step=steps))
    average_buffers(parts.model, world)
    # Evaluation has its way with them, but not with their dtypes.
    assert [buffer.dtype for buffer in parts.model.buffers()] == [buffer.dtype for buffer in before]
    if world.is_rank_zero:
        checkpoint.save(RunDir(folder).checkpoint(steps), taken)
    world.from_rank_zero(None)
    again = parts_of(world, folder, model)
    put_back(again, checkpoint.load(RunDir(folder).checkpoint(steps)))
    return before, list(again.model.buffers())


@pytest.mark.parametrize("world_size", [1, 2])
def test_each_rank_goes_on_with_its_own_buffers(tmp_path: Path, world_size: int) -> None:
    ranks = on_each(world_size, buffers_after, tmp_path, 3)
    for before, after in ranks:
        for one, other in zip(before, after, strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)
    if world_size == 2:
        assert not torch.equal(ranks[0][0][2], ranks[1][0][2])
    saved = checkpoint.load(RunDir(tmp_path).checkpoint(3))
    assert "hidden" not in weights_in(saved.tensors)
    assert saved.tensors["model.total"].dtype == torch.float64


def rare_buffers_after(world: World, folder: Path) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """As `buffers_after`, in a dtype that can be handed to another process."""
    before, after = buffers_after(world, folder, 3, "Rare")
    assert [buffer.dtype for buffer in after] == [buffer.dtype for buffer in before]
    return [buffer.double() for buffer in before], [buffer.double() for buffer in after]


@pytest.mark.parametrize("world_size", [1, 2])
def test_buffers_of_rare_dtypes_begin_as_rank_0s_and_are_kept(tmp_path: Path, world_size: int) -> None:
    for before, after in on_each(world_size, rare_buffers_after, tmp_path):
        assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
        tiny, short = before[:2]
        assert bool(tiny.all())
        assert torch.equal(short, torch.full((3, 2), 9.0, dtype=torch.float64))


def test_a_rank_that_is_new_begins_with_the_average(tmp_path: Path) -> None:
    ranks = run_workers(2, buffers_after, tmp_path, 3)
    parts = parts_of(alone(), tmp_path)
    put_back(parts, checkpoint.load(RunDir(tmp_path).checkpoint(3)))
    both = [dict(zip(dict(parts.model.named_buffers()), before, strict=True)) for before, _ in ranks]
    for name, buffer in parts.model.named_buffers():
        assert buffer.dtype == both[0][name].dtype
        if buffer.is_floating_point():
            mean = (both[0][name].double() + both[1][name].double()) / 2
            assert torch.equal(buffer, mean.to(buffer.dtype)), name


def test_a_checkpoint_that_has_them_as_one_row_still_loads(tmp_path: Path) -> None:
    parts = parts_of(alone(), tmp_path)
    taken = snapshot(parts, Progress())
    tensors = {name: tensor for name, tensor in taken.tensors.items() if not name.startswith("each_rank.")}
    floating = [buffer.detach().clone() for buffer in parts.model.buffers() if buffer.is_floating_point()]
    rows = nn.utils.parameters_to_vector([buffer + 1 for buffer in floating]).unsqueeze(0)
    put_back(parts, Checkpoint({**tensors, "ranks.buffers": rows}, taken.state))
    now = [buffer for buffer in parts.model.buffers() if buffer.is_floating_point()]
    for one, other in zip(floating, now, strict=True):
        assert other.dtype == one.dtype
        assert torch.equal(other, one + 1)


def test_a_hidden_buffer_of_another_shape_is_another_model(tmp_path: Path) -> None:
    taken = snapshot(parts_of(alone(), tmp_path), Progress())
    with pytest.raises(ConfigError, match=r"hidden is float32 \[2\] there and float32 \[1\] here"):
        check_fits(taken, 0, Counting(10, width=1))


def test_a_view_that_no_step_can_change_is_left_alone() -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("constant", torch.ones(1).expand(4), persistent=False)
    tensors = own_to_ranks(model, alone())
    assert tensors == {}
    give_back(model, {"each_rank.constant": torch.zeros(1, 4)}, alone())
