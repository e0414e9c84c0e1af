"""Adapts a split to the sampler's indices: every sample's randomness depends on (seed, epoch, sample) alone."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from trainer.data.bad_image import SKIP, WAYS, BadImage
from trainer.data.bench import Bench
from trainer.data.decode import StorageTrouble
from trainer.data.sampler import Indices, mix_seed
from trainer.data.transforms import BatchAugment
from trainer.errors import UnfitError
from trainer.run.rows import append_json_line, read_json_lines

IGNORED_TARGET = -100
"""The target of an image that must count for nothing; cross_entropy's default `ignore_index`."""

Transform = Callable[[Any], torch.Tensor]


Batch = tuple[torch.Tensor, ...]
"""Images, uint8 [B, C, H, W] (or what a user's own data set gives), and targets, int64 [B]; B is 0 where no image that
counts was dealt, or none can be read: then there is an image all the same, which stands in.

For mixing there may be one image more than targets, and two tensors more: int64 [B] each, which of the images is an
image's partner (the image itself where that is missing), and the partner's target."""


@dataclass(frozen=True, slots=True)
class BadBatch:
    """A batch with an unreadable image; handed over as a value, so that the cause survives loading processes.

    Attributes:
        problem: what cannot be read, and why.
        fix: what to do.
        override: with which the same command works; empty where there is none.
    """

    problem: str
    fix: str
    override: str = ""

    def to_error(self) -> UnfitError:
        """The error for a person."""
        return UnfitError(self.problem, self.fix, instead=((), (self.override,)) if self.override else None)


_ITEM = "its __getitem__ must return (image, class): a PIL image or a uint8 tensor [C, H, W], and a number from 0"


class _BadItem(Exception):
    """What the data set gives for a sample is no image with its class."""


class _NoImage(Exception):
    """Images may be skipped, but all of them are bad."""


class Samples(Dataset[Any]):
    """A split whose items are fetched a batch at a time by (epoch, sample).

    Attributes:
        split: as given.
        bench: where a loading process tells what it is at.

    Args:
        split: map-style, sample -> (image, target); with `batch_augment` it has `images` and `targets`.
        transform: image -> uint8 CHW tensor.
        seed: the run's seed; the generators of torch, numpy and random are seeded for each sample from it.
        batch_augment: augmentation of whole batches, for splits that lie in memory.
        skip_bad: leave unreadable images out of the batch instead of ending the run.
        report: where skipped images are listed.
        mixes: the last of a batch's samples is there as a partner only, as `StepSampler(with_next=True)` gives it.
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
        mixes: bool = False,
    ) -> None:
        self.split = split
        self.bench = Bench(0)
        self._transform = transform
        self._seed = seed
        self._batch_augment = batch_augment
        self._skip_bad = skip_bad
        self._report = report
        self._mixes = mixes
        self._reported: set[str] = set()
        self._readable: torch.Tensor | None = None

    def begin_work(self, workers: int) -> None:
        """Has each of the loading processes, which are still to be started, tell what it is at."""
        self.bench = Bench(workers)

    def __len__(self) -> int:
        """Samples in the split."""
        return len(self.split)

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
        image, label = _labelled(self.split[sample], sample)
        return self._transform(image), label

    def __getitems__(self, indices: Indices) -> Batch | BadBatch:
        """The batch of the given samples."""
        self.bench.begin(int(indices.samples[0]))
        try:
            batch = self._collect(indices) if self._batch_augment is None else self._slice(indices)
        except BadImage as error:
            return BadBatch(f"cannot read the image {error}", WAYS, override=SKIP)
        except StorageTrouble as error:
            fix = "no fault of the image, so it is not skipped; once the storage is back, run the same command again"
            return BadBatch(f"cannot read the image {error.filename}: {error.strerror}", fix)
        except _BadItem as error:
            return BadBatch(str(error), _ITEM)
        except _NoImage as error:
            return BadBatch(str(error), "look at the files; skipped_images.jsonl in the run directory lists them")
        finally:
            self.bench.rest()
        return batch if indices.counts else (batch[0], *(part[:0] for part in batch[1:]))

    def _slice(self, indices: Indices) -> Batch:
        assert self._batch_augment is not None
        chosen = torch.from_numpy(indices.samples)
        images = self._batch_augment(
            self.split.images[chosen], seed=self._seed, epoch=indices.epoch, samples=indices.samples
        )
        targets = self.split.targets[chosen]
        if self._mixes:
            return _paired(images, targets, range(len(chosen)), last=len(chosen) - 1)
        return images, targets

    def _collect(self, indices: Indices) -> Batch:
        images, targets, places = [], [], []
        for place, sample in enumerate(indices.samples.tolist()):
            self.bench.begin(sample)
            try:
                image, target = self[indices.epoch, sample]
            except BadImage as error:
                if not self._skip_bad:
                    raise
                self._list(error)
                continue
            images.append(image)
            targets.append(target)
            places.append(place)
        if not places or (self._mixes and places[0] == len(indices.samples) - 1):
            if self._readable is None:
                self._readable = self._any_image().unsqueeze(0)
            return self._readable, *torch.empty(3 if self._mixes else 1, 0, dtype=torch.int64)
        batch = torch.stack(images), torch.tensor(targets)
        return _paired(*batch, places, last=len(indices.samples) - 1) if self._mixes else batch

    def _any_image(self) -> torch.Tensor:
        for sample in range(len(self.split)):
            try:
                return self[0, sample][0]
            except BadImage as error:
                self._list(error)
        raise _NoImage(f"not one of {len(self.split):,} images can be read")

    def _list(self, error: BadImage) -> None:
        path = str(error.path)
        if self._report is None or path in self._reported:
            return
        if not self._reported:
            # By attempts before this one, and by those who have met a bad one earlier.
            self._reported.update(str(row.get("path")) for row in read_json_lines(self._report))
        if path not in self._reported:
            append_json_line(self._report, {"path": path, "reason": error.reason})
            self._reported.add(path)


def _labelled(item: Any, sample: int) -> tuple[Any, int]:
    """The image of a data set's item, and the number of its class."""
    try:
        image, target = item
    except (TypeError, ValueError) as error:
        raise _BadItem(f"sample {sample} of the data set is a {type(item).__name__}, not a pair") from error
    try:
        label = int(target)
    except (TypeError, ValueError) as error:
        raise _BadItem(f"the class of sample {sample} of the data set is {target!r}") from error
    if isinstance(image, (np.ndarray, torch.Tensor)) and (image.ndim != 3 or isinstance(image, np.ndarray)):
        raise _BadItem(f"the image of sample {sample} of the data set is a {type(image).__name__} {list(image.shape)}")
    # Half of a class, or one as text, would else be taken for another.
    if label != target:
        raise _BadItem(f"the class of sample {sample} of the data set is {target!r}")
    return image, label


def _paired(images: torch.Tensor, targets: torch.Tensor, places: Sequence[int], *, last: int) -> Batch:
    """The batch with everyone's partner: the next sample, where it is there; the one at `last` is a partner only."""
    where = np.asarray(places)
    own = int((where < last).sum())
    followed = np.append(where[1:] == where[:-1] + 1, False)[:own]
    partners = torch.from_numpy(np.arange(own) + followed)
    return images, targets[:own], partners, targets[partners]
