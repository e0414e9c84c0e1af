"""What lies in a folder of images: classes, images, broken files, strays, separate train and val folders.

Standard library only: the folder is glanced at before anything heavy is imported (`trainer.data.glance`).
"""

import difflib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from trainer.data.bad_image import BadImage
from trainer.errors import ConfigError, UnfitError

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".gif", ".bmp"),
    *(".tif", ".tiff", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm"),
)
"""What an image's name ends in, in any case."""

FEWEST_CLASSES = 2
"""Of a training split."""

_TRAIN_NAMES = ("train", "training")
_VAL_NAMES = ("val", "valid", "validation", "test")
_THREADS = 8
_NAMED = 3


@dataclass(slots=True)
class Layout:
    """Where the class folders are.

    Attributes:
        train: the folder with a folder per class for training.
        val: the same for validation; None where it is to be held out from `train`.
        unused: folders beside them that are not read.
    """

    train: Path
    val: Path | None = None
    unused: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Scan:
    """What a folder with a folder per class holds.

    Attributes:
        folder: the folder.
        images: class -> sorted paths relative to `folder`; classes without an image are not in it.
        bad: files that cannot be images, although they are called so.
        strays: other files, relative to `folder`.
        empty: class folders without an image.
    """

    folder: Path
    images: dict[str, list[str]] = field(default_factory=dict)
    bad: list[BadImage] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)


def _absent(root: Path) -> ConfigError:
    """The error for a root that does not exist, with a folder beside it whose name is near."""
    problem = f"data.root={root} does not exist"
    beside = root.absolute().parent
    names = [folder.name for folder in folders_in(beside)] if beside.is_dir() else []
    near = next(iter(difflib.get_close_matches(root.name, names, n=1)), None)
    if near is None:
        return ConfigError(problem, "give the folder that holds a folder per class")
    meant = f"data.root={root.with_name(near)}"
    return ConfigError(problem, f"did you mean {meant}?", instead=([f"data.root={root}"], [meant]))


def layout(root: Path) -> Layout:
    """Finds train and val folders; without them the root's own folders are the classes.

    Raises:
        ConfigError: the root does not exist, is a file, its splits have no class folders, or a class no readable name.
        UnfitError: it cannot be read.
    """
    try:
        if not root.exists():
            raise _absent(root)
    except PermissionError as error:
        raise unreadable(root, error) from error
    if not root.is_dir():
        is_image = root.name.lower().endswith(EXTENSIONS)
        raise ConfigError(
            f"data.root={root} is a file",
            "give the folder that holds a folder per class"
            if is_image
            else "unpack it, and give the folder that it was unpacked to",
        )
    folders = {path.name.lower(): path for path in folders_in(root)}
    train = next((folders[name] for name in _TRAIN_NAMES if name in folders and folders_in(folders[name])), None)
    _check_names(train or root)
    if train is None:
        if folders and set(folders) <= {*_TRAIN_NAMES, *_VAL_NAMES}:
            raise ConfigError(
                f"data.root={root} has the splits {some(sorted(folders))}, but they hold no folder per class",
                f"put the images into {root}/train/CLASS/",
            )
        return Layout(root)
    val = next((folders[name] for name in _VAL_NAMES if name in folders), None)
    if val is not None and not folders_in(val):
        raise ConfigError(
            f"{val} holds no folder per class, so its images have no labels",
            f"make the same folders as in {train}, or move {val.name}/ away to hold out data.val_fraction",
        )
    return Layout(train, val, sorted(path.name for path in folders.values() if path not in (train, val)))


def _check_names(folder: Path) -> None:
    """Refuses classes that no result could name."""
    unnamed = [path.name for path in folders_in(folder) if not _is_text(path.name)]
    if unnamed:
        raise ConfigError(
            f"{folder} has folders whose names are not UTF-8: {some(unnamed)}",
            f"rename them: `convmv -f latin1 -t utf8 --notest {folder}/*`, with the encoding that they have",
        )


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_classes(found: Scan, fewest: int = FEWEST_CLASSES) -> None:
    """Refuses a folder with less than `fewest` classes.

    Raises:
        ConfigError: says what it holds instead.
    """
    if not found.images:
        files = [str(bad) for bad in found.bad] or found.strays
        holds = f"only {some(files)}" if files else "nothing"
        raise ConfigError(
            f"{found.folder} has no images in folders, one for each class: it holds {holds}",
            f"put the images into {found.folder}/CLASS/, or give another data.root",
        )
    if len(found.images) < fewest:
        raise ConfigError(
            f"{found.folder} has the images of only one class, {some(list(found.images))}",
            "a classifier needs a folder for each of two classes or more",
        )


def check_learned(val: Path, train: Path, unknown: list[str]) -> None:
    """Refuses a validation split with classes that the training split has no images of.

    Args:
        val: the validation folder.
        train: the training folder.
        unknown: such classes.

    Raises:
        ConfigError: there are some.
    """
    if unknown:
        raise ConfigError(
            f"{val} has classes that {train} has no images of: {some(unknown)}", "give both the same folders"
        )


def scan(folder: Path) -> Scan:
    """Everything below a folder with a folder per class, in an order that does not depend on the file system.

    Raises:
        UnfitError: a folder cannot be read.
    """
    found = Scan(folder)
    names = []
    for entry in _entries(folder):
        if is_hidden(entry) or not is_folder(entry):
            found.strays.append(entry.name)
        else:
            names.append(entry.name)
    names.sort()
    # Threads hide the latency of network file systems; on a local disk they cost nothing.
    with ThreadPoolExecutor(_THREADS) as pool:
        parts = pool.map(lambda name: _scan_class(folder, name), names)
        for name, (images, bad, strays) in zip(names, parts, strict=True):
            if images:
                found.images[name] = sorted(images)
            else:
                found.empty.append(name)
            found.bad += bad
            found.strays += strays
    found.bad.sort(key=lambda bad: bad.path)
    found.strays.sort()
    return found


def some(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(os.fsencode(name).decode("utf-8", "replace") for name in names[:_NAMED])
    return f"{shown} and {len(names) - _NAMED:,} more" if len(names) > _NAMED else shown


def _scan_class(folder: Path, name: str) -> tuple[list[str], list[BadImage], list[str]]:
    images: list[str] = []
    bad: list[BadImage] = []
    strays: list[str] = []
    # Each folder with the folders that it lies in, by device and inode: one of these again would never end.
    unseen = [(name, _with_parents(folder / name))]
    while unseen:
        parent, above = unseen.pop()
        for entry in _entries(folder / parent):
            path = f"{parent}/{entry.name}"
            if is_hidden(entry):
                strays.append(path)
            elif is_folder(entry):
                if (place := _place(entry.path)) not in above:
                    inside = _with_parents(Path(entry.path)) if entry.is_symlink() else {place}
                    unseen.append((path, above | inside))
            elif not is_called_image(entry):
                strays.append(path)
            elif reason := _why_unreadable(entry):
                bad.append(BadImage(entry.path, reason))
            else:
                images.append(path)
    return images, bad, strays


def is_hidden(entry: "os.DirEntry[str]") -> bool:
    """Whether it is left alone, whatever it is."""
    return entry.name.startswith(".")


def is_called_image(entry: "os.DirEntry[str]") -> bool:
    """Whether a file is an image by its name."""
    return entry.name.lower().endswith(EXTENSIONS)


def _why_unreadable(entry: "os.DirEntry[str]") -> str:
    try:
        return "" if entry.stat().st_size else "the file is empty"
    except OSError as error:
        return f"broken link: {error.strerror}"


def is_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether it is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:
        # Links that lead to each other: no folder, and as a file it is listed with the reason.
        return False


def _place(folder: str | Path) -> tuple[int, int]:
    try:
        found = os.stat(folder)  # noqa: PTH116  # one spelling for names and paths
    except OSError as error:
        raise unreadable(Path(folder), error) from error
    return found.st_dev, found.st_ino


def _with_parents(folder: Path) -> frozenset[tuple[int, int]]:
    real = Path(os.path.realpath(folder))
    return frozenset(_place(above) for above in (real, *real.parents))


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, sorted.

    Raises:
        UnfitError: it cannot be read.
    """
    found = [Path(entry.path) for entry in _entries(folder) if not is_hidden(entry) and is_folder(entry)]
    return sorted(found)


def _entries(folder: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise unreadable(folder, error) from error


def unreadable(folder: Path, error: OSError) -> UnfitError:
    """The error for a folder that cannot be read."""
    return UnfitError(f"cannot read the folder {folder}: {error.strerror}", f"look at: ls -ld '{folder}'")
