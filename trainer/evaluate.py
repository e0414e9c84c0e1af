"""Validation: every sample exactly once, at any world size."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F  # torch's own name for it
from torch import nn

from trainer.data.loader import on_device
from trainer.data.sampler import Indices, contiguous_slice
from trainer.distributed import World
from trainer.model.heads import logits_and_aux
from trainer.precision import Precision


class ShardBatches(Iterable[Indices]):
    """One rank's batches of a validation split: contiguous, nothing padded, nothing left out.

    Args:
        samples: size of the split.
        batch_size: samples of a batch.
        world: decides the shard; a rank may have none.
    """

    def __init__(self, samples: int, *, batch_size: int, world: World) -> None:
        self._first, self._last = contiguous_slice(samples, world.rank, world.world_size)
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[Indices]:
        """Yields the batches' indices."""
        for start in range(self._first, self._last, self._batch_size):
            yield Indices(0, np.arange(start, min(start + self._batch_size, self._last)))


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[object],
    normaliser: nn.Module,
    precision: Precision,
    world: World,
) -> dict[str, float]:
    """Loss and accuracy over the whole validation split; the same on all ranks.

    Args:
        model: the unwrapped model; a wrapped one could wait for ranks that have no batch.
        batches: this rank's part of the split.
        normaliser: uint8 images -> the model's input.
        precision: of the forward pass.
        world: the workers.

    Returns:
        `val/loss` (mean cross entropy), `val/accuracy` (0..1) and `val/samples`.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=world.device)
    for images, targets in on_device(batches, world.device):
        with precision.autocast(world.device):
            logits, _ = logits_and_aux(model(normaliser(images)))
        loss = F.cross_entropy(logits.float(), targets, reduction="sum")
        correct = (logits.argmax(dim=1) == targets).sum()
        sums += torch.stack([loss.double(), correct.double(), (targets >= 0).sum().double()])
    model.train(was_training)
    loss_sum, correct_sum, count = world.sum(sums).tolist()
    return {
        "val/loss": loss_sum / max(count, 1),
        "val/accuracy": correct_sum / max(count, 1),
        "val/samples": int(count),
    }
