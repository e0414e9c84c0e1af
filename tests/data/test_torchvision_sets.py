import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import CIFAR10, CIFAR100, imagenet

from trainer.config import DataConfig
from trainer.data import datasets
from trainer.data.datasets import TensorImages
from trainer.data.sets.folder import FolderImages
from trainer.errors import ConfigError, UnfitError

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def _tar(contents: dict[str, bytes], mode: str = "w") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # pyrefly: ignore[no-matching-overload]
        for name, content in contents.items():
            _add(archive, name, content)
    return stream.getvalue()


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Twelve images in CIFAR's own format behind a file:// address, checksums in torchvision's lists."""
    kind = {"cifar10": CIFAR10, "cifar100": CIFAR100}[request.param]
    labels = "labels" if kind is CIFAR10 else "fine_labels"

    def part(first: int, end: int) -> bytes:
        targets = [index % 3 for index in range(first, end)]
        return pickle.dumps({"data": PIXELS[first:end].reshape(end - first, -1), labels: targets})

    files = {
        "one": part(0, 8),
        "two": part(8, 12),
        kind.meta["filename"]: pickle.dumps({kind.meta["key"]: ["ant", "bee", "cat"]}),
    }
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    packed = _tar({f"{kind.base_folder}/{name}": content for name, content in files.items()}, "w:gz")
    (tmp_path / "there.tar.gz").write_bytes(packed)
    monkeypatch.setattr(kind, "url", (tmp_path / "there.tar.gz").as_uri())
    monkeypatch.setattr(kind, "tgz_md5", hashlib.md5(packed).hexdigest())
    monkeypatch.setattr(kind, "train_list", [["one", md5["one"]]])
    monkeypatch.setattr(kind, "test_list", [["two", md5["two"]]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5[kind.meta["filename"]]})
    return request.param


def _load(name: str, root: Path) -> datasets.Splits:
    return datasets.load(DataConfig(name=name, root=str(root)))


def test_cifar_is_fetched_unpacked_and_read_as_torchvision_reads_it(cifar: str, tmp_path: Path) -> None:
    splits = _load(cifar, tmp_path / "data")
    assert isinstance(splits.train, TensorImages)
    assert isinstance(splits.val, TensorImages)
    assert np.array_equal(splits.train.images.numpy(), PIXELS[:8])
    assert np.array_equal(splits.val.images.numpy(), PIXELS[8:])
    assert splits.train.targets.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert splits.classes == ["ant", "bee", "cat"]
    # Nothing is fetched a second time, and the very folder may be given as well.
    (tmp_path / "there.tar.gz").unlink()
    (folder,) = [path for path in (tmp_path / "data").iterdir() if path.is_dir()]
    for root in (tmp_path / "data", folder):
        assert len(_load(cifar, root).train) == 8


def test_a_damaged_cifar_copy_is_told_with_the_command_that_mends_it(cifar: str, tmp_path: Path) -> None:
    _load(cifar, tmp_path / "data")
    (damaged,) = (tmp_path / "data").glob("*/one")
    damaged.write_bytes(damaged.read_bytes()[:-5])
    with pytest.raises(UnfitError, match="damaged or incomplete") as caught:
        _load(cifar, tmp_path / "data")
    assert caught.value.fix.endswith(f"rm -r '{damaged.parent}'")


def test_a_damaged_cifar_archive_is_replaced(cifar: str, tmp_path: Path) -> None:
    archive = {"cifar10": CIFAR10, "cifar100": CIFAR100}[cifar].filename
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / archive).write_bytes(b"half an archive")
    assert len(_load(cifar, tmp_path / "data").train) == 8


def test_cifar_that_cannot_be_had_is_told(cifar: str, tmp_path: Path) -> None:
    (tmp_path / "there.tar.gz").write_bytes(b"something else")
    with pytest.raises(UnfitError, match="MD5 checksum") as caught:
        _load(cifar, tmp_path / "data")
    assert "data.root=DIR" in caught.value.fix


def _picture(colour: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (20, 30), colour).save(stream, "JPEG")
    return stream.getvalue()


def _imagenet_archives(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two classes in the format of ImageNet's own archives, with their checksums in torchvision's list."""
    synsets = np.zeros((2, 1), dtype=[(name, "O") for name in ("id", "wnid", "words", "gloss", "num_children")])
    for index, (wnid, words) in enumerate([("n001", "tench, Tinca tinca"), ("n002", "goldfish")]):
        synsets[index, 0] = (index + 1, wnid, words, "", 0)
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    devkit = {
        "ILSVRC2012_devkit_t12/data/meta.mat": meta.getvalue(),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": b"2\n1\n",
    }
    train = {
        f"{wnid}.tar": _tar({f"{wnid}_{index}.JPEG": _picture(colour) for index in range(2)})
        for wnid, colour in (("n001", "red"), ("n002", "blue"))
    }
    val = {
        "ILSVRC2012_val_00000001.JPEG": _picture("blue"),
        "ILSVRC2012_val_00000002.JPEG": _picture("red"),
    }
    checksums = {}
    for key, content in (("devkit", _tar(devkit, "w:gz")), ("train", _tar(train)), ("val", _tar(val))):
        name = imagenet.ARCHIVE_META[key][0]
        (root / name).write_bytes(content)
        checksums[key] = (name, hashlib.md5(content).hexdigest())
    monkeypatch.setattr(imagenet, "ARCHIVE_META", checksums)


def test_imagenets_archives_are_unpacked_and_the_classes_have_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _imagenet_archives(tmp_path, monkeypatch)
    splits = _load("imagenet", tmp_path)
    assert splits.classes == ["tench", "goldfish"]
    assert (len(splits.train), len(splits.val)) == (4, 2)
    for split in (splits.train, splits.val):
        for index in range(len(split)):
            image, target = split[index]
            red, _, blue = image.getpixel((10, 10))
            assert (red > blue) == (target == 0)
    assert splits.preprocessing.image_size == 224


def test_a_damaged_imagenet_archive_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _imagenet_archives(tmp_path, monkeypatch)
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(b"damaged")
    with pytest.raises(UnfitError, match=r"ILSVRC2012_img_train\.tar"):
        _load("imagenet", tmp_path)


def test_imagenet_in_folders_is_read_as_a_folder_of_photographs(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for wnid in ("n001", "n002"):
            (tmp_path / split / wnid).mkdir(parents=True)
            (tmp_path / split / wnid / "1.JPEG").write_bytes(_picture("red"))
    splits = _load("imagenet", tmp_path)
    assert isinstance(splits.train, FolderImages)
    assert splits.classes == ["n001", "n002"]
    assert (splits.preprocessing.resize_size, splits.preprocessing.channels) == (256, 3)
    torch.save(({"n001": ("tench", "Tinca tinca"), "n002": ("goldfish",)}, []), tmp_path / "meta.bin")
    assert _load("imagenet", tmp_path).classes == ["tench", "goldfish"]


def test_imagenet_without_a_copy_says_where_to_get_it(tmp_path: Path) -> None:
    for config in (DataConfig(name="imagenet"), DataConfig(name="imagenet", root=str(tmp_path))):
        with pytest.raises(ConfigError, match=r"data\.root") as caught:
            datasets.load(config)
        assert "image-net.org" in caught.value.fix
