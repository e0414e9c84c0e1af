"""How good predictions are: counted on the device, added up over the ranks once, and only then divided.

Every figure follows from counts and sums of samples, so the ranks' shards may be of any size, and nothing waits for the
device before the end. torchmetrics and scikit-learn define the figures; the tests compare with both. torchmetrics'
own updates would wait for the device at every batch (boolean masks, bincount) and need a square of the classes for
each, and its import takes more than a second.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # torch's own name for it
from torch import Tensor

from trainer.distributed import World

LARGEST_MATRIX = 1000
"""Classes up to which confusions are counted: then 8 MB; their number grows with the square."""

TOP = 5
"""Predictions of a sample among which the true class has to be; means nothing with so many classes or fewer."""

_BINS = 15


@dataclass(frozen=True, slots=True)
class Scores:
    """What an evaluation found.

    Attributes:
        figures: by their short names. `loss` (mean cross entropy), `accuracy`, `accuracy_top5` (with more than five
            classes), `precision`, `recall`, `f1` (means over the classes that occur in targets or predictions), `ece`
            (expected calibration error of the top prediction, 15 equal bins: Guo et al., "On Calibration of Modern
            Neural Networks", 2017), all 0..1 but for the loss.
        samples: how many were counted.
        actual: int64 [C], samples of each class.
        predicted: int64 [C], predictions of each class.
        hits: int64 [C], correct predictions of each class.
        confusion: int64 [C, C], rows are the true classes, columns the predicted ones; None with too many classes.
    """

    figures: dict[str, float]
    samples: int
    actual: Tensor
    predicted: Tensor
    hits: Tensor
    confusion: Tensor | None

    def table(self, classes: list[str]) -> list[dict[str, Any]]:
        """A row for each class; a quotient without a denominator is 0, as scikit-learn has it."""
        columns = {
            "samples": self.actual,
            "predicted": self.predicted,
            "precision": _quotient(self.hits, self.predicted),
            "recall": _quotient(self.hits, self.actual),
            "f1": _quotient(2 * self.hits, self.actual + self.predicted),
        }
        rows = zip(classes, *(column.tolist() for column in columns.values()), strict=True)
        return [dict(zip(("class", *columns), row, strict=True)) for row in rows]


class Tally:
    """Adds up one rank's predictions.

    Args:
        classes: how many there are.
        device: where logits and targets are.
    """

    def __init__(self, classes: int, device: torch.device) -> None:
        self._classes = classes
        self._side = classes if classes <= LARGEST_MATRIX else 0
        # One vector of counts and one of sums: the ranks add up all of it in two messages.
        sizes = [1, _BINS, _BINS, classes, classes, classes, self._side**2]
        self._counts = torch.zeros(sum(sizes), dtype=torch.int64, device=device)
        parts = self._counts.split(sizes)
        self._near, self._bin_samples, self._bin_hits, self._actual, self._predicted, self._hits, self._confusion = (
            parts
        )
        self._sums = torch.zeros(1 + _BINS, dtype=torch.float64, device=device)
        self._loss, self._bin_confidence = self._sums.split([1, _BINS])
        self._edges = torch.linspace(0, 1, _BINS + 1, dtype=torch.float64, device=device)[1:-1]

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Counts a batch.

        Args:
            logits: [B, C], or more columns: a prediction beyond the classes is a wrong one.
            targets: int64 [B]; samples with a negative one are left out.
        """
        scores, target, counted = logits.float(), targets.clamp(min=0), targets >= 0
        log_probabilities = F.log_softmax(scores, dim=1)
        prediction = scores.argmax(dim=1)
        hit = (prediction == target) & counted
        nearest = scores.topk(min(TOP, scores.shape[1]), dim=1).indices
        # Where scores are equal, topk may leave out what argmax takes.
        self._near += (((nearest == target.unsqueeze(1)).any(dim=1) & counted) | hit).sum()
        losses = -log_probabilities.gather(1, target.unsqueeze(1)).squeeze(1)
        self._loss += losses.double().where(counted, 0.0).sum()

        confidence = log_probabilities.amax(dim=1).double().exp()
        bins = torch.bucketize(confidence, self._edges)
        self._bin_samples.index_add_(0, bins, counted.long())
        self._bin_hits.index_add_(0, bins, hit.long())
        self._bin_confidence.index_add_(0, bins, confidence.where(counted, 0.0))

        known = (counted & (prediction < self._classes)).long()
        column = prediction.clamp(max=self._classes - 1)
        self._actual.index_add_(0, target, counted.long())
        self._predicted.index_add_(0, column, known)
        self._hits.index_add_(0, target, hit.long())
        if self._side:
            self._confusion.index_add_(0, target * self._side + column, known)

    def scores(self, world: World) -> Scores:
        """The figures over all ranks, the same on each; to be called once, by all."""
        world.sum(self._counts)
        world.sum(self._sums)
        actual, predicted, hits = (part.cpu() for part in (self._actual, self._predicted, self._hits))
        samples = int(actual.sum())
        figures = {
            "loss": float(self._loss) / max(samples, 1),
            "accuracy": int(hits.sum()) / max(samples, 1),
            **({"accuracy_top5": int(self._near) / max(samples, 1)} if self._classes > TOP else {}),
            **_macro(actual, predicted, hits),
            "ece": float((self._bin_hits - self._bin_confidence).abs().sum()) / max(samples, 1),
        }
        confusion = self._confusion.cpu().view(self._side, self._side) if self._side else None
        return Scores(figures, samples, actual, predicted, hits, confusion)


def _macro(actual: Tensor, predicted: Tensor, hits: Tensor) -> dict[str, float]:
    """Means over the classes that occur at all."""
    occurs = actual + predicted > 0
    by_class = {
        "precision": _quotient(hits, predicted),
        "recall": _quotient(hits, actual),
        "f1": _quotient(2 * hits, actual + predicted),
    }
    return {name: float(values[occurs].sum()) / max(int(occurs.sum()), 1) for name, values in by_class.items()}


def _quotient(counts: Tensor, of: Tensor) -> Tensor:
    return counts.double() / of.clamp(min=1)
