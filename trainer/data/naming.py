"""Which samples a step took, and where they come from: for people who look for the one that did harm."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Subset

from trainer.data.sampler import KeyedPermutation, StepPlan, contiguous_slice


def samples_of_step(plan: StepPlan, *, seed: int, step: int, ranks: Iterable[int] | None = None) -> NDArray[np.int64]:
    """The samples of a step in their order, int64 [B].

    Args:
        plan: how samples are dealt.
        seed: the run's.
        step: index of the step in the run, from 0.
        ranks: only what these ranks took; None: all.
    """
    epoch, start, end = plan.bounds(step)
    slices = (contiguous_slice(end - start, rank, plan.world_size) for rank in ranks or range(plan.world_size))
    positions = np.concatenate([np.arange(start + first, start + last) for first, last in slices])
    if not len(positions):
        return positions
    return KeyedPermutation(plan.samples, seed=seed, epoch=epoch)(positions)


def path_of(split: Any, sample: int) -> str | None:
    """The file that a sample is read from, or None where the split does not tell."""
    while isinstance(split, Subset):
        split, sample = split.dataset, split.indices[sample]
    own = getattr(split, "path_of", None)
    if callable(own):
        return str(own(sample))
    # torchvision's folders: a list of (path, class).
    listed = getattr(split, "samples", None)
    if isinstance(listed, list) and listed and isinstance(listed[sample], tuple):
        return str(listed[sample][0])
    return None
