"""G1: which samples a step sees depends on the seed alone."""

import time
import tracemalloc
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.sampler import KeyedPermutation, StepPlan, StepSampler, count_shifted, mix_seed


@pytest.mark.parametrize("size", [1, 2, 3, 5, 10, 97, 1000, 65_536, 65_537, 1_000_003])
def test_every_element_comes_exactly_once(size: int) -> None:
    order = KeyedPermutation(size, seed=7, epoch=3)(np.arange(size))
    assert np.array_equal(np.sort(order), np.arange(size))


def test_a_position_has_the_same_element_whatever_else_is_asked() -> None:
    permutation = KeyedPermutation(12_345, seed=0, epoch=0)
    whole = permutation(np.arange(12_345))
    assert np.array_equal(permutation(np.arange(500, 600)), whole[500:600])
    assert permutation(np.array([12_344]))[0] == whole[-1]


def test_an_order_of_a_trillion_can_be_entered_anywhere() -> None:
    size = 10**12
    last = KeyedPermutation(size, seed=0, epoch=0)(np.arange(size - 1000, size))
    assert len(set(last.tolist())) == 1000
    assert 0 <= last.min() <= last.max() < size


def test_small_permutations_are_uniform() -> None:
    counts = np.zeros((4, 4))
    for seed in range(4000):
        order = KeyedPermutation(4, seed=seed, epoch=0)(np.arange(4))
        counts[np.arange(4), order] += 1
    # chi-square with 9 degrees of freedom: 33.7 is exceeded once in 10,000
    assert ((counts - 1000) ** 2 / 1000).sum() < 33.7


def test_seeds_and_epochs_give_unrelated_orders() -> None:
    size = 10_000
    orders = [KeyedPermutation(size, seed=s, epoch=e)(np.arange(size)) for s in range(3) for e in range(3)]
    orders.append(np.arange(size))
    for index, one in enumerate(orders):
        for other in orders[:index]:
            # of independent orders, about one position agrees, and the correlation is within 5 / sqrt(n)
            assert (one == other).sum() < 10
            assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(size)


def test_seed_one_epoch_zero_is_not_seed_zero_epoch_one() -> None:
    a = KeyedPermutation(1000, seed=1, epoch=0)(np.arange(1000))
    b = KeyedPermutation(1000, seed=0, epoch=1)(np.arange(1000))
    assert (a == b).sum() < 10


def stream(plan: StepPlan, *, first: int, last: int, seed: int = 0) -> list[list[tuple[int, int]]]:
    """The samples of each step, in order, over all ranks, ghosts left out."""
    result: list[list[tuple[int, int]]] = [[] for _ in range(first, last)]
    for rank in range(plan.world_size):
        mine = StepPlan(
            plan.samples, plan.global_batch_size, plan.world_size, rank, plan.micro_batch_size, plan.drop_last
        )
        batches = iter(StepSampler(range(plan.samples), mine, seed=seed, first_step=first, last_step=last))
        for step in range(first, last):
            for size in mine.share(step).micro_batches:
                indices = next(batches)
                assert len(indices.samples) == max(size, 1)
                assert indices.counts == (size > 0)
                if indices.counts:
                    result[step - first] += [(indices.epoch, sample) for sample in indices.samples.tolist()]
        assert next(batches, None) is None
    return result


@settings(max_examples=60, deadline=None)
@given(
    samples=st.integers(1, 400),
    global_batch=st.integers(1, 150),
    micro=st.one_of(st.none(), st.integers(1, 60)),
    first=st.integers(0, 30),
    drop_last=st.booleans(),
)
def test_the_samples_of_a_step_are_the_same_at_every_world_size(
    samples: int, global_batch: int, micro: int | None, first: int, drop_last: bool
) -> None:
    alone = stream(StepPlan(samples, global_batch, drop_last=drop_last), first=first, last=first + 9)
    for world_size in (2, 3, 4):
        plan = StepPlan(samples, global_batch, world_size, 0, micro, drop_last)
        assert stream(plan, first=first, last=first + 9) == alone


def test_an_epoch_has_every_sample_once_and_the_next_begins_at_once() -> None:
    plan = StepPlan(samples=1003, global_batch_size=100, world_size=3, micro_batch_size=16)
    assert plan.steps_per_epoch == 11
    steps = stream(plan, first=0, last=22)
    for epoch in range(2):
        seen = [pair for step in steps[11 * epoch : 11 * (epoch + 1)] for pair in step]
        assert sorted(seen) == [(epoch, sample) for sample in range(1003)]
    assert [len(step) for step in steps[:11]] == [100] * 10 + [3]


def test_starting_in_the_middle_gives_the_same_as_coming_from_the_start() -> None:
    plan = StepPlan(samples=5000, global_batch_size=64, world_size=2, micro_batch_size=10)
    assert stream(plan, first=100, last=120) == stream(plan, first=0, last=120)[100:]


@pytest.mark.parametrize("first", [0, 40_000_000])
def test_entering_a_hundred_million_samples_anywhere_costs_neither_time_nor_memory(first: int) -> None:
    plan = StepPlan(10**8, 256, world_size=8, rank=3)
    sampler = StepSampler(range(10**8), plan, seed=0, first_step=first, last_step=10**8)
    durations = []
    for _ in range(5):
        started = time.perf_counter()
        next(iter(sampler))
        durations.append(time.perf_counter() - started)
    tracemalloc.start()
    next(iter(sampler))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert min(durations) < 0.05
    assert peak < 10e6


def test_drop_last_leaves_out_the_ragged_step_but_never_the_only_one() -> None:
    assert StepPlan(samples=250, global_batch_size=100, drop_last=True).steps_per_epoch == 2
    assert StepPlan(samples=50, global_batch_size=100, drop_last=True).steps_per_epoch == 1
    assert StepPlan(samples=250, global_batch_size=100, drop_last=True).samples_before(5) == 500


def test_samples_seen_are_counted_exactly() -> None:
    plan = StepPlan(samples=250, global_batch_size=100)
    assert [plan.samples_before(step) for step in range(8)] == [0, 100, 200, 250, 350, 450, 500, 600]


def test_micro_batches_are_as_even_as_they_can_be() -> None:
    sizes = StepPlan(samples=1000, global_batch_size=130, world_size=2, micro_batch_size=32).share(0).micro_batches
    assert sum(sizes) == 65
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= 32


def test_derived_seeds_do_not_collide() -> None:
    seeds = {mix_seed(seed, epoch, sample) for seed in range(5) for epoch in range(20) for sample in range(500)}
    assert len(seeds) == 5 * 20 * 500
    assert all(a != b for a, b in pairwise(sorted(seeds)))


def visits(plan: StepPlan, steps: range) -> set[tuple[int, int]]:
    """Epoch and position of every sample of some steps."""
    return {(epoch, position) for epoch, start, end in map(plan.bounds, steps) for position in range(start, end)}


@pytest.mark.parametrize("drops", list(product([False, True], repeat=2)))
@pytest.mark.parametrize("batches", list(product([1, 3, 4, 9, 10, 12], repeat=2)))
def test_what_comes_twice_or_not_at_all_after_a_change_of_plan_is_counted(
    batches: tuple[int, int], drops: tuple[bool, bool]
) -> None:
    before, now = (StepPlan(10, batch, drop_last=drop) for batch, drop in zip(batches, drops, strict=True))
    for step in range(12):
        seen, passed = visits(before, range(step)), visits(now, range(step))
        coming = visits(now, range(step, step + 150))
        since = step // before.steps_per_epoch
        skipped = {(epoch, position) for epoch, position in passed - seen if epoch >= since}
        assert count_shifted(before, now, step) == (len(seen & coming), len(skipped)), step
