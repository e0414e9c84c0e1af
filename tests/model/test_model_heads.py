"""Logits and auxiliary logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.googlenet import GoogLeNetOutputs
from torchvision.models.inception import InceptionOutputs

from trainer.errors import TrainingError
from trainer.model.heads import logits_and_aux, loss_and_logits

MAIN, FIRST, SECOND = torch.full((2, 3), 1.0), torch.full((2, 3), 10.0), torch.full((2, 3), 100.0)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (MAIN, 1.0),
        (InceptionOutputs(MAIN, FIRST), 1.0 + 0.4 * 10),
        (InceptionOutputs(MAIN, None), 1.0),
        (GoogLeNetOutputs(MAIN, FIRST, SECOND), 1.0 + 0.3 * 110),
        (GoogLeNetOutputs(MAIN, None, None), 1.0),
    ],
)
def test_auxiliary_logits_count_at_the_weight_of_their_paper(output: object, expected: float) -> None:
    loss, logits = loss_and_logits(output, Tensor.mean)
    assert loss.item() == pytest.approx(expected)
    assert torch.equal(logits, MAIN)


def test_a_criterion_per_sample_keeps_its_shape() -> None:
    targets = torch.tensor([0, 2])
    loss, _ = loss_and_logits(
        InceptionOutputs(MAIN, FIRST), lambda logits: F.cross_entropy(logits, targets, reduction="none")
    )
    assert loss.shape == (2,)


def test_an_output_with_logits_is_understood_and_another_is_an_error() -> None:
    class Output:
        logits = MAIN

    assert torch.equal(logits_and_aux(Output())[0], MAIN)
    with pytest.raises(TrainingError, match="returned dict"):
        logits_and_aux({"scores": MAIN})
