"""ImageNet (ILSVRC 2012): 1.28 million photographs of 1,000 kinds of things, from a copy that you have."""

from dataclasses import replace
from pathlib import Path

from trainer.config import DataConfig
from trainer.data import download
from trainer.data.datasets import Splits
from trainer.data.sets.folder import PHOTO_MEAN, PHOTO_STD, from_folder
from trainer.errors import ConfigError, UnfitError
from trainer.preprocessing import Preprocessing

_ARCHIVES = ("ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")
_WORDS = "meta.bin"


def build(config: DataConfig) -> Splits:
    """The splits `train/` and `val/` below `data.root`, a folder per class in each, or from the archives.

    The classes have their English names where torchvision's `meta.bin` is there, else the folders' names.

    Raises:
        ConfigError: data.root is not set, or has neither the folders nor the archives.
        UnfitError: the files are damaged or cannot be read.
    """
    where = "get it from image-net.org; data.root=DIR with train/ and val/, or with its three archives"
    if config.root is None:
        raise ConfigError("data.name=imagenet needs data.root, a copy of ImageNet", where)
    root = Path(config.root).expanduser()
    if not (root / "train").is_dir() or not (root / "val").is_dir():
        if not all((root / name).is_file() for name in _ARCHIVES):
            raise ConfigError(f"data.root={root} holds neither train/ and val/ nor the archives of ImageNet", where)
        _unpack(root)
    splits = from_folder(root, config, native=Preprocessing(224, 256, 3, PHOTO_MEAN, PHOTO_STD))
    words = _words(root)
    return replace(splits, classes=[words.get(name, name) for name in splits.classes], title="ImageNet")


def _unpack(root: Path) -> None:
    from torchvision.datasets import ImageNet  # 3 s, and only before the very first training

    with download.sole_process(root):
        download.say(f"unpacking ImageNet's archives in {root}; this takes about an hour, once")
        try:
            for split in ("train", "val"):
                ImageNet(root, split=split)
        except RuntimeError as error:
            raise UnfitError(f"cannot unpack ImageNet: {error}", "compare the archives' checksums") from error
        except OSError as error:
            raise download.cannot_write(root, error) from error


def _words(root: Path) -> dict[str, str]:
    """Folder name -> English name, where torchvision has left its table."""
    if not (root / _WORDS).is_file():
        return {}
    from torchvision.datasets.imagenet import load_meta_file

    return {folder: names[0] for folder, names in load_meta_file(root)[0].items()}
