"""Your own images: a folder per class, with separate train and val folders or without."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from trainer.config import DataConfig
from trainer.data.bad_image import SKIP, WAYS
from trainer.data.datasets import Splits, held_out
from trainer.data.decode import decode
from trainer.data.scan import Layout, Scan, check_classes, check_learned, layout, scan, some
from trainer.errors import ConfigError, UnfitError
from trainer.preprocessing import Preprocessing
from trainer.wording import plural

# The usual statistics of photographs: ImageNet's; for grey ones the mean over the channels.
PHOTO_MEAN, PHOTO_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_GREY_MEAN, _GREY_STD = (0.449,), (0.226,)
_USUAL_SIZE, _USUAL_RESIZE = 224, 256
_PEEKED_IMAGES = 64

Pairs = list[tuple[str, int]]
"""Paths relative to a scanned folder, with the class's index."""


class PathList:
    """Many paths in one block of bytes.

    A million str objects would be copied into each data-loading process little by little, as their reference
    counts change (pytorch#13246); this block is shared for good.

    Args:
        paths: relative paths, of any bytes that the file system allows.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        encoded = [os.fsencode(path) for path in paths]
        self._ends = np.cumsum([0, *map(len, encoded)])
        self._text = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return os.fsdecode(self._text[self._ends[index] : self._ends[index + 1]])

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def digest(self) -> "xxhash.xxh3_128":
        """Of all paths in their order; milliseconds for a million."""
        digest = xxhash.xxh3_128(self._text)
        digest.update(self._ends.tobytes())
        return digest


class FolderImages(Dataset[tuple[Image.Image, int]]):
    """A split of image files.

    Attributes:
        root: the folder that the paths are relative to.
        paths: of the images.
        targets: int64 [N], the classes' indices.
        channels: 1 to decode to grey, 3 to colour.
    """

    def __init__(self, root: Path, paths: Iterable[str], targets: NDArray[np.int64], channels: int) -> None:
        self.root = str(root)
        self.paths = PathList(paths)
        self.targets = targets
        self.channels = channels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return decode(self.path_of(index), self.channels), int(self.targets[index])

    def path_of(self, index: int) -> str:
        """The file of an image."""
        return f"{self.root}/{self.paths[index]}"

    def select(self, samples: NDArray[np.int64]) -> "FolderImages":
        """The given samples as a split of their own."""
        paths = (self.paths[int(sample)] for sample in samples)
        return FolderImages(Path(self.root), paths, self.targets[samples], self.channels)

    def digest_of_paths(self) -> str:
        """xxh3_128 of the paths in their order, with the classes."""
        digest = self.paths.digest()
        digest.update(self.targets.tobytes())
        return digest.hexdigest()


def build(config: DataConfig) -> Splits:
    """The splits of `data.root`.

    Raises:
        ConfigError: there is no such folder, or its layout is not that of a data set.
        UnfitError: it cannot be read, or holds a file that is no image while data.on_bad_image=error.
    """
    if config.root is None:
        raise ConfigError(f"data.name={config.name} needs data.root", "data.root=/path/to/your/images")
    return from_folder(Path(config.root).expanduser(), config)


def from_folder(root: Path, config: DataConfig, *, native: Preprocessing | None = None) -> Splits:
    """The splits of a folder; raises what `build` raises.

    Args:
        root: the folder.
        config: `data`.
        native: the input that the data suggests; None: look at some of the images.
    """
    places = layout(root)
    scans = [scan(folder) for folder in (places.train, places.val) if folder is not None]
    bad_files = [bad for found in scans for bad in found.bad]
    if bad_files and config.on_bad_image == "error":
        others = f", and {len(bad_files) - 1:,} more like it" if len(bad_files) > 1 else ""
        raise UnfitError(
            f"cannot read the image {bad_files[0]}{others}",
            WAYS,
            instead=((), (SKIP,)),
        )
    _check(scans)
    classes = list(scans[0].images)
    notes = _notes(scans, places)
    if places.val is None:
        train, val = _hold_out(scans[0], config.val_fraction)
        with_images = {target for _, target in train}
        if missing := [name for index, name in enumerate(classes) if index not in with_images]:
            notes.append(f"all images of {some(missing)} fell into the validation split; such classes are not learned")
    else:
        train, val = _pairs(scans[0], classes), _pairs(scans[1], classes)
    if native is None:
        native, chosen = _native([places.train / path for path, _ in _spread(train)], config)
        notes += chosen
    channels = config.channels or native.channels
    return Splits(
        train=_split(places.train, train, channels),
        val=_split(places.val or places.train, val, channels),
        classes=classes,
        preprocessing=native,
        notes=notes,
        bad_files=bad_files,
        title=str(root),
    )


def _check(scans: list[Scan]) -> None:
    train, *rest = scans
    check_classes(train)
    for found in rest:
        check_classes(found, fewest=1)
        check_learned(found.folder, train.folder, [name for name in found.images if name not in train.images])


def _pairs(found: Scan, classes: list[str]) -> Pairs:
    index = {name: number for number, name in enumerate(classes)}
    return [(path, index[name]) for name, paths in found.images.items() for path in paths]


def _hold_out(found: Scan, fraction: float) -> tuple[Pairs, Pairs]:
    train: Pairs = []
    val: Pairs = []
    for pair in _pairs(found, list(found.images)):
        # The path below the class folders' parent: the same split from ROOT as from ROOT/train.
        (val if held_out(pair[0], fraction) else train).append(pair)
    if not train or (fraction and not val):
        raise ConfigError(
            f"data.val_fraction={fraction} leaves {len(train)} images of {found.folder} for training "
            f"and {len(val)} for validation",
            "data.val_fraction=0.3, or more images, or separate folders train/ and val/; data.val_fraction=0 trains "
            "without evaluation",
        )
    return train, val


def _split(folder: Path, pairs: Pairs, channels: int) -> FolderImages:
    targets = np.fromiter((target for _, target in pairs), np.int64, len(pairs))
    return FolderImages(folder, (path for path, _ in pairs), targets, channels)


def _notes(scans: list[Scan], places: Layout) -> list[str]:
    notes = []
    if places.unused:
        notes.append(f"{places.train} is the training split; not read: {some(places.unused)}")
    strays = [path for found in scans for path in found.strays]
    if strays:
        notes.append(f"{plural(len(strays), 'file')} left out, not images: {some(strays)}")
    bad = [bad.path for found in scans for bad in found.bad]
    if bad:
        notes.append(f"{plural(len(bad), 'image')} left out, unreadable (data.on_bad_image=skip): {some(bad)}")
    notes += [f"{some(found.empty)} in {found.folder} without images: no class" for found in scans if found.empty]
    if len(scans) == 2 and (missing := [name for name in scans[0].images if name not in scans[1].images]):
        notes.append(f"{scans[1].folder} has no images of {some(missing)}")
    return notes


def _spread(pairs: Pairs) -> Pairs:
    """A few images from all over the split."""
    count = min(_PEEKED_IMAGES, len(pairs))
    return [pairs[index * len(pairs) // count] for index in range(count)]


def _header(path: Path) -> tuple[tuple[int, int], str] | None:
    try:
        with Image.open(path) as image:
            return image.size, image.mode
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        # A damaged file tells nothing here; it is reported when it is read in full.
        return None


def _native(paths: list[Path], config: DataConfig) -> tuple[Preprocessing, list[str]]:
    """The input that the images suggest: their own size where all are small squares, else the usual one.

    What the configuration has chosen already is not remarked upon.
    """
    headers = [header for path in paths if (header := _header(path)) is not None]
    sizes = {size for size, _ in headers}
    modes = {mode for _, mode in headers}
    grey = bool(modes) and modes <= {"1", "L", "I", "I;16", "I;16B"}
    mean, std = (_GREY_MEAN, _GREY_STD) if grey else (PHOTO_MEAN, PHOTO_STD)
    remarks = grey and config.channels is None
    notes = ["the images are grey: one channel; data.channels=3 pins colour"] if remarks else []
    width, height = sizes.pop() if len(sizes) == 1 else (0, 0)
    if width == height and 4 <= width < _USUAL_SIZE:
        if config.image_size is None:
            notes.append(f"the images have {width}x{width} pixels and are taken as they are; data.image_size=N scales")
        return Preprocessing(width, width, len(mean), mean, std), notes
    return Preprocessing(_USUAL_SIZE, _USUAL_RESIZE, len(mean), mean, std), notes
