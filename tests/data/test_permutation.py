"""The order of an epoch is a permutation, and as good as a random one: by its statistics, at fixed seeds."""

from itertools import pairwise, permutations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from trainer.data.sampler import KeyedPermutation

# At fixed seeds a test gives the same figure each time; a sound permutation is beyond this once in 10,000 changes.
_RARE = 1e-4
_SIGMAS = 4


def order(size: int, *, seed: int = 0, epoch: int = 0) -> NDArray[np.int64]:
    return KeyedPermutation(size, seed=seed, epoch=epoch)(np.arange(size))


def assert_uniform(counts: NDArray[np.int64], *, lost_degrees: int = 1) -> None:
    """Chi-square: all cells are equally likely."""
    expected = counts.sum() / counts.size
    assert expected >= 5
    statistic = ((counts - expected) ** 2 / expected).sum()
    tail = stats.chi2.sf(statistic, counts.size - lost_degrees)
    # Too even is as suspicious as too uneven.
    assert _RARE < tail < 1 - _RARE


def test_every_size_up_to_two_thousand_is_a_permutation() -> None:
    for size in range(1, 2001):
        assert np.array_equal(np.sort(order(size, seed=size, epoch=size % 7)), np.arange(size)), size


def near_powers_and_products() -> list[int]:
    powers = [2**k for k in range(11, 21)] + [10**k for k in range(4, 7)]
    products = [a * b for a in (251, 256, 1000) for b in (251, 257, 1001)]
    return sorted({base + offset for base in powers + products for offset in (-1, 0, 1)})


@pytest.mark.parametrize("size", near_powers_and_products())
def test_sizes_near_powers_and_products_are_permutations(size: int) -> None:
    seen = np.zeros(size, bool)
    seen[order(size, seed=5)] = True
    assert seen.all()


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_each_of_all_orders_of_a_few_samples_is_equally_likely(size: int) -> None:
    number = {each: index for index, each in enumerate(permutations(range(size)))}
    counts = np.zeros(len(number), np.int64)
    for seed in range(3000):
        counts[number[tuple(order(size, seed=seed).tolist())]] += 1
    assert_uniform(counts)


@pytest.mark.parametrize("vary", ["seed", "epoch"])
@pytest.mark.parametrize("size", [7, 24, 31])
def test_each_sample_comes_at_each_position_equally_often(size: int, vary: str) -> None:
    counts = np.zeros((size, size), np.int64)
    for value in range(3000):
        counts[np.arange(size), order(size, **{vary: value})] += 1
    assert_uniform(counts, lost_degrees=2 * size - 1)


@pytest.mark.parametrize("size", [10_007, 65_536, 1_000_000])
def test_samples_of_every_region_are_spread_over_the_whole_epoch(size: int) -> None:
    cells = 32
    counts = np.zeros((cells, cells), np.int64)
    np.add.at(counts, (np.arange(size) * cells // size, order(size) * cells // size), 1)
    expected = size / cells**2
    # Positions and samples are exhausted, so rows and columns add up to the same, whatever the order.
    tail = stats.chi2.sf(((counts - expected) ** 2 / expected).sum(), (cells - 1) ** 2)
    assert _RARE < tail < 1 - _RARE


@pytest.mark.parametrize("size", [9_973, 100_000, 262_144])
def test_neighbours_in_the_order_are_not_neighbours_in_the_data(size: int) -> None:
    places = order(size, seed=2)
    for lag in (1, 2, 3, 64, 256, int(size**0.5)):
        assert abs(np.corrcoef(places[lag:], places[:-lag])[0, 1]) < _SIGMAS / np.sqrt(size)
    steps = (places[1:] - places[:-1]) % size
    assert_uniform(np.bincount(steps * 64 // size, minlength=64))
    # Of an unrelated neighbour, one in size - 1 is the next sample, and one the previous.
    assert np.isin(steps, (1, size - 1)).sum() <= stats.poisson.isf(_RARE, 2)


def test_batches_of_a_sorted_folder_mix_its_classes_as_if_drawn() -> None:
    size, batch = 100_352, 256
    of_first_class = order(size, seed=4).reshape(-1, batch) < size // 2
    drawn = stats.hypergeom(size, size // 2, batch)
    dispersion = ((of_first_class.sum(axis=1) - drawn.mean()) ** 2).sum() / drawn.var()
    tail = stats.chi2.sf(dispersion, size // batch - 1)
    assert _RARE < tail < 1 - _RARE


@pytest.mark.parametrize("vary", ["seed", "epoch"])
@pytest.mark.parametrize("size", [501, 4096])
def test_consecutive_epochs_and_seeds_are_unrelated(size: int, vary: str) -> None:
    orders = [order(size, **{vary: value}) for value in range(200)]
    correlations = np.array([np.corrcoef(one, other)[0, 1] for one, other in pairwise(orders)]) * np.sqrt(size - 1)
    assert np.abs(correlations).max() < stats.norm.isf(_RARE / len(correlations))
    assert stats.kstest(correlations, "norm").pvalue > _RARE
    # Two unrelated orders agree in one position on average.
    agreements = sum(int((one == other).sum()) for one, other in pairwise(orders))
    assert abs(agreements - len(correlations)) < _SIGMAS * np.sqrt(len(correlations))
    # Nor does one epoch tell the next one's neighbours: the sample that follows a sample is another one.
    follow = 0
    for one, other in pairwise(orders):
        after = np.empty(size, np.int64)
        after[one] = np.roll(one, -1)
        follow += int((after[other] == np.roll(other, -1)).sum())
    assert abs(follow - len(correlations)) < _SIGMAS * np.sqrt(len(correlations))
