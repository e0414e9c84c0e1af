"""The gradients of a step are those of one big batch, whatever the world size and the micro-batches."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import combinations

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.nn.functional import all_reduce

from tests.workers import alone, check_weights, on_each, run_workers
from trainer.config import DistributedConfig
from trainer.data.sampler import StepPlan, StepSampler
from trainer.distributed import World, average_buffers, data_parallel
from trainer.model.ema import Ema, decay_at
from trainer.numerics.figures import NO_SAMPLE
from trainer.numerics.gate import Gate
from trainer.precision import Scaler, choose
from trainer.training.step import Stepper

SAMPLES, FEATURES, CLASSES = 37, 5, 3
_generator = torch.Generator().manual_seed(0)
INPUTS = torch.randn(SAMPLES, FEATURES, dtype=torch.float64, generator=_generator)
TARGETS = torch.randint(0, CLASSES, (SAMPLES,), generator=_generator)
NO_SAMPLES = (INPUTS[:1], TARGETS[:0])  # as the loader gives it: an image that stands in, and no target


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(FEATURES, 7), nn.Tanh(), nn.Linear(7, CLASSES)).double()


def criterion(output: object, targets: torch.Tensor) -> torch.Tensor:
    assert isinstance(output, torch.Tensor)
    return F.cross_entropy(output, targets, reduction="sum")


def stepper(world: World, model: nn.Module, plan: StepPlan, *, counts_targets: bool, clip: float | None) -> Stepper:
    wrapped = data_parallel(model, world, DistributedConfig())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    optimizer.param_groups[0]["base_lr"] = 0.5
    precision = choose("fp32", world.device)
    return Stepper(
        model=wrapped,
        optimizer=optimizer,
        lr_factor=lambda step: 1 / (1 + step),
        criterion=criterion,
        normaliser=lambda inputs: inputs,
        precision=precision,
        scaler=Scaler(enabled=False, device=world.device),
        world=world,
        clip_norm=clip,
        seed=0,
        counts_targets=counts_targets,
    )


def batches(plan: StepPlan, steps: int, bad: frozenset[int]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for indices in StepSampler(range(SAMPLES), plan, seed=3, first_step=0, last_step=steps):
        kept = [sample for sample in indices.samples.tolist() if sample not in bad] if bad else indices.samples
        if not indices.counts or not len(kept):
            yield NO_SAMPLES
        else:
            yield INPUTS[kept], TARGETS[kept]


def train_weights(
    world: World,
    micro_batch: int | None,
    bad: frozenset[int],
    clip: float | None,
    whole: StepPlan = StepPlan(SAMPLES, 10),  # noqa: B008  # frozen
) -> tuple[list[torch.Tensor], float]:
    plan = replace(whole, world_size=world.world_size, rank=world.rank, micro_batch_size=micro_batch)
    model = network()
    take = stepper(world, model, plan, counts_targets=bool(bad), clip=clip)
    stream = batches(plan, 8, bad)
    for step in range(8):
        take(plan.share(step), stream)
    return [p.detach() for p in model.parameters()], float(world.sum(take.records.drain())[0].sum())


def reference_weights(
    bad: frozenset[int],
    clip: float | None,
    whole: StepPlan = StepPlan(SAMPLES, 10),  # noqa: B008  # frozen
) -> tuple[list[torch.Tensor], float]:
    """One process, one batch a step, torch's own mean loss: what it should be."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    total = 0.0
    sampler = iter(StepSampler(range(SAMPLES), whole, seed=3, first_step=0, last_step=8))
    for step, indices in enumerate(sampler):
        kept = [sample for sample in indices.samples.tolist() if sample not in bad]
        if not kept:
            continue
        optimizer.param_groups[0]["lr"] = 0.5 / (1 + step)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(INPUTS[kept]), TARGETS[kept])
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        total += loss.item() * len(kept)
    return [p.detach() for p in model.parameters()], total


NOTHING: frozenset[int] = frozenset()
BAD = frozenset({2, 3, 11, 30, 31, 32})
_steps = list(StepSampler(range(SAMPLES), StepPlan(SAMPLES, 10), seed=3, first_step=0, last_step=3))
A_WHOLE_STEP = frozenset(_steps[2].samples.tolist())


@pytest.mark.parametrize("bad", [NOTHING, BAD, A_WHOLE_STEP], ids=["all_good", "bad_images", "a_step_of_bad_images"])
@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, 3), (2, None), (3, 2), (4, 1)])
def test_weights_equal_those_of_one_big_batch(world_size: int, micro_batch: int | None, bad: frozenset[int]) -> None:
    expected, expected_loss = reference_weights(bad, None)
    check_weights(on_each(world_size, train_weights, micro_batch, bad, None), expected, expected_loss)


@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, 5), (2, 3), (3, None), (4, 2)])
@pytest.mark.parametrize(
    "whole",
    [
        StepPlan(SAMPLES, 50),
        StepPlan(SAMPLES, 10, drop_last=True),
        StepPlan(SAMPLES, 12),
        StepPlan(2, 4),
    ],
    ids=["an epoch is less than a batch", "drop_last", "one sample in the last step", "fewer samples than workers"],
)
def test_the_ends_of_epochs_weigh_each_sample_alike(world_size: int, micro_batch: int | None, whole: StepPlan) -> None:
    expected, expected_loss = reference_weights(NOTHING, None, whole)
    check_weights(on_each(world_size, train_weights, micro_batch, NOTHING, None, whole), expected, expected_loss)


def test_clipping_sees_the_gradient_of_the_whole_step() -> None:
    expected, expected_loss = reference_weights(NOTHING, 0.05)
    check_weights(run_workers(2, train_weights, 2, NOTHING, 0.05), expected, expected_loss)


def test_what_is_random_in_the_model_depends_on_step_and_rank_not_on_the_past() -> None:
    plan = StepPlan(SAMPLES, 10)
    seen: dict[int, list[torch.Tensor]] = {0: [], 5: []}
    for first in seen:
        model = nn.Sequential(nn.Dropout(0.5), nn.Linear(FEATURES, CLASSES).double())
        model[0].register_forward_hook(lambda _m, _i, out, first=first: seen[first].append(out.detach().clone()))
        take = stepper(alone(), model, plan, counts_targets=False, clip=None)
        stream = iter([(INPUTS[:4], TARGETS[:4])] * 20)
        for step in range(first, 8):
            torch.rand(first + 1)
            share = replace(plan.share(step), micro_batches=(4,))
            take(share, stream)
    for early, late in zip(seen[0][5:], seen[5], strict=True):
        assert torch.equal(early, late)
    assert not torch.equal(seen[0][0], seen[0][1])


def test_what_is_random_in_the_model_differs_between_ranks_and_micro_batches() -> None:
    seen: list[torch.Tensor] = []
    for rank in (0, 1, 0):
        model = nn.Sequential(nn.Dropout(0.5), nn.Linear(FEATURES, CLASSES).double())
        model[0].register_forward_hook(lambda _m, _i, out: seen.append(out.detach() != 0))
        take = stepper(replace(alone(), rank=rank), model, StepPlan(SAMPLES, 10), counts_targets=False, clip=None)
        take(replace(StepPlan(SAMPLES, 10).share(0), micro_batches=(4, 4)), iter([(INPUTS[:4], TARGETS[:4])] * 2))
    of_rank_zero, of_rank_one, again = seen[:2], seen[2:4], seen[4:]
    different = [*of_rank_zero, *of_rank_one]
    assert all(not torch.equal(one, other) for one, other in combinations(different, 2))
    assert all(torch.equal(one, other) for one, other in zip(of_rank_zero, again, strict=True))


def compressed_weights(world: World, compression: str) -> list[torch.Tensor]:
    plan = StepPlan(SAMPLES, 10, world.world_size, world.rank)
    model = network().float()
    wrapped = data_parallel(model, world, DistributedConfig(compression=compression))
    inputs = INPUTS.float()
    for indices in StepSampler(range(SAMPLES), plan, seed=3, first_step=0, last_step=1):
        criterion(wrapped(inputs[indices.samples]), TARGETS[indices.samples]).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("compression", ["bf16", "fp16"])
def test_compressed_gradients_are_those_of_full_precision_but_rounded(compression: str) -> None:
    plain, rounded = run_workers(2, compressed_weights, "none"), run_workers(2, compressed_weights, compression)
    for one, other in zip(rounded[0], rounded[1], strict=True):
        assert torch.equal(one, other)
    differences = [(one - other).abs().max() for one, other in zip(plain[0], rounded[0], strict=True)]
    assert 0 < max(differences) < 0.05


def averaged(world: World) -> tuple[torch.Tensor, int]:
    model = nn.BatchNorm1d(3)
    model(torch.full((4, 3), float(world.rank)))
    average_buffers(model, world)
    assert model.running_mean is not None
    assert model.num_batches_tracked is not None
    return model.running_mean, int(model.num_batches_tracked)


def test_running_statistics_are_averaged_over_the_ranks() -> None:
    for mean, batches_seen in run_workers(3, averaged):
        assert torch.allclose(mean, torch.full((3,), 0.1))
        assert batches_seen == 1


def test_what_the_loading_draws_does_not_reach_the_model() -> None:
    """Loading in the training process draws from the same generator, once for each micro-batch."""
    seen: dict[bool, list[torch.Tensor]] = {False: [], True: []}
    for draws in seen:
        model = nn.Sequential(nn.Dropout(0.5), nn.Linear(FEATURES, CLASSES).double())
        model[0].register_forward_hook(lambda _m, _i, out, draws=draws: seen[draws].append(out.detach().clone()))
        plan = StepPlan(SAMPLES, 10, micro_batch_size=5)
        take = stepper(alone(), model, plan, counts_targets=False, clip=None)

        def stream(draws: bool = draws) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            while True:
                if draws:
                    torch.rand(3)
                yield INPUTS[:5], TARGETS[:5]

        batches_ = stream()
        for step in range(3):
            take(plan.share(step), batches_)
    assert len(seen[True]) == 6
    for one, other in zip(seen[False], seen[True], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("policy", [None, "skip", "rollback"])
@pytest.mark.parametrize("fused", [False, True])
def test_a_step_without_a_sample_moves_nothing_but_the_schedule(fused: bool, policy: str | None) -> None:
    model, plan = network(), StepPlan(SAMPLES, 10)
    take = stepper(alone(), model, plan, counts_targets=True, clip=None)
    take.optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1, fused=fused)
    take.optimizer.param_groups[0]["base_lr"] = 0.1
    if policy is not None:
        take.gate = Gate(model, take.optimizer, torch.device("cpu"), only_looks=policy == "rollback")
    good = (INPUTS[:10], TARGETS[:10])
    stream = iter([NO_SAMPLES, good, NO_SAMPLES, good])
    take.ema = ema = Ema(model, 0.9)

    def weights_after(step: int) -> torch.Tensor:
        take(plan.share(step), stream)
        return nn.utils.parameters_to_vector(model.parameters()).detach().clone()

    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    weights, averages = [], []
    for step in range(4):
        weights.append(weights_after(step))
        averages.append(nn.utils.parameters_to_vector(ema.model.parameters()).clone())
    assert torch.equal(weights[0], before)
    assert not torch.equal(weights[1], weights[0])
    assert torch.equal(weights[2], weights[1])
    assert not torch.equal(weights[3], weights[2])
    assert torch.equal(averages[0], before)
    assert torch.equal(averages[1], before.lerp(weights[1], 1 - decay_at(2, 0.9)))
    assert torch.equal(averages[2], averages[1])
    assert torch.equal(averages[3], averages[2].lerp(weights[3], 1 - decay_at(4, 0.9)))
    assert take.applied_steps == 4
    assert take.records.drain()[2].tolist() == [NO_SAMPLE, 0, NO_SAMPLE, 0]


def statistics(world: World, micro_batch: int | None) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """Running statistics before and after a step in which the last rank has no image, and the weights."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(FEATURES, 7), nn.BatchNorm1d(7), nn.Linear(7, CLASSES)).double()
    plan = StepPlan(SAMPLES, 4 * world.world_size, world.world_size, world.rank, micro_batch)
    take = stepper(world, model, plan, counts_targets=True, clip=None)
    size = micro_batch or 4
    good = [(INPUTS[start : start + size], TARGETS[start : start + size]) for start in range(0, 4, size)]
    take(plan.share(0), iter(good))
    before = [buffer.clone() for buffer in model.buffers()]
    is_last = world.rank == world.world_size - 1
    take(plan.share(1), iter([NO_SAMPLES] * len(good) if is_last else good))
    return before, list(model.buffers()), nn.utils.parameters_to_vector(model.parameters()).detach()


def test_what_stands_in_for_no_sample_is_a_real_one_that_any_network_can_take() -> None:
    class Standardised(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            # Of a constant sample this is not a number, and neither is its gradient times nothing.
            return (inputs - inputs.mean(1, keepdim=True)) / inputs.std(1, keepdim=True)

    model = nn.Sequential(Standardised(), network())
    take = stepper(alone(), model, StepPlan(SAMPLES, 4), counts_targets=True, clip=None)
    take(StepPlan(SAMPLES, 4).share(0), iter([NO_SAMPLES]))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, None), (2, None), (2, 2)])
def test_a_micro_batch_without_an_image_leaves_no_trace_in_running_statistics(
    world_size: int, micro_batch: int | None
) -> None:
    *others, last = on_each(world_size, statistics, micro_batch)
    before, after, weights = last
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    for before, after, same in others:
        assert not any(torch.equal(one, other) for one, other in zip(before, after, strict=True))
        assert torch.equal(weights, same)


class Shared(nn.SyncBatchNorm):
    """torch's works on GPUs only: the same here, from the sums over all ranks, whose shares may be empty."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        def over_all(values: torch.Tensor) -> torch.Tensor:
            return all_reduce(values) if dist.is_initialized() else values

        count = over_all(input.new_tensor([float(len(input))]))
        mean = over_all(input.sum(0)) / count
        deviation = over_all((input - mean).square().sum(0)) / count
        assert self.running_mean is not None
        assert self.running_var is not None
        with torch.no_grad():
            self.running_mean.lerp_(mean, 0.1)
            self.running_var.lerp_(deviation * count / (count - 1), 0.1)
        return (input - mean) / (deviation + self.eps).sqrt() * self.weight + self.bias


def shared_statistics(world: World, *, nobody: bool) -> list[torch.Tensor]:
    """Weights and running statistics after three steps, in the second of which the last rank, or each, has no image."""
    if world.world_size > 1:
        # In this process alone: it refuses such layers where there is no GPU.
        nn.parallel.DistributedDataParallel._passing_sync_batchnorm_handle = lambda self, module: None  # type: ignore[method-assign]
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(FEATURES, 7), Shared(7), nn.Tanh(), nn.Linear(7, 7), Shared(7), nn.Linear(7, 3))
    model = model.double()
    plan = StepPlan(SAMPLES, 8, world.world_size, world.rank)
    take = stepper(world, model, plan, counts_targets=True, clip=None)
    for step, seen in enumerate((8, 0 if nobody else 4, 8)):
        share = plan.share(step)
        mine = slice(4 * world.rank, min(4 * world.rank + 4, seen)) if world.world_size > 1 else slice(seen)
        batch = INPUTS[:8][mine], TARGETS[:8][mine]
        take(share, iter([batch if len(batch[1]) else NO_SAMPLES]))
    return [value.detach().clone() for value in model.state_dict().values()]


@pytest.mark.parametrize("nobody", [False, True])
def test_a_rank_without_an_image_adds_nothing_to_statistics_that_all_ranks_share(*, nobody: bool) -> None:
    expected = shared_statistics(alone(), nobody=nobody)
    assert all(value.isfinite().all() for value in expected)
    for found in run_workers(2, partial(shared_statistics, nobody=nobody)):
        for one, other in zip(found, expected, strict=True):
            assert torch.allclose(one, other, rtol=0, atol=1e-10)
