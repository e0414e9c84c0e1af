"""Models that leave out parts of themselves: exact gradients where that is allowed, else a clear end; and resume."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from tests.trainer_command import PACELINE, run
from tests.workers import alone, check_weights, run_workers, train_here
from trainer import checkpoint
from trainer.config import DistributedConfig, OptimConfig
from trainer.data.sampler import StepPlan
from trainer.distributed import World, data_parallel
from trainer.errors import TrainingError
from trainer.optim import build_optimizer
from trainer.precision import Scaler, choose
from trainer.rundir import RunDir
from trainer.training.step import Stepper

FEATURES, CLASSES, BLOCKS, STEPS, GLOBAL_BATCH = 5, 3, 4, 6, 12
OPTIM = OptimConfig(lr=0.3, weight_decay=0.1, args={"momentum": 0.9})
_generator = torch.Generator().manual_seed(0)
INPUTS = torch.randn(GLOBAL_BATCH * STEPS, FEATURES, dtype=torch.float64, generator=_generator)
TARGETS = torch.randint(0, CLASSES, (GLOBAL_BATCH * STEPS,), generator=_generator)
# (step, rank, micro-batch) -> the blocks that take part; nobody has the first one in step 0, nor the last in step 3.
USED = torch.rand(STEPS, 3, 3, BLOCKS, generator=_generator) < 0.5
USED[0, ..., 0] = USED[3, ..., -1] = False

DROPPING = """
import torch
class Dropping(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(64, 64) for _ in range(4))
        self.head = torch.nn.Linear(64, num_classes)
    def forward(self, images):
        features = images.flatten(1)
        for block in self.blocks:
            if not self.training or torch.rand(()) < 0.5:
                features = features + block(features).tanh()
        return self.head(features)
"""


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(FEATURES, FEATURES) for _ in range(BLOCKS))
        self.head = nn.Linear(FEATURES, CLASSES)
        self.used = torch.ones(BLOCKS, dtype=torch.bool)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        for block, used in zip(self.blocks, self.used, strict=True):
            if used:
                inputs = inputs + block(inputs).tanh()
        return self.head(inputs)


def network() -> Dropping:
    torch.manual_seed(1)
    return Dropping().double()


def summed(output: object, targets: torch.Tensor) -> torch.Tensor:
    assert isinstance(output, torch.Tensor)
    return F.cross_entropy(output, targets, reduction="sum")


def stepper(world: World, model: nn.Module, *, allowed: bool) -> Stepper:
    wrapped = data_parallel(model, world, DistributedConfig(find_unused_parameters=allowed))
    return Stepper(
        model=wrapped,
        optimizer=build_optimizer(OPTIM, model, world.device),
        lr_factor=lambda _: 1.0,
        criterion=summed,
        normaliser=lambda inputs: inputs,
        precision=choose("fp32", world.device),
        scaler=Scaler(enabled=False, device=world.device),
        world=world,
        clip_norm=None,
        seed=0,
        counts_targets=False,
    )


def dropped_weights(world: World, micro_batch: int | None) -> tuple[list[torch.Tensor], float]:
    plan = StepPlan(len(INPUTS), GLOBAL_BATCH, world.world_size, world.rank, micro_batch)
    model = network()
    take = stepper(world, model, allowed=True)

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for step in range(STEPS):
            for index, (first, last) in enumerate(ends(plan, step)):
                model.used = USED[step, world.rank, index]
                yield INPUTS[first:last], TARGETS[first:last]

    stream = batches()
    for step in range(STEPS):
        take(plan.share(step), stream)
    return [p.detach() for p in model.parameters()], float(world.sum(take.records.drain())[0].sum())


def ends(plan: StepPlan, step: int) -> Iterator[tuple[int, int]]:
    """First sample of each micro-batch of a rank, and the one after its last."""
    first = step * GLOBAL_BATCH + plan.rank * GLOBAL_BATCH // plan.world_size
    for size in plan.share(step).micro_batches:
        yield first, first + size
        first += size


def reference_weights(world_size: int, micro_batch: int | None) -> tuple[list[torch.Tensor], float]:
    """One process: the gradient of the mean over the step's samples, none where no sample has made any."""
    model, total = network(), 0.0
    optimizer = build_optimizer(replace(OPTIM, args={"momentum": 0.9, "foreach": False}), model, alone().device)
    for step in range(STEPS):
        optimizer.zero_grad()
        for rank in range(world_size):
            plan = StepPlan(len(INPUTS), GLOBAL_BATCH, world_size, rank, micro_batch)
            for index, (first, last) in enumerate(ends(plan, step)):
                model.used = USED[step, rank, index]
                loss = summed(model(INPUTS[first:last]), TARGETS[first:last])
                (loss / GLOBAL_BATCH).backward()
                total += loss.item()
        optimizer.step()
    return [p.detach() for p in model.parameters()], total


@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, None), (1, 5), (2, None), (2, 3), (3, 2)])
def test_parts_left_out_by_some_ranks_or_by_all_have_exact_gradients(world_size: int, micro_batch: int | None) -> None:
    expected, loss = reference_weights(world_size, micro_batch)
    if world_size == 1:
        found = [dropped_weights(alone(), micro_batch)]
    else:
        found = run_workers(world_size, dropped_weights, micro_batch)
    check_weights(found, expected, loss)


def first_step(world: World) -> str:
    """What comes of a step in which rank 1 alone leaves a block out of its last micro-batch."""
    plan = StepPlan(len(INPUTS), GLOBAL_BATCH, world.world_size, world.rank, 3)
    model = network()
    take = stepper(world, model, allowed=False)
    before = [p.detach().clone() for p in model.parameters()]

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for index, (first, last) in enumerate(ends(plan, 0)):
            model.used[2] = (world.rank, index) != (1, 1)
            yield INPUTS[first:last], TARGETS[first:last]

    try:
        take(plan.share(0), batches())
    except (TrainingError, RuntimeError) as error:
        assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
        return f"{error.problem}\n{error.added}" if isinstance(error, TrainingError) else type(error).__name__
    return "went well"


def test_a_step_is_refused_before_its_update_where_a_rank_leaves_parts_out(tmp_path: Path) -> None:
    other, found = run_workers(2, first_step)
    assert other == "RuntimeError"  # its peer has gone
    assert found == (
        "2 of 10 parameters took no part in step 1, blocks.2.weight, blocks.2.bias: their gradients cannot be averaged "
        "over the ranks\ndistributed.find_unused_parameters=true"
    )


def test_the_command_says_what_to_add_and_with_it_the_run_goes_well(tmp_path: Path) -> None:
    (tmp_path / "dropping.py").write_text(DROPPING)
    arguments = ["data=digits", "model._target_=dropping.Dropping", "tracking=none", "device=cpu", "max_steps=6"]
    arguments += ["run.dir=.", "run.name=a", "cluster.gpus_per_node=2"]
    refused = run(PACELINE, *arguments, cwd=tmp_path)
    assert refused.returncode == 1, refused.stderr
    again = [line for line in refused.stderr.splitlines() if line.startswith("  again")]
    assert len(again) == 1, refused.stderr
    assert again[0].endswith(" distributed.find_unused_parameters=true"), refused.stderr
    done = run(PACELINE, *arguments, "distributed.find_unused_parameters=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("allowed", ["true", "false"])
def test_three_ranks_that_stop_and_go_on_end_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: str
) -> None:
    (tmp_path / "dropping.py").write_text(DROPPING if allowed == "true" else DROPPING.replace("< 0.5", "< 2"))
    monkeypatch.syspath_prepend(tmp_path)
    arguments = ["data=digits", "model._target_=dropping.Dropping", "tracking=none", "device=cpu", "max_steps=8"]
    arguments += [f"run.dir={tmp_path}", "precision=fp32", f"distributed.find_unused_parameters={allowed}"]
    run_workers(3, whole_and_parts, arguments)
    whole, parts = (checkpoint.load(RunDir(tmp_path / name).checkpoint(8)).tensors for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
    assert load_file(RunDir(tmp_path / "whole").weights("last")).keys() >= {"blocks.0.weight"}


def whole_and_parts(world: World, arguments: list[str]) -> None:
    """A training without a stop, and one that stops twice."""
    for name, stops in (("whole", [None]), ("parts", [3, 4, None])):
        for stop_after in stops:
            train_here(world, [*arguments, f"run.name={name}"], stop_after)
