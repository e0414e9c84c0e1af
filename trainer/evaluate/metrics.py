"""How good predictions are: counted on the device, added up over the ranks once, and only then divided.

torchmetrics counts each class's hits and errors, from which most figures follow. Its functions do, and not its `Metric`
classes, so that the ranks add up all counts in two messages, their shards may be of any size, and nothing waits for the
device before the end. Where its way would break that, or take too much memory, the figure is counted here.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # torch's own name for it
from torch import Tensor

from trainer.distributed import World
from trainer.evaluate.judge import TOP

LARGEST_MATRIX = 1000
"""Classes up to which confusions are counted: then 8 MB; their number grows with the square."""

_BINS = 15
_NO_CLASS = -1


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
        rates = _rates(self.actual, self.predicted, self.hits)
        columns = {"samples": self.actual, "predicted": self.predicted, **rates}
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
        self._counts = torch.zeros(1 + 5 * classes + self._side**2, dtype=torch.int64, device=device)
        self._near, by_class, self._confusion = self._counts.split([1, 5 * classes, self._side**2])
        self._by_class = by_class.view(classes, 5)
        self._sums = torch.zeros(1 + _BINS, dtype=torch.float64, device=device)
        self._loss, self._gaps = self._sums.split([1, _BINS])
        self._edges = torch.linspace(0, 1, _BINS + 1, dtype=torch.float64, device=device)[1:-1]
        self._labels = torch.arange(classes, device=device)

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Counts a batch.

        Args:
            logits: [B, C], or more columns: a prediction beyond the classes is a wrong one.
            targets: int64 [B]; samples with a negative one are left out.
        """
        # Here, since importing it takes the better part of a second, and only an evaluation needs it.
        from torchmetrics.functional.classification import multilabel_stat_scores

        scores, counted = logits.float(), targets >= 0
        target = targets.where(counted, _NO_CLASS)
        prediction = scores.argmax(dim=1).where(counted, _NO_CLASS)
        hit = (prediction == target) & counted
        # Each class against all others: counting all at once would need a square of the classes for every batch.
        guesses, truths = prediction.unsqueeze(1) == self._labels, target.unsqueeze(1) == self._labels
        self._by_class += multilabel_stat_scores(guesses, truths, self._classes, average=None, validate_args=False)
        # torchmetrics would take 500 MB for 256 samples of 20,000 classes.
        nearest = scores.topk(min(TOP, scores.shape[1]), dim=1).indices
        # Where scores are equal, topk may leave out what argmax takes.
        self._near += ((nearest == target.unsqueeze(1)).any(dim=1) | hit).sum()
        log_probabilities = F.log_softmax(scores, dim=1)
        losses = F.nll_loss(log_probabilities, target, ignore_index=_NO_CLASS, reduction="none")
        self._loss += losses.sum(dtype=torch.float64)
        # torchmetrics would keep every sample for the calibration error, and gather them.
        confidence = log_probabilities.amax(dim=1).double().exp()
        bins = torch.bucketize(confidence, self._edges)
        self._gaps.index_add_(0, bins, (hit.double() - confidence).where(counted, 0.0))
        if self._side:
            # torchmetrics would wait for the device, and with deterministic=true take a square of the classes a sample.
            known = counted & (prediction < self._classes)
            cells = (target * self._side + prediction).where(known, 0)
            self._confusion.index_add_(0, cells, known.long())

    def scores(self, world: World) -> Scores:
        """The figures over all ranks, the same on each; to be called once, by all."""
        world.sum(self._counts)
        world.sum(self._sums)
        hits, false, _, _, actual = self._by_class.cpu().unbind(dim=1)
        predicted, samples = hits + false, int(actual.sum())
        occurs = actual + predicted > 0
        rates = _rates(actual, predicted, hits).items()
        figures = {
            "loss": float(self._loss) / max(samples, 1),
            "accuracy": int(hits.sum()) / max(samples, 1),
            **({"accuracy_top5": int(self._near) / max(samples, 1)} if self._classes > TOP else {}),
            **{name: float(rate[occurs].sum()) / max(int(occurs.sum()), 1) for name, rate in rates},
            "ece": float(self._gaps.abs().sum()) / max(samples, 1),
        }
        confusion = self._confusion.cpu().view(self._side, self._side) if self._side else None
        return Scores(figures, samples, actual, predicted, hits, confusion)


def _rates(actual: Tensor, predicted: Tensor, hits: Tensor) -> dict[str, Tensor]:
    """Precision, recall and F1 of each class."""
    quotients = {"precision": (hits, predicted), "recall": (hits, actual), "f1": (2 * hits, actual + predicted)}
    return {name: count.double() / of.clamp(min=1) for name, (count, of) in quotients.items()}
