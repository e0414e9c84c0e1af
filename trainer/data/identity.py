"""What a data set is known by: whether a run that goes on still finds the samples that it began with."""

import os
from typing import Any

import numpy as np
import torch
import xxhash

from trainer.data.datasets import Split, Splits
from trainer.data.naming import path_of
from trainer.data.recall import other_classes

_FILES = {"training files": "train", "validation files": "val"}


def identity(splits: Splits) -> dict[str, Any]:
    """What the order of samples depends on besides the seed, as plain values.

    The files' digests are None where a split does not tell its files. One pass over the paths, 1 s for a million of a
    data set with `path_of` and some milliseconds for one with `digest_of_paths`.
    """
    return {
        "training images": len(splits.train),
        "validation images": len(splits.val),
        "classes": splits.classes,
        **{name: _digest(getattr(splits, split)) for name, split in _FILES.items()},
    }


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two identities, in words; what an earlier version did not note differs from nothing."""
    said = []
    for name, value in before.items():
        if name not in _FILES and now[name] != value:
            said.append(
                other_classes(value, now[name]) if name == "classes" else f"{name} were {value} and are now {now[name]}"
            )
    files = [name for name in _FILES if before.get(name) and now.get(name) and before[name] != now[name]]
    if files:
        said.append(f"{' and '.join(files)} were added, removed or renamed")
    return said


def _digest(split: Split) -> str | None:
    """xxh3_128 of the samples' paths in their order, with their classes where those are listed; None: no paths."""
    if not len(split):
        return None
    own = getattr(split, "digest_of_paths", None)
    if callable(own):
        return str(own())
    paths = [path_of(split, index) for index in range(len(split) if path_of(split, 0) else 0)]
    known = [path for path in paths if path]
    if not known:
        return None
    # Where the data lies does not matter: what all have in common is left out.
    common = os.path.commonprefix([min(known), max(known)]).rpartition("/")[0]  # noqa: RUF071  # cut to a folder
    text = "\0".join((path or "")[len(common) :] for path in paths)
    digest = xxhash.xxh3_128(text.encode("utf-8", "surrogatepass"))
    targets = getattr(split, "targets", None)
    if isinstance(targets, (np.ndarray, torch.Tensor)):
        digest.update(np.asarray(targets).tobytes())
    return digest.hexdigest()
