"""Unreadable images may be skipped, but a run whose data is gone must not end as if it had learned from it."""

from collections.abc import Callable

from trainer.errors import UnfitError
from trainer.numerics.figures import NO_SAMPLE, Figures

_FEWEST = 100
"""Samples over which the share is judged, or an epoch where that has fewer."""


class SkipWatch:
    """Ends a run in which more than half of the latest samples could not be read.

    All ranks must hand it the same figures, so that they end at the same step.

    Args:
        samples_of: samples that were dealt to a step, counted from 1.
        epoch: samples of an epoch.
    """

    def __init__(self, samples_of: Callable[[int], int], *, epoch: int) -> None:
        self._samples_of = samples_of
        self._enough = min(_FEWEST, epoch)
        self._seen = self._dealt = self._counted = 0

    def check(self, figures: Figures) -> None:
        """Takes in steps; those already known count once, those whose update was left out do not.

        Raises:
            UnfitError: most of the latest images could not be read.
        """
        for step, (counted, left_out) in enumerate(
            zip(figures.counted, figures.skipped, strict=True), start=figures.first
        ):
            if step > self._seen and left_out in (0.0, NO_SAMPLE):
                self._seen = step
                self._dealt += self._samples_of(step)
                self._counted += round(counted)
        if self._dealt < self._enough:
            return
        refuse_loss(self._dealt, self._counted, what="training images")
        self._dealt = self._counted = 0


def refuse_loss(dealt: int, counted: int, *, what: str) -> None:
    """Raises an UnfitError where less than half of the samples could be read."""
    if 2 * counted < dealt:
        raise UnfitError(
            f"{dealt - counted:,} of the last {dealt:,} {what} could not be read, too many to be skipped",
            "see skipped_images.jsonl in the run directory; once they can be read, run the same command again",
        )
