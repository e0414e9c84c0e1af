"""Data sets by name: the training and validation split, the classes, and what the data looks like."""

import difflib
import hashlib
import importlib
import inspect
import os
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Subset

from trainer.config import DataConfig
from trainer.config.targets import check_arguments
from trainer.data import sets
from trainer.data.bad_image import BadImage
from trainer.data.sampler import KeyedPermutation
from trainer.errors import ConfigError
from trainer.preprocessing import Preprocessing

# Any fixed number will do; not 0, which is the default seed of the order of samples.
_LIMIT_SEED = 0x6C696D6974


@runtime_checkable
class Split(Protocol):
    """A map-style data set: sample -> (PIL image or uint8 [C, H, W] tensor, target)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, int]: ...


class TensorImages(Dataset[tuple[torch.Tensor, int]]):
    """A split that lies in memory.

    Attributes:
        images: uint8 [N, C, H, W].
        targets: int64 [N], the classes' indices.
    """

    def __init__(self, images: torch.Tensor, targets: torch.Tensor) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(f"images must be uint8 [N, C, H, W], got {images.dtype} {list(images.shape)}")
        if len(images) != len(targets):
            raise ValueError(f"{len(images)} images but {len(targets)} targets")
        self.images = images
        self.targets = targets.long()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index], int(self.targets[index])

    def select(self, samples: NDArray[np.int64]) -> "TensorImages":
        """The given samples as a split of their own."""
        chosen = torch.from_numpy(samples)
        return TensorImages(self.images[chosen], self.targets[chosen])


@dataclass(frozen=True, slots=True)
class Splits:
    """A data set.

    Attributes:
        train: the training split.
        val: the validation split.
        classes: the classes' names, in the order of the targets.
        preprocessing: the input that the data itself suggests, where no weights ask for another.
        flip: whether a horizontally flipped image keeps its label.
        notes: what the user should be told once.
        bad_files: images that are known to be unreadable and are in neither split.
        title: the data set's name for people.
        verified: whether the files were compared with known checksums.
    """

    train: Split
    val: Split
    classes: list[str]
    preprocessing: Preprocessing
    flip: bool = True
    notes: list[str] = field(default_factory=list)
    bad_files: list[BadImage] = field(default_factory=list)
    title: str = "your own data"
    verified: bool = False

    def __post_init__(self) -> None:
        """Takes any sequence for the classes: what is read back from a checkpoint to be compared is a list."""
        object.__setattr__(self, "classes", list(self.classes))


def names() -> list[str]:
    """The data sets that `data.name` knows, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(sets.__path__))


def load(config: DataConfig) -> Splits:
    """Loads the data set that the configuration names, downloading it where it can be had.

    Raises:
        ConfigError: there is no such data set, its path is wrong, or it cannot be learned from.
        UnfitError: the files are damaged, unreadable or cannot be downloaded.
    """
    splits = _own(config._target_, config.args) if config._target_ else _named(config)
    _check(splits, config)
    if config.limit is None:
        return splits
    notes = [
        f"data.limit={config.limit}: {min(config.limit, len(split)):,} of {len(split):,} {name} images"
        for name, split in (("training", splits.train), ("validation", splits.val))
        if len(split) > config.limit
    ]
    return replace(
        splits,
        train=limited(splits.train, config.limit),
        val=limited(splits.val, config.limit),
        notes=[*splits.notes, *notes],
    )


def limited(split: Split, count: int) -> Split:
    """At most `count` samples: a pseudo-random subset that depends on the split's size and `count` alone.

    A smaller subset is a part of every larger one.
    """
    if len(split) <= count:
        return split
    chosen = np.sort(KeyedPermutation(len(split), seed=_LIMIT_SEED, epoch=0)(np.arange(count)))
    select = getattr(split, "select", None)
    return select(chosen) if select else Subset(split, chosen.tolist())  # pyrefly: ignore[bad-argument-type]


def held_out(path: str, fraction: float) -> bool:
    """Whether a sample belongs to the validation split: its path alone decides, so others never move it."""
    digest = hashlib.blake2b(os.fsencode(path), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def _named(config: DataConfig) -> Splits:
    known = names()
    if config.name not in known:
        close = difflib.get_close_matches(config.name, known, n=1)
        raise ConfigError(
            f"there is no data set called {config.name!r} (data.name)",
            f"did you mean data.name={close[0]}?" if close else f"data.name is one of {', '.join(known)}",
        )
    build = importlib.import_module(f"trainer.data.sets.{config.name}").build
    return _call(build, f"data.name={config.name}", config.args, config)


def _own(target: str, args: dict[str, Any]) -> Splits:
    try:
        build = pkgutil.resolve_name(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"data._target_={target} cannot be imported: {error}",
            "it is package.module.function; the package must be installed or lie in the working directory",
        ) from error
    if not callable(build):
        raise ConfigError(
            f"data._target_={target} is a {type(build).__name__}, which cannot be called",
            "name a function or class that returns a trainer.data.datasets.Splits",
        )
    splits = _call(build, f"data._target_={target}", args)
    if not isinstance(splits, Splits):
        raise ConfigError(
            f"data._target_={target} returned {type(splits).__name__}",
            "return a trainer.data.datasets.Splits(train, val, classes, preprocessing)",
        )
    return splits


def _call(build: Callable[..., Any], origin: str, args: dict[str, Any], *positional: object) -> Any:
    """Calls `build`; arguments that it does not take are the user's mistake, errors inside it are its own."""
    try:
        signature = inspect.signature(build)
    except ValueError:
        # Some classes written in C do not tell their signature: the call itself will complain.
        return build(*positional, **args)
    check_arguments(signature, origin, args, positional)
    return build(*positional, **args)


def _check(splits: Splits, config: DataConfig) -> None:
    origin = f"data._target_={config._target_}" if config._target_ else f"data.name={config.name}"
    for name, split in (("training", splits.train), ("validation", splits.val)):
        if not isinstance(split, Split):
            raise ConfigError(
                f"the {name} split of {origin} is a {type(split).__name__}, which has no length or no items",
                "give a map-style torch.utils.data.Dataset with __len__ and __getitem__",
            )
        # Whoever holds nothing out trains on everything.
        if not len(split) and (split is splits.train or config.val_fraction):
            raise ConfigError(
                f"the {name} split of {origin} is empty",
                "give it more images, or change data.val_fraction (the share that is held out)"
                + ("" if split is splits.train else "; data.val_fraction=0 trains without evaluation"),
            )
    if len(splits.classes) < 2:
        raise ConfigError(
            f"{origin} has {len(splits.classes)} class; a classifier needs at least two",
            "give it images of at least two classes",
        )
