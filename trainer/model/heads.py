"""What a network gives back: logits, and for the Inception family auxiliary logits while it trains."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torchvision.models.googlenet import GoogLeNetOutputs
from torchvision.models.inception import InceptionOutputs

from trainer.errors import TrainingError

# Szegedy et al., "Going Deeper with Convolutions" (2014), section 5.
GOOGLENET_AUXILIARY_WEIGHT = 0.3
# The weight of torchvision's own fine-tuning tutorial for Inception v3.
INCEPTION_AUXILIARY_WEIGHT = 0.4


def logits_and_aux(output: Any) -> tuple[Tensor, list[Tensor]]:
    """Takes a model's output apart.

    Args:
        output: a tensor, torchvision's Inception or GoogLeNet outputs, or an object with a tensor `logits`.

    Returns:
        The logits [batch, classes], and the auxiliary logits of the same shape (none in evaluation).

    Raises:
        TrainingError: the output holds no logits that we know how to find.
    """
    if isinstance(output, Tensor):
        return output, []
    if isinstance(output, InceptionOutputs):
        return output.logits, [output.aux_logits] if output.aux_logits is not None else []
    if isinstance(output, GoogLeNetOutputs):
        return output.logits, [aux for aux in (output.aux_logits1, output.aux_logits2) if aux is not None]
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits, []
    raise TrainingError(
        f"the model returned {type(output).__name__} instead of logits",
        "let its forward return a tensor [batch, classes], or an object with such a `logits`",
    )


def loss_and_logits(output: Any, loss_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The loss of a model's output, auxiliary heads included at the weight of their paper.

    Args:
        output: what the model returned.
        loss_of: the criterion, from logits to a loss of any shape.

    Returns:
        The loss (0.4 of each auxiliary loss added for Inception v3, 0.3 for GoogLeNet), and the main logits.

    Raises:
        TrainingError: the output holds no logits.
    """
    logits, auxiliary = logits_and_aux(output)
    loss = loss_of(logits)
    weight = GOOGLENET_AUXILIARY_WEIGHT if isinstance(output, GoogLeNetOutputs) else INCEPTION_AUXILIARY_WEIGHT
    for other in auxiliary:
        loss = loss + weight * loss_of(other)
    return loss, logits
