"""Every figure equals scikit-learn's, at any world size."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn
from sklearn.calibration import calibration_curve
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from tests.numerics import runs
from tests.workers import alone, run_workers
from trainer.config import ModelConfig
from trainer.data.datasets import TensorImages
from trainer.data.samples import IGNORED_TARGET
from trainer.distributed import World
from trainer.errors import UnfitError
from trainer.evaluate.metrics import LARGEST_MATRIX, Scores, Tally
from trainer.evaluate.validation import ShardBatches, evaluate, metrics_of
from trainer.precision import choose
from trainer.rundir import RunDir
from trainer.training.assembly import assemble

CLASSES = 7


def predictions(samples: int, classes: int = CLASSES) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are often right, and targets; class 2 never occurs, class 3 is never predicted."""
    draw = torch.Generator().manual_seed(samples)
    targets = torch.randint(classes, (samples,), generator=draw)
    targets[targets == 2] = 1
    logits = torch.randn(samples, classes, generator=draw)
    logits[torch.arange(samples), targets] += 1.5
    logits[:, 3] -= 20
    return logits, targets


def score(world: World, logits: torch.Tensor, targets: torch.Tensor, batch_size: int = 4) -> Scores:
    """Scores of a model that hands its input, the logits, through."""
    shard = ShardBatches(len(targets), batch_size=batch_size, world=world)
    batches = [(logits[indices.samples], targets[indices.samples]) for indices in shard]
    models = {"val/": nn.Identity()}
    precision = choose("fp32", world.device)
    found = evaluate(
        models, batches, nn.Identity(), precision, world, classes=logits.shape[1], most_batches=shard.most_batches
    )
    return found["val/"]


def plain(scores: Scores) -> dict[str, Any]:
    confusion = scores.confusion
    assert confusion is not None
    return {"figures": scores.figures, "table": scores.table(list("abcdefg")), "confusion": confusion.tolist()}


def score_plainly(world: World, samples: int) -> dict[str, Any]:
    return plain(score(world, *predictions(samples)))


def scikit_learn(logits: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    chances = logits.double().softmax(dim=1).numpy()
    true, predicted, labels = targets.numpy(), chances.argmax(axis=1), range(logits.shape[1])
    mean: Any = sklearn.precision_recall_fscore_support(true, predicted, average="macro", zero_division=0)
    right, confidence = calibration_curve(true == predicted, chances.max(axis=1), n_bins=15)
    bins = np.searchsorted(np.linspace(0, 1, 16)[1:-1], chances.max(axis=1))
    shares = np.unique(bins, return_counts=True)[1] / len(true)
    return {
        "loss": sklearn.log_loss(true, chances, labels=labels),
        "accuracy": sklearn.accuracy_score(true, predicted),
        "accuracy_top5": sklearn.top_k_accuracy_score(true, chances, k=5, labels=labels),
        "precision": mean[0],
        "recall": mean[1],
        "f1": mean[2],
        "ece": float((shares * np.abs(right - confidence)).sum()),
    }


@pytest.mark.parametrize("samples", [3, 37, 250])
def test_all_figures_equal_scikit_learns(samples: int) -> None:
    logits, targets = predictions(samples)
    scores = score(alone(), logits, targets)
    assert scores.figures == pytest.approx(scikit_learn(logits, targets), abs=1e-6)
    predicted = logits.argmax(dim=1)
    assert scores.confusion is not None
    assert np.array_equal(scores.confusion, sklearn.confusion_matrix(targets, predicted, labels=range(CLASSES)))
    by_class: Any = sklearn.precision_recall_fscore_support(targets, predicted, labels=range(CLASSES), zero_division=0)
    names = ("precision", "recall", "f1", "samples")
    for row, *expected in zip(scores.table(list("abcdefg")), *by_class, strict=True):
        assert [row[name] for name in names] == pytest.approx(expected, abs=1e-12)
    assert int(scores.confusion.diagonal().sum()) / samples == scores.figures["accuracy"]


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_every_sample_is_counted_once_at_any_world_size(world_size: int) -> None:
    # 37 is no multiple of the ranks; of 3 samples some ranks have none.
    for samples in (37, 3):
        expected = score_plainly(alone(), samples)
        for found in run_workers(world_size, score_plainly, samples):
            assert found["table"] == expected["table"]
            assert found["confusion"] == expected["confusion"]
            assert found["figures"] == pytest.approx(expected["figures"], abs=1e-12)
        assert sum(row["samples"] for row in expected["table"]) == samples


def test_skipped_images_count_for_nothing() -> None:
    logits, targets = predictions(40)
    expected = score(alone(), logits[4:], targets[4:])
    logits[:4] = torch.nan
    targets[:4] = torch.tensor([-1, IGNORED_TARGET, IGNORED_TARGET, -1])
    found = score(alone(), logits, targets)
    assert found.samples == 36
    assert found.figures == pytest.approx(expected.figures, abs=1e-12)
    assert plain(found)["confusion"] == plain(expected)["confusion"]


def test_what_is_not_a_number_spoils_no_other_figure() -> None:
    logits, targets = predictions(40)
    expected = score(alone(), logits, targets)
    logits[0] = torch.nan
    found = score(alone(), logits, targets)
    assert np.isnan(found.figures["loss"])
    assert abs(found.figures["accuracy"] - expected.figures["accuracy"]) <= 1 / 40
    assert int(found.actual.sum()) == 40


def test_nothing_to_count_is_no_division_by_zero() -> None:
    logits, _ = predictions(3)
    figures = score(alone(), logits, torch.full((3,), IGNORED_TARGET)).figures
    assert set(figures.values()) == {0.0}


def test_equal_scores_are_never_right_at_the_top_and_wrong_among_the_top_five() -> None:
    figures = score(alone(), torch.zeros(70, CLASSES), torch.arange(70) % CLASSES).figures
    assert figures["accuracy_top5"] >= figures["accuracy"] == pytest.approx(1 / CLASSES)


def test_a_prediction_beyond_the_classes_is_a_wrong_one() -> None:
    logits, targets = predictions(40)
    wide = torch.cat([logits, torch.full((40, 1), 100.0)], dim=1)
    shard = ShardBatches(40, batch_size=8, world=alone())
    batches = [(wide[indices.samples], targets[indices.samples]) for indices in shard]
    found = evaluate(
        {"val/": nn.Identity()}, batches, nn.Identity(), choose("fp32", torch.device("cpu")), alone(),
        classes=CLASSES, most_batches=shard.most_batches,
    )["val/"]  # fmt: skip
    assert (found.figures["accuracy"], found.samples, int(found.predicted.sum())) == (0.0, 40, 0)


def test_with_many_classes_only_three_counts_a_class_are_kept() -> None:
    classes = 21_000
    logits, targets = torch.zeros(4, classes), torch.tensor([0, 1, 2, classes - 1])
    logits[range(4), [0, 1, 3, classes - 1]] = 5.0
    found = score(alone(), logits, targets)
    assert classes > LARGEST_MATRIX
    assert found.confusion is None
    true, predicted = targets.numpy(), logits.argmax(dim=1).numpy()
    expected = sklearn.precision_recall_fscore_support(true, predicted, average="macro", zero_division=0)
    assert [found.figures[name] for name in ("precision", "recall", "f1")] == pytest.approx(expected[:3])
    assert metrics_of({"val/": found})["val/samples"] == 4


@pytest.mark.parametrize("classes", [7, LARGEST_MATRIX, 2 * LARGEST_MATRIX])
def test_batches_are_counted_without_a_value_that_the_host_would_wait_for(classes: int) -> None:
    # Fake tensors have no values: whatever asks for one, or for a size that follows from values, raises.
    with FakeTensorMode():
        tally = Tally(classes, torch.device("cuda"))
        targets = torch.empty(64, dtype=torch.int64, device="cuda")
        for columns in (classes, classes + 1):
            tally.update(torch.empty(64, columns, device="cuda"), targets)
        with pytest.raises(DataDependentOutputException):
            targets.sum().item()


def test_torchmetrics_is_imported_by_the_first_evaluation_and_not_at_the_start() -> None:
    script = """
import sys, torch, trainer.worker
from trainer.evaluate.metrics import Tally
tally = Tally(3, torch.device("cpu"))
before = "torchmetrics" in sys.modules
tally.update(torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64))
print(before, "torchmetrics" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False True\n", "")


def test_a_validation_image_of_no_class_is_an_error_and_not_left_out(tmp_path: Path) -> None:
    parts = assemble(runs.configuration([]), alone(), RunDir(tmp_path))
    assert isinstance(parts.splits.val, TensorImages)
    assert parts.evaluate(lambda: (False, False))["val/"].samples == len(parts.splits.val)
    parts.splits.val.targets[[3, 5]] = -1
    with pytest.raises(UnfitError, match=r"the targets of 2 of 177 validation images are none of the 10 classes"):
        parts.evaluate(lambda: (False, False))


class Restless(nn.Module):
    """Forgets to ask whether it trains."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(64, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(nn.functional.dropout(images.flatten(1), 0.5))


def test_what_is_random_in_a_model_that_is_evaluated_depends_on_nothing_but_the_seed(tmp_path: Path) -> None:
    config = runs.configuration([], model=ModelConfig(_target_=f"{__name__}.Restless"))
    found = set()
    for loading in (0, 1):
        parts = assemble(replace(config, data=replace(config.data, workers=loading)), alone(), RunDir(tmp_path))
        for past in (1, 2):
            torch.manual_seed(past)
            found.add(parts.evaluate(lambda: (False, False))["val/"].figures["loss"])
    assert len(found) == 1
