"""Validation: every sample exactly once, at any world size; broken off by all ranks where one must stop."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F  # torch's own name for it
from torch import nn

from trainer.agreement import Agreement, Asked
from trainer.data.loader import on_device
from trainer.data.sampler import Indices, contiguous_slice
from trainer.distributed import World
from trainer.model.heads import logits_and_aux
from trainer.precision import Precision

_MOST_BATCHES_BETWEEN_EXCHANGES = 1000

Wishes = Callable[[], tuple[bool, bool]]
"""() -> whether this rank was asked to stop, and whether it must, for max_time is near."""


class EvaluationStopped(Exception):
    """All ranks have left an evaluation at the same batch, because some rank must stop.

    Attributes:
        asked: what the ranks agreed upon.
    """

    def __init__(self, asked: Asked) -> None:
        super().__init__("evaluation stopped on request")
        self.asked = asked


class ShardBatches(Iterable[Indices]):
    """One rank's batches of a validation split: contiguous, nothing padded, nothing left out.

    Args:
        samples: size of the split.
        batch_size: samples of a batch.
        world: decides the shard; a rank may have none.

    Attributes:
        most_batches: batches of the rank that has the most.
    """

    def __init__(self, samples: int, *, batch_size: int, world: World) -> None:
        self._first, self._last = contiguous_slice(samples, world.rank, world.world_size)
        self._batch_size = batch_size
        largest_shard = -(-samples // world.world_size)
        self.most_batches = -(-largest_shard // batch_size)

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
    *,
    most_batches: int,
    wishes: Wishes = lambda: (False, False),
) -> dict[str, float]:
    """Loss and accuracy over the whole validation split; the same on all ranks.

    Args:
        model: the unwrapped model; a wrapped one could wait for ranks that have no batch.
        batches: this rank's part of the split.
        normaliser: uint8 images -> the model's input.
        precision: of the forward pass.
        world: the workers.
        most_batches: batches of the rank that has the most.
        wishes: asked about once a second whether this rank must stop.

    Returns:
        `val/loss` (mean cross entropy), `val/accuracy` (0..1) and `val/samples`.

    Raises:
        EvaluationStopped: some rank must stop; raised on all ranks.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=world.device)
    agreement = Agreement(world, step=0, most_steps=_MOST_BATCHES_BETWEEN_EXCHANGES)
    no_steps = sums.new_zeros(4, 0)
    mine = on_device(batches, world.device)
    try:
        for number in range(1, most_batches + 1):
            batch = next(mine, None)
            if batch is not None:
                images, targets = batch
                with precision.autocast(world.device):
                    logits, _ = logits_and_aux(model(normaliser(images)))
                loss = F.cross_entropy(logits.float(), targets, reduction="sum")
                correct = (logits.argmax(dim=1) == targets).sum()
                sums += torch.stack([loss.double(), correct.double(), (targets >= 0).sum().double()])
            if agreement.is_due(number):
                asked, late = wishes()
                agreed, _ = agreement.exchange(no_steps, step=number, asked=asked, late=late, save=False)
                if agreed.stop:
                    raise EvaluationStopped(agreed)
    finally:
        model.train(was_training)
    loss_sum, correct_sum, count = world.sum(sums).tolist()
    return {
        "val/loss": loss_sum / max(count, 1),
        "val/accuracy": correct_sum / max(count, 1),
        "val/samples": int(count),
    }
