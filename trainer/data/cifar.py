"""What CIFAR-10 and CIFAR-100 share: torchvision's class reads them, our download brings them."""

import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from trainer.config import DataConfig
from trainer.data import download
from trainer.data.datasets import Splits, TensorImages
from trainer.errors import UnfitError
from trainer.preprocessing import Preprocessing

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10


def from_torchvision(kind: "type[CIFAR10]", config: DataConfig, *, title: str, preprocessing: Preprocessing) -> Splits:
    """The splits of one of torchvision's CIFAR classes, below `data.root` (default `data`).

    Raises:
        UnfitError: the files are damaged, or cannot be had.
    """
    root = Path(config.root or "data").expanduser()
    if root.name == kind.base_folder and root.is_dir():
        root = root.parent
    folder = root / kind.base_folder
    if not folder.exists():
        with download.sole_process(root):
            # Another process may have brought it while this one waited.
            if not folder.exists():
                _fetch(kind, root)
    try:
        # torchvision compares every file with its checksum before it reads any.
        splits = [kind(root, train=train) for train in (True, False)]
    except RuntimeError as error:
        raise UnfitError(
            f"the files of {title} in {folder} are damaged or incomplete",
            f"remove them and they are fetched anew: rm -r '{folder}'",
        ) from error
    train, val = (
        TensorImages(
            torch.from_numpy(np.ascontiguousarray(split.data.transpose(0, 3, 1, 2))),
            torch.tensor(split.targets),
        )
        for split in splits
    )
    classes = [str(name) for name in splits[0].classes]
    return Splits(train, val, classes, preprocessing, title=title, verified=True)


def _fetch(kind: "type[CIFAR10]", root: Path) -> None:
    from torchvision.datasets.utils import check_integrity

    archive = root / kind.filename
    if not check_integrity(archive, kind.tgz_md5):
        # Also where a damaged archive lies there: it is replaced, once the new one is whole.
        download.download(kind.url, archive, md5=kind.tgz_md5)
    unpacked = root / f".{kind.base_folder}.part"
    try:
        with tarfile.open(archive) as content:
            content.extractall(unpacked, filter="data")
        # Renamed when complete: a folder that exists is whole.
        (unpacked / kind.base_folder).replace(root / kind.base_folder)
        unpacked.rmdir()
    except (tarfile.TarError, EOFError) as error:
        raise UnfitError(
            f"{archive} is damaged: {error}", f"remove it and it is fetched anew: rm '{archive}'"
        ) from error
    except OSError as error:
        raise download.cannot_write(root, error) from error
