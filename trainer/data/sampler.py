"""Which samples a step sees, in what order: a function of the seed alone.

The order of an epoch is a keyed permutation that is computed on demand, so nothing is stored, starting anywhere costs
nothing, and world size, micro-batch and data workers cannot change it. Step k of an epoch covers the positions
[k*G, min((k+1)*G, N)) of that permutation; ranks and micro-batches take contiguous slices of these.
"""

import hashlib
import math
from collections.abc import Iterator, Sized
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DistributedSampler

_ROUNDS = 6
_FEW, _ROUNDS_OF_FEW = 4096, 16  # over few elements a round hides less: not all orders would be equally likely
_POSITIONS_PER_BLOCK = 16_384


class KeyedPermutation:
    """A pseudo-random permutation of range(size) that can be evaluated at any position.

    An alternating Feistel network over Z_a x Z_b (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002)
    with a*b barely above `size`; the few values at or above `size` are walked along their cycle.

    Args:
        size: number of elements, 1 to 2**62.
        seed: the run's seed.
        epoch: gives each epoch an unrelated order.
    """

    def __init__(self, size: int, *, seed: int, epoch: int) -> None:
        if size < 1:
            raise ValueError(f"a permutation needs at least one element, got {size}")
        self._size = size
        self._a = math.isqrt(size - 1) + 1
        self._b = -(-size // self._a)
        rounds = _ROUNDS if size > _FEW else _ROUNDS_OF_FEW
        digest = hashlib.shake_128(f"paceline order {seed} {epoch}".encode()).digest(8 * rounds)
        self._keys = np.frombuffer(digest, dtype="<u8")

    def __call__(self, positions: NDArray[np.integer]) -> NDArray[np.int64]:
        """Maps positions (any shape, 0 <= position < size) to elements, each exactly once."""
        values = self._encrypt(positions.astype(np.uint64))
        while (outside := values >= self._size).any():
            values[outside] = self._encrypt(values[outside])
        return values.astype(np.int64)

    def _encrypt(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        b = np.uint64(self._b)
        left = values // b
        right = values - left * b
        for index, round_key in enumerate(self._keys):
            if index % 2:
                right = _add_modulo(right, _scatter(left, round_key, self._b), self._b)
            else:
                left = _add_modulo(left, _scatter(right, round_key, self._a), self._a)
        return left * b + right


def _scatter(values: NDArray[np.uint64], round_key: np.uint64, bound: int) -> NDArray[np.uint64]:
    """A keyed hash of `values` into range(bound): two multiply-xorshift rounds (as in splitmix64), then scaling."""
    mixed = (values + round_key) * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(32)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed >>= np.uint64(32)
    mixed *= np.uint64(bound)
    mixed >>= np.uint64(32)
    return mixed


def _add_modulo(values: NDArray[np.uint64], offsets: NDArray[np.uint64], modulus: int) -> NDArray[np.uint64]:
    total = values + offsets
    np.subtract(total, np.uint64(modulus), out=total, where=total >= modulus)
    return total


@dataclass(frozen=True, slots=True)
class StepShare:
    """One rank's part of one optimizer step.

    Attributes:
        step: index of the step in the run, from 0.
        epoch: index of the epoch, from 0.
        samples: samples of the whole step, over all ranks.
        micro_batches: sizes of this rank's micro-batches; a rank without samples has one of size 0.
        ends_epoch: whether this is the epoch's last step.
    """

    step: int
    epoch: int
    samples: int
    micro_batches: tuple[int, ...]
    ends_epoch: bool


@dataclass(frozen=True, slots=True)
class StepPlan:
    """How samples are dealt to steps, ranks and micro-batches; pure arithmetic.

    Attributes:
        samples: samples of an epoch, at least 1.
        global_batch_size: samples of a step; an epoch's last step may have fewer.
        micro_batch_size: the most that one rank takes at once; None: its whole share.
        drop_last: leave out an epoch's last step when it is not full.
    """

    samples: int
    global_batch_size: int
    world_size: int = 1
    rank: int = 0
    micro_batch_size: int | None = None
    drop_last: bool = False

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch, at least 1."""
        full, rest = divmod(self.samples, self.global_batch_size)
        return full if full and (self.drop_last or not rest) else full + 1

    @property
    def largest_micro_batch(self) -> int:
        """The most samples that any rank takes at once."""
        return max(self._micro_batches({0, self.steps_per_epoch - 1}))

    def smallest_micro_batch(self, total_steps: int) -> int:
        """The fewest samples that any rank takes at once in a run; a rank without samples borrows one."""
        last = min(self.steps_per_epoch, total_steps) - 1
        return max(1, min(self._micro_batches({0, last})))

    def _micro_batches(self, steps: set[int]) -> Iterator[int]:
        """The sizes of all ranks' micro-batches in some steps."""
        for rank, step in product(range(self.world_size), steps):
            yield from replace(self, rank=rank).share(step).micro_batches

    def samples_before(self, step: int) -> int:
        """Samples seen, over all ranks, when `step` steps have been taken."""
        epoch, within = divmod(step, self.steps_per_epoch)
        per_epoch = min(self.samples, self.steps_per_epoch * self.global_batch_size)
        return epoch * per_epoch + within * self.global_batch_size

    def samples_in(self, epoch: int, step: int) -> int:
        """Samples of an epoch seen, over all ranks, when `step` steps of the run have been taken."""
        within = min(max(step - epoch * self.steps_per_epoch, 0), self.steps_per_epoch)
        return min(within * self.global_batch_size, self.samples)

    def bounds(self, step: int) -> tuple[int, int, int]:
        """The epoch of a step, and the first and the end position of the whole step in that epoch's order."""
        epoch, within = divmod(step, self.steps_per_epoch)
        start = within * self.global_batch_size
        return epoch, start, min(start + self.global_batch_size, self.samples)

    def share(self, step: int) -> StepShare:
        """This rank's part of a step."""
        epoch, start, end = self.bounds(step)
        first, last = contiguous_slice(end - start, self.rank, self.world_size)
        mine = last - first
        count = max(1, -(-mine // (self.micro_batch_size or max(mine, 1))))
        sizes = tuple(contiguous_slice(mine, i, count)[1] - contiguous_slice(mine, i, count)[0] for i in range(count))
        return StepShare(step, epoch, end - start, sizes, (step + 1) % self.steps_per_epoch == 0)


def count_shifted(before: StepPlan, now: StepPlan, step: int) -> tuple[int, int]:
    """How many samples come twice, and how many not at all, where a run goes on after `step` steps with another plan.

    Steps are what a run counts, so with another number of samples a step it goes on at another place of the order.
    Each epoch's visit to a sample counts; those that a plan leaves out at the end of an epoch do not.
    """
    was, is_in = step // before.steps_per_epoch, step // now.steps_per_epoch
    twice = sum(
        max(0, min(before.samples_in(epoch, step), now.samples_in(epoch, (epoch + 1) * now.steps_per_epoch)) - seen)
        for epoch in range(is_in, was + 1)
        for seen in [now.samples_in(epoch, step)]
    )
    skipped = sum(
        max(0, now.samples_in(epoch, step) - before.samples_in(epoch, step)) for epoch in range(was, is_in + 1)
    )
    return twice, skipped


def contiguous_slice(total: int, index: int, parts: int) -> tuple[int, int]:
    """The index-th of `parts` contiguous slices of range(total), as even as they can be."""
    return total * index // parts, total * (index + 1) // parts


class Indices(NamedTuple):
    """The samples of one micro-batch; the epoch travels with them, so loading processes need not be told.

    Attributes:
        epoch: from 0.
        samples: int64 [B].
        counts: False for a rank without samples in a step: it is given one of another rank's, which must not count.
    """

    epoch: int
    samples: NDArray[np.int64]
    counts: bool = True


class StepSampler(DistributedSampler[Indices]):
    """Yields one rank's micro-batches, step after step, without a stop at an epoch's edge.

    Args:
        dataset: the training split; only its length is used.
        plan: the arithmetic; its world size and rank are this sampler's.
        seed: decides the order.
        first_step: the step to begin with; costs the same wherever it is.
        last_step: the step to end before.
        with_next: end each micro-batch with one more sample, that which follows in the global step (after the last
            the first): the partner of its last one in mixing.
    """

    def __init__(
        self,
        dataset: Sized,
        plan: StepPlan,
        *,
        seed: int,
        first_step: int,
        last_step: int,
        with_next: bool = False,
    ) -> None:
        super().__init__(
            dataset,  # type: ignore[arg-type]  # only the length is used
            num_replicas=plan.world_size,
            rank=plan.rank,
            seed=seed,
            drop_last=plan.drop_last,
        )
        self.plan = plan
        self.first_step = first_step
        self.last_step = last_step
        self.with_next = with_next

    def __len__(self) -> int:
        """Micro-batches that are still to come; counted, so only for tests and short runs."""
        return sum(len(self.plan.share(step).micro_batches) for step in range(self.first_step, self.last_step))

    def __iter__(self) -> Iterator[Indices]:
        """Yields the micro-batches of the steps first_step .. last_step - 1."""
        step = self.first_step
        while step < self.last_step:
            steps = self._steps_of_block(step)
            samples = self._samples(steps)
            taken = 0
            for index in steps:
                share = self.plan.share(index)
                for size in share.micro_batches:
                    length = max(size, 1) + self.with_next
                    yield Indices(share.epoch, samples[taken : taken + length], size > 0)
                    taken += length
            step = steps.stop

    def _steps_of_block(self, step: int) -> range:
        """Steps of one epoch from `step` on whose permutation is computed at once."""
        per_epoch = self.plan.steps_per_epoch
        share = max(1, self.plan.global_batch_size // self.plan.world_size)
        end_of_epoch = (step // per_epoch + 1) * per_epoch
        return range(step, min(step + max(1, _POSITIONS_PER_BLOCK // share), end_of_epoch, self.last_step))

    def _samples(self, steps: range) -> NDArray[np.int64]:
        parts = [self._positions(step) for step in steps]
        order = KeyedPermutation(self.plan.samples, seed=self.seed, epoch=steps.start // self.plan.steps_per_epoch)
        return order(np.concatenate(parts))

    def _positions(self, step: int) -> NDArray[np.int64]:
        _, start, end = self.plan.bounds(step)
        first, last = contiguous_slice(end - start, self.plan.rank, self.plan.world_size)
        positions = np.arange(start + first, start + last) if last > first else np.array([start])
        if not self.with_next:
            return positions
        ends = np.cumsum(np.maximum(self.plan.share(step).micro_batches, 1))
        return np.insert(positions, ends, start + (positions[ends - 1] + 1 - start) % (end - start))


def mix_seed(seed: int, *values: int) -> int:
    """A 63-bit seed for one thing among many (a sample of an epoch, a step of a rank): splitmix64 chained."""
    state = 0
    for value in (seed, *values):
        state = (state ^ (value & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state >> 1


_MASK = 2**64 - 1


def seed_generators(device: torch.device, seed: int) -> None:
    """Seeds the default generators of the CPU and of `device`, without touching other backends (3 us, not 460)."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(seed)
