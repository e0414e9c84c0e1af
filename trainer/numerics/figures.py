"""What is known about every single step: added up on the device, over all ranks known a moment later."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch

MOST_STEPS = 500
"""Steps whose figures the device keeps; the ranks exchange them at least that often."""

PASSED_OVER = 2.0
"""What `skipped` is for a step that was not computed at all: it has no loss."""

NO_SAMPLE = 3.0
"""What it is for a step of which no image could be read: it has no loss either."""

_ROWS = ("losses", "counted", "skipped", "norms")


class StepRecords:
    """The figures of the latest steps on the device, so that no step waits for it and each can be told from the next.

    Args:
        capacity: the most steps between two calls of `drain`.
        device: where the losses are.

    Attributes:
        losses: for each place a float64 scalar: sum of this rank's losses.
        counted: samples behind it, where they are counted.
        skipped: 1 where the update was left out, PASSED_OVER where the whole step was, NO_SAMPLE where it had none;
            rank 0's alone.
        norms: norm of the gradients before clipping, where they are clipped; rank 0's alone.
    """

    def __init__(self, capacity: int, device: torch.device) -> None:
        self._capacity = capacity
        self._values = torch.zeros(4, capacity, dtype=torch.float64, device=device)
        # Views that are made once: taking one at every step would cost more than the addition.
        self.losses, self.counted, self.skipped, self.norms = (row.unbind() for row in self._values)
        self._taken = 0

    def begin(self) -> int:
        """The place of a new step."""
        place = self._taken % self._capacity
        self._taken += 1
        return place

    def drain(self) -> torch.Tensor:
        """The figures since the last call, float64 [4, steps]; begins anew."""
        taken = self._values[:, : min(self._taken, self._capacity)].clone()
        self._values.zero_()
        self._taken = 0
        return taken


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of consecutive steps over all ranks; plain values, kept in checkpoints.

    Attributes:
        first: the first of these steps, counted from 1.
        losses: sum of the losses of each step's samples.
        counted: samples behind it, 0 where all that were dealt count.
        skipped: 1 where the update was left out, PASSED_OVER where the whole step was, NO_SAMPLE where it had none.
        norms: norm of the gradients before clipping, 0 where they are not clipped.
    """

    first: int
    losses: list[float]
    counted: list[float]
    skipped: list[float]
    norms: list[float]

    @classmethod
    def of(cls, first: int, values: list[float]) -> "Figures":
        """Of what `StepRecords.drain` has given, flattened."""
        steps = len(values) // 4
        return cls(first, *(values[row * steps : (row + 1) * steps] for row in range(4)))

    @classmethod
    def joined(cls, parts: Sequence["Figures"]) -> "Figures":
        """Those of steps that follow one another."""
        return cls(
            parts[0].first,
            *(list(chain.from_iterable(getattr(part, row) for part in parts)) for row in _ROWS),
        )

    def mean_loss(self, samples_of: Callable[[int], int]) -> float:
        """Mean over the samples; steps without a loss, and those left out for one that is not finite, do not count.

        Args:
            samples_of: samples that were dealt to a step.
        """
        kept = [
            i
            for i, (loss, skipped) in enumerate(zip(self.losses, self.skipped, strict=True))
            if not skipped or (skipped < PASSED_OVER and math.isfinite(loss))
        ]
        samples = sum(self.counted[i] for i in kept) or sum(samples_of(self.first + i) for i in kept)
        # Rounded once, so that it does not matter in what portions the figures came.
        return math.fsum(self.losses[i] for i in kept) / samples if samples else math.nan

    def samples(self, samples_of: Callable[[int], int]) -> list[int]:
        """Each step's samples: those that were counted, else those that were dealt."""
        return [int(counted) or samples_of(self.first + i) for i, counted in enumerate(self.counted)]

    def step_losses(self, samples_of: Callable[[int], int]) -> list[float]:
        """Each step's mean loss over its samples; NaN where it was passed over or has none."""
        steps = zip(self.losses, self.samples(samples_of), self.skipped, strict=True)
        return [math.nan if skipped >= PASSED_OVER else loss / max(count, 1) for loss, count, skipped in steps]

    def passed_over(self, samples_of: Callable[[int], int]) -> int:
        """Samples that were dealt to steps that were passed over."""
        return sum(samples_of(self.first + i) for i, skipped in enumerate(self.skipped) if skipped == PASSED_OVER)

    def not_finite(self) -> list[int]:
        """The steps with a loss or a norm that is not finite."""
        pairs = enumerate(zip(self.losses, self.norms, strict=True))
        return [self.first + i for i, (loss, norm) in pairs if not (math.isfinite(loss) and math.isfinite(norm))]

    def mean_norm(self) -> float | None:
        """Mean of the finite norms of the gradients; None where none was looked at."""
        norms = [norm for norm in self.norms if norm > 0 and math.isfinite(norm)]
        return math.fsum(norms) / len(norms) if norms else None
