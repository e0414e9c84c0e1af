"""A first look at a folder of images, before anything is started. Standard library only."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

from trainer.data.scan import (
    FEWEST_CLASSES,
    check_classes,
    check_learned,
    folders_in,
    is_called_image,
    is_folder,
    is_hidden,
    layout,
    scan,
    unreadable,
)
from trainer.errors import ConfigError

_MOST_READ = 64


@dataclass(frozen=True, slots=True)
class Sight:
    """What a folder of images looks like.

    Attributes:
        most_classes: how many classes there are at most.
        has_val: whether the validation split has a folder of its own.
    """

    most_classes: int
    has_val: bool


def glance(root: Path) -> Sight:
    """Refuses a folder that surely is no data set; reads so few directories that a slow disk does not matter.

    What a few dozen directories do not tell, such as a big set whose first classes are empty, passes here.

    Raises:
        ConfigError: the layout is not that of a data set, there are too few classes, or others in its val folder.
        UnfitError: it cannot be read.
    """
    places = layout(root)
    classes = folders_in(places.train)
    if not _may_have_classes(classes, FEWEST_CLASSES):
        if not classes and _peek(root)[0] and len(_with_images(folders_in(root.absolute().parent))[0]) > 1:
            raise ConfigError(
                f"data.root={root} holds images, but no folder per class",
                f"if it is one of several classes, data.root={root.parent}",
            )
        check_classes(scan(places.train))
    if places.val is not None:
        others = folders_in(places.val)
        if not _may_have_classes(others, fewest=1):
            check_classes(scan(places.val), fewest=1)
        learned = {folder.name for folder in classes}
        unknown = [folder for folder in others if folder.name not in learned]
        if _with_images(unknown, enough=1)[0]:
            check_learned(places.val, places.train, _with_images(unknown, most_read=math.inf)[0])
    return Sight(len(classes), places.val is not None)


def _may_have_classes(folders: list[Path], fewest: int) -> bool:
    """Whether `fewest` class folders hold an image; also where too few are read to tell."""
    found, all_read = _with_images(folders, enough=fewest)
    return len(found) >= fewest or not all_read


def _with_images(
    folders: list[Path], *, enough: float = math.inf, most_read: float = _MOST_READ
) -> tuple[list[str], bool]:
    """The names of class folders that hold an image, by the files' names, and whether that is all there are.

    Args:
        folders: the class folders.
        enough: how many names end the search.
        most_read: how many directories do.
    """
    found: list[str] = []
    left = most_read
    for folder in folders:
        unseen = [folder]
        while unseen:
            if left == 0 or len(found) == enough:
                return found, False
            left -= 1
            has_image, inside = _peek(unseen.pop())
            if has_image:
                found.append(folder.name)
                break
            unseen += inside
    return found, True


def _peek(folder: Path) -> tuple[bool, list[Path]]:
    """Whether a folder itself holds an image, and the folders in it if not; stops reading at the first image."""
    inside: list[Path] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_hidden(entry):
                    continue
                if is_folder(entry):
                    inside.append(Path(entry.path))
                elif is_called_image(entry):
                    return True, []
    except OSError as error:
        raise unreadable(folder, error) from error
    return False, inside
