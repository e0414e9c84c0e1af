"""Validation: every sample exactly once, at any world size; broken off by all ranks where one must stop."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from trainer.agreement import Agreement, Asked
from trainer.config import Config
from trainer.data import datasets, loader, transforms
from trainer.data.sampler import Indices, contiguous_slice, mix_seed, seed_generators
from trainer.data.samples import Samples
from trainer.distributed import World
from trainer.errors import UnfitError
from trainer.evaluate.metrics import Scores, Tally
from trainer.model.heads import logits_and_aux
from trainer.model.modes import evaluating
from trainer.precision import Precision
from trainer.preprocessing import Preprocessing

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


class Validation:
    """The validation split of a data set, ready to be evaluated again and again.

    Args:
        config: batch sizes and how images are loaded.
        splits: the data.
        preprocessing: what the models take as input.
        normaliser: uint8 images -> the models' input.
        precision: of the forward pass.
        world: the workers.
        workers: data-loading processes.
        report: where skipped images are listed; None: nowhere.

    Attributes:
        batch_size: samples of a batch.
    """

    def __init__(
        self,
        config: Config,
        splits: datasets.Splits,
        preprocessing: Preprocessing,
        normaliser: nn.Module,
        precision: Precision,
        world: World,
        *,
        workers: int,
        report: Path | None,
    ) -> None:
        self._normaliser, self._precision, self._world = normaliser, precision, world
        self._classes, self._samples = len(splits.classes), len(splits.val)
        self._seed = config.seed
        self._may_lack = config.data.on_bad_image == "skip"
        largest = -(-config.global_batch_size // world.world_size)
        self.batch_size = config.evaluate.batch_size or config.micro_batch_size or largest
        self._shard = ShardBatches(len(splits.val), batch_size=self.batch_size, world=world)
        samples = Samples(
            splits.val,
            transforms.eval_transform(preprocessing),
            seed=config.seed,
            batch_augment=transforms.batch_augment(preprocessing, "none", flip=False, split=splits.val),
            skip_bad=config.data.on_bad_image == "skip",
            report=report,
        )
        self._batches = loader.load_batches(
            samples,
            self._shard,
            workers=workers,
            prefetch=config.data.prefetch,
            timeout_s=config.data.timeout_s,
            device=world.device,
            persistent=True,
        )

    def evaluate(self, models: Mapping[str, nn.Module], wishes: Wishes = lambda: (False, False)) -> dict[str, Scores]:
        """Each model's scores over the whole split; the same on all ranks.

        Args:
            models: unwrapped ones, by what their metrics' names begin with.
            wishes: asked about once a second whether this rank must stop.

        Raises:
            EvaluationStopped: some rank must stop; raised on all ranks.
            UnfitError: a target is none of the classes.
        """
        scores = evaluate(
            models,
            self._batches,
            self._normaliser,
            self._precision,
            self._world,
            classes=self._classes,
            most_batches=self._shard.most_batches,
            seed=self._seed,
            wishes=wishes,
        )
        counted = next(iter(scores.values())).samples
        if counted < self._samples and not self._may_lack:
            raise UnfitError(
                f"the targets of {self._samples - counted:,} of {self._samples:,} validation images are none of the "
                f"{self._classes} classes",
                f"targets count from 0 to {self._classes - 1}",
            )
        return scores


@torch.no_grad()
def evaluate(
    models: Mapping[str, nn.Module],
    batches: Iterable[object],
    normaliser: nn.Module,
    precision: Precision,
    world: World,
    *,
    classes: int,
    most_batches: int,
    seed: int = 0,
    wishes: Wishes = lambda: (False, False),
) -> dict[str, Scores]:
    """Scores over the whole validation split, which is read once for all models; the same on all ranks.

    Args:
        models: unwrapped ones; a wrapped one could wait for ranks that have no batch.
        batches: this rank's part of the split.
        normaliser: uint8 images -> the model's input.
        precision: of the forward pass.
        world: the workers.
        classes: how many there are.
        most_batches: batches of the rank that has the most.
        seed: decides what is random in the models: it must depend neither on the past nor on how images are loaded.
        wishes: asked about once a second whether this rank must stop.

    Returns:
        Each model's scores.

    Raises:
        EvaluationStopped: some rank must stop; raised on all ranks.
    """
    tallies = {name: Tally(classes, world.device) for name in models}
    agreement = Agreement(world, step=0, most_steps=_MOST_BATCHES_BETWEEN_EXCHANGES)
    no_steps = torch.zeros(4, 0, dtype=torch.float64, device=world.device)
    mine = loader.on_device(batches, world.device)
    with evaluating(list(models.values())):
        for number in range(1, most_batches + 1):
            batch = next(mine, None)
            if batch is not None and len(batch[1]):
                images, targets = batch
                for name, model in models.items():
                    seed_generators(world.device, mix_seed(seed, world.rank, number))
                    with precision.autocast(world.device):
                        logits, _ = logits_and_aux(model(normaliser(images)))
                    tallies[name].update(logits, targets)
            if agreement.is_due(number):
                asked, late = wishes()
                agreed = agreement.read()
                agreement.start(no_steps, step=number, asked=asked, late=late, save=False)
                if agreed.stop:
                    raise EvaluationStopped(agreed)
    return {name: tally.scores(world) for name, tally in tallies.items()}


def metrics_of(evaluation: Mapping[str, Scores]) -> dict[str, float]:
    """All figures by their full names, `val/accuracy` and so on, and the number of samples."""
    figures = {
        f"{name}{figure}": value for name, scores in evaluation.items() for figure, value in scores.figures.items()
    }
    return {**figures, "val/samples": next(iter(evaluation.values())).samples}
