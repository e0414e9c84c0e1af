"""Fashion-MNIST: 70,000 grey images of clothes, 28x28 pixels (Xiao et al., 2017)."""

import gzip
import hashlib
import os
import subprocess
import tempfile
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.config import DataConfig
from trainer.data import download
from trainer.data.datasets import Splits, TensorImages
from trainer.errors import UnfitError
from trainer.preprocessing import Preprocessing

CLASSES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]

CHECKSUMS = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""SHA-256 of the decompressed files, computed from Debian's package dataset-fashion-mnist
0.0~git20200523.55506a9-1, which apt had compared with Debian's signed lists. (Debian packs the files anew:
compressed they differ from torchvision's.)"""

PACKAGE = "dataset-fashion-mnist"
_PACKAGE_FOLDER = Path("usr/share/datasets/fashion-mnist")
_APT_OPTIONS = (
    "-q",
    "-o",
    "Acquire::http::Timeout=15",
    "-o",
    "Acquire::https::Timeout=15",
    "-o",
    "Acquire::Retries=0",
)
_APT_TIMEOUT_S = 300


def build(config: DataConfig) -> Splits:
    """The official splits: 60,000 images for training, 10,000 for validation.

    A copy under `data.root` (torchvision's root, or the very folder of the four files, gzipped or not) is
    used without the network; else the files are fetched into `data.root`, by default `data`.

    Raises:
        UnfitError: the files are damaged, or cannot be had.
    """
    root = Path(config.root or "data").expanduser()
    folder = _copy_on_disk(root) or _fetched(root / "FashionMNIST" / "raw")
    return Splits(
        train=_read_split(folder, "train"),
        val=_read_split(folder, "t10k"),
        classes=CLASSES,
        preprocessing=Preprocessing(28, 28, 1, (0.2860,), (0.3530,)),
        title="Fashion-MNIST",
        verified=True,
    )


def _copy_on_disk(root: Path) -> Path | None:
    for folder in (root / "FashionMNIST" / "raw", root / "raw", root):
        if all((folder / name).exists() or (folder / f"{name}.gz").exists() for name in CHECKSUMS):
            return folder
    return None


def _fetched(folder: Path) -> Path:
    with download.sole_process(folder):
        # Another process may have brought them while this one waited.
        missing = [name for name in CHECKSUMS if not (folder / name).exists()]
        if missing:
            _fetch(missing, folder)
    return folder


def _fetch(missing: list[str], folder: Path) -> None:
    try:
        _from_mirrors(missing, folder)
    except UnfitError as mirrors:
        download.say(f"the mirrors of Fashion-MNIST do not serve it; trying Debian's package {PACKAGE}")
        try:
            _from_debian(missing, folder)
        except UnfitError as debian:
            raise UnfitError(
                f"Fashion-MNIST cannot be had: {mirrors.problem}; {debian.problem}",
                "give a copy with data.root=DIR, or go on with scikit-learn's digits: data.name=digits",
            ) from debian


def _from_mirrors(missing: list[str], folder: Path) -> None:
    from torchvision.datasets import FashionMNIST  # 3 s, for its list of addresses

    md5 = dict(FashionMNIST.resources)
    for name in missing:
        packed = folder / f"{name}.gz"
        for index, mirror in enumerate(FashionMNIST.mirrors, start=1):
            try:
                download.download(f"{mirror}{packed.name}", packed, md5=md5[packed.name])
                break
            except UnfitError:
                if index == len(FashionMNIST.mirrors):
                    raise
        _unpack(packed, folder / name)
        packed.unlink()


def _from_debian(missing: list[str], folder: Path) -> None:
    installed = Path("/") / _PACKAGE_FOLDER
    if all((installed / f"{name}.gz").exists() for name in missing):
        for name in missing:
            _unpack(installed / f"{name}.gz", folder / name)
        return
    with tempfile.TemporaryDirectory(prefix=".package-", dir=folder) as name_of_place:
        place = Path(name_of_place)
        try:
            _apt("download", PACKAGE, place=place)
        except UnfitError:
            # A fresh image has no package lists, and only root can fetch them.
            if os.geteuid() != 0:
                raise
            _apt("update", place=place)
            _apt("download", PACKAGE, place=place)
        for package in place.glob("*.deb"):
            _command("dpkg", "-x", package.name, "unpacked", place=place)
        for name in missing:
            _unpack(place / "unpacked" / _PACKAGE_FOLDER / f"{name}.gz", folder / name)


def _apt(*arguments: str, place: Path) -> None:
    _command("apt-get", *_APT_OPTIONS, *arguments, place=place)


def _command(*command: str, place: Path) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=place,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_APT_TIMEOUT_S,
        )
    except FileNotFoundError:
        raise UnfitError(f"there is no {command[0]} on this machine") from None
    except subprocess.TimeoutExpired:
        raise UnfitError(f"{command[0]} did not end within {_APT_TIMEOUT_S} s") from None
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith(("E:", "dpkg"))]
        raise UnfitError(f"{command[0]} failed: {errors[0] if errors else f'exit code {done.returncode}'}")


def _unpack(packed: Path, target: Path) -> None:
    content = _decompressed(packed)
    _check(packed, hashlib.sha256(content).hexdigest(), CHECKSUMS[target.name])
    try:
        with download.written_whole(target) as stream:
            stream.write(content)
    except OSError as error:
        raise download.cannot_write(target, error) from error


def _decompressed(packed: Path) -> bytes:
    try:
        return gzip.decompress(packed.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(packed, str(error)) from error


def _read_split(folder: Path, split: str) -> TensorImages:
    images = _read(folder, f"{split}-images-idx3-ubyte")
    targets = _read(folder, f"{split}-labels-idx1-ubyte")
    # An idx file begins with a magic number and its dimensions, 4 bytes each; the checksums vouch for them.
    rows, columns = (int.from_bytes(images[start : start + 4].tobytes(), "big") for start in (8, 12))
    return TensorImages(
        torch.from_numpy(images[16:].reshape(-1, 1, rows, columns)),
        torch.from_numpy(targets[8:].astype(np.int64)),
    )


def _read(folder: Path, name: str) -> NDArray[np.uint8]:
    path = folder / name
    if path.exists():
        try:
            content = np.fromfile(path, np.uint8)
        except OSError as error:
            raise UnfitError(f"cannot read {path}: {error.strerror}", f"look at: ls -l '{path}'") from error
    else:
        path = folder / f"{name}.gz"
        content = np.frombuffer(bytearray(_decompressed(path)), np.uint8)
    _check(path, hashlib.sha256(content.data).hexdigest(), CHECKSUMS[name])
    return content


def _check(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise _damaged(path, f"its SHA-256 begins with {found[:12]}, not {expected[:12]}")


def _damaged(path: Path, reason: str) -> UnfitError:
    return UnfitError(f"{path} is damaged: {reason}", f"remove it and it is fetched anew: rm '{path}'")
