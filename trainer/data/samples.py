"""Adapts a split to the sampler's indices: every sample's randomness depends on (seed, epoch, sample) alone."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from trainer.data.decode import BadImage
from trainer.data.sampler import Indices, mix_seed
from trainer.data.transforms import BatchAugment
from trainer.rundir import append_json_line

IGNORED_TARGET = -100
"""The target of an image that must count for nothing; cross_entropy's default `ignore_index`."""

Transform = Callable[[Any], torch.Tensor]


Batch = tuple[torch.Tensor, torch.Tensor]
"""Images, uint8 [B, C, H, W] (or what a user's own data set gives), and targets, int64 [B]."""


class BadBatch(Exception):
    """A batch with an unreadable image; handed over as a value, so that the cause survives worker processes."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason


class Samples(Dataset[Any]):
    """A split whose items are fetched a batch at a time by (epoch, sample).

    Args:
        split: map-style, sample -> (image, target); with `batch_augment` it has `images` and `targets`.
        transform: image -> uint8 CHW tensor.
        seed: the run's seed; the generators of torch, numpy and random are seeded for each sample from it.
        batch_augment: augmentation of whole batches, for splits that lie in memory.
        skip_bad: leave unreadable images out of the batch instead of ending the run.
        report: where skipped images are listed.
    """

    def __init__(
        self,
        split: Any,
        transform: Transform,
        *,
        seed: int,
        batch_augment: BatchAugment | None = None,
        skip_bad: bool = False,
        report: Path | None = None,
    ) -> None:
        self._split = split
        self._transform = transform
        self._seed = seed
        self._batch_augment = batch_augment
        self._skip_bad = skip_bad
        self._report = report
        self._reported: set[str] = set()
        self._black: torch.Tensor | None = None

    def __len__(self) -> int:
        """Samples in the split."""
        return len(self._split)

    def __getitem__(self, index: tuple[int, int]) -> tuple[torch.Tensor, int]:
        """One transformed sample, for (epoch, sample).

        Raises:
            BadImage: the image cannot be read.
        """
        epoch, sample = index
        seed = mix_seed(self._seed, epoch, sample)
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed & 0xFFFFFFFF)
        image, target = self._split[sample]
        return self._transform(image), int(target)

    def __getitems__(self, indices: Indices) -> Batch | BadBatch:
        """The batch of the given samples."""
        try:
            batch = self._collect(indices) if self._batch_augment is None else self._slice(indices)
        except BadImage as error:
            # As a value it survives the way out of a loading process.
            return BadBatch(str(error.path), error.reason)
        if not indices.counts and not isinstance(batch, BadBatch):
            batch[1].fill_(IGNORED_TARGET)
        return batch

    def _slice(self, indices: Indices) -> Batch:
        assert self._batch_augment is not None
        chosen = torch.from_numpy(indices.samples)
        images = self._batch_augment(
            self._split.images[chosen], seed=self._seed, epoch=indices.epoch, samples=indices.samples
        )
        return images, self._split.targets[chosen]

    def _collect(self, indices: Indices) -> Batch:
        images, targets = [], []
        for sample in indices.samples.tolist():
            try:
                image, target = self[indices.epoch, sample]
            except BadImage as error:
                if not self._skip_bad:
                    raise
                self._list(error)
                continue
            images.append(image)
            targets.append(target)
        if not images:
            # Every rank must take part in the step: a black image that counts for nothing.
            if self._black is None:
                self._black = torch.zeros_like(self._any_image()).unsqueeze(0)
            return self._black, torch.tensor([IGNORED_TARGET])
        return torch.stack(images), torch.tensor(targets)

    def _any_image(self) -> torch.Tensor:
        for sample in range(len(self._split)):
            try:
                return self[0, sample][0]
            except BadImage as error:
                self._list(error)
        raise BadImage("all images", "not one image of the split can be read")

    def _list(self, error: BadImage) -> None:
        path = str(error.path)
        if self._report is not None and path not in self._reported:
            self._reported.add(path)
            append_json_line(self._report, {"path": path, "reason": error.reason})
