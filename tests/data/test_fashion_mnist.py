import gzip
import hashlib
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets

from trainer.config import DataConfig
from trainer.data import datasets, fetch
from trainer.data.datasets import TensorImages
from trainer.data.sets import fashion_mnist
from trainer.errors import UnfitError

REPOSITORY = Path(__file__).parents[2]
PIXELS = np.random.default_rng(0).integers(0, 256, (16, 28, 28), dtype=np.uint8)
LABELS = np.arange(16, dtype=np.uint8) % 10


def _header(kind: int, dimensions: int, *sizes: int) -> bytes:
    return struct.pack(f">HBB{len(sizes)}I", 0, kind, dimensions, *sizes)


FILES = {
    "train-images-idx3-ubyte": _header(8, 3, 12, 28, 28) + PIXELS[:12].tobytes(),
    "train-labels-idx1-ubyte": _header(8, 1, 12) + LABELS[:12].tobytes(),
    "t10k-images-idx3-ubyte": _header(8, 3, 4, 28, 28) + PIXELS[12:].tobytes(),
    "t10k-labels-idx1-ubyte": _header(8, 1, 4) + LABELS[12:].tobytes(),
}


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sixteen images in Fashion-MNIST's place; the mirror is a folder, read through a file:// address."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    resources = []
    for name, content in FILES.items():
        packed = gzip.compress(content)
        (folder / f"{name}.gz").write_bytes(packed)
        resources.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", [f"{folder.as_uri()}/"])
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "resources", resources)
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    monkeypatch.setattr(fashion_mnist, "CHECKSUMS", checksums)
    return folder


def load(root: Path) -> datasets.Splits:
    return datasets.load(DataConfig(name="fashion_mnist", root=str(root)))


def assert_right(splits: datasets.Splits) -> None:
    train, val = splits.train, splits.val
    assert isinstance(train, TensorImages)
    assert isinstance(val, TensorImages)
    assert np.array_equal(train.images[:, 0].numpy(), PIXELS[:12])
    assert np.array_equal(val.images[:, 0].numpy(), PIXELS[12:])
    assert np.array_equal(torch.cat([train.targets, val.targets]).numpy(), LABELS)


def test_the_files_are_fetched_once_and_torchvision_reads_them_too(mirror: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    assert_right(load(root))
    shutil.rmtree(mirror)
    assert_right(load(root))
    raw = root / "FashionMNIST" / "raw"
    assert sorted(path.name for path in raw.iterdir() if not path.name.startswith(".")) == sorted(FILES)
    theirs = torchvision.datasets.FashionMNIST(root, train=True)
    assert np.array_equal(theirs.data.numpy(), PIXELS[:12])


@pytest.mark.parametrize("below", ["FashionMNIST/raw", "raw", "."])
@pytest.mark.parametrize("packed", [False, True])
def test_a_copy_on_disk_is_used_without_a_network(mirror: Path, tmp_path: Path, below: str, packed: bool) -> None:
    folder = tmp_path / "copy" / below
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        path = folder / f"{name}.gz" if packed else folder / name
        path.write_bytes(gzip.compress(content) if packed else content)
    shutil.rmtree(mirror)
    assert_right(load(tmp_path / "copy"))


def test_only_what_is_missing_is_fetched(mirror: Path, tmp_path: Path) -> None:
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    load(tmp_path / "data")
    (raw / "t10k-labels-idx1-ubyte").unlink()
    (mirror / "train-images-idx3-ubyte.gz").unlink()
    assert_right(load(tmp_path / "data"))


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_copy_is_told_by_name_with_the_command_that_mends_it(
    mirror: Path, tmp_path: Path, damage: str
) -> None:
    load(tmp_path)
    path = tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes({"flip": bytes(content), "cut": bytes(content[:3000]), "empty": b""}[damage])
    with pytest.raises(UnfitError, match="train-images-idx3-ubyte is damaged") as caught:
        load(tmp_path)
    assert caught.value.fix == f"remove it and it is fetched anew: rm '{path}'"
    subprocess.run(caught.value.fix.split(": ")[1], shell=True, check=True)
    assert_right(load(tmp_path))


def test_a_damaged_packed_copy_is_told(mirror: Path) -> None:
    (mirror / "t10k-images-idx3-ubyte.gz").write_bytes(b"no gzip at all")
    with pytest.raises(UnfitError, match=r"t10k-images-idx3-ubyte\.gz is damaged"):
        load(mirror)


def test_where_nothing_can_be_had_both_attempts_and_the_way_on_are_named(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (mirror / "train-images-idx3-ubyte.gz").write_bytes(b"something else")
    monkeypatch.setenv("PATH", str(tmp_path / "no-programs"))
    root = tmp_path / "data"
    assert fetch.main(["fashion_mnist", "--root", str(root)]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    problem, fix = captured.err.splitlines()[-2:]
    assert "train-images-idx3-ubyte.gz: what came has the MD5 checksum" in problem
    assert "there is no apt-get on this machine" in problem
    assert "data.name=digits" in fix
    assert not [path for path in root.rglob("*") if path.is_file() and path.name != ".lock"]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A real Debian package of the sixteen images, and an apt-get that hands it out in place of the network.

    Like the real one on a fresh image, it knows no package before `apt-get update`.
    """
    if shutil.which("dpkg-deb") is None:
        pytest.skip("needs dpkg-deb, to build a package")
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        "Package: dataset-fashion-mnist\nVersion: 1\nArchitecture: all\nMaintainer: a test <a@b.c>\nDescription: x\n"
    )
    folder = tree / "usr/share/datasets/fashion-mnist"
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content, compresslevel=1))
    subprocess.run(["dpkg-deb", "--build", tree, tmp_path / "set.deb"], check=True, capture_output=True)
    script = tmp_path / "bin" / "apt-get"
    script.parent.mkdir()
    script.write_text(
        f'#!/bin/sh\ncase "$*" in\n*update*) touch {tmp_path}/lists ;;\n'
        f"*) [ -e {tmp_path}/lists ] || {{ echo 'E: Unable to locate package' >&2; exit 100; }}\n"
        f"cp {tmp_path}/set.deb . ;;\nesac\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    return tmp_path


def test_without_mirrors_the_files_come_from_debians_package(
    mirror: Path, package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(mirror)
    (package / "lists").touch()
    root = package / "data"
    assert fetch.main(["fashion_mnist", "--root", str(root)]) == 0
    captured = capsys.readouterr()
    assert captured.out == "Fashion-MNIST, 16 images, checksums agree\n"
    assert "trying Debian's package dataset-fashion-mnist" in captured.err
    assert_right(load(root))
    raw = root / "FashionMNIST" / "raw"
    assert sorted(path.name for path in raw.iterdir() if path.name != ".lock") == sorted(FILES)


def test_missing_package_lists_are_fetched_by_root_alone(
    mirror: Path, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(mirror)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UnfitError, match="apt-get failed: E: Unable to locate package"):
        load(package / "data")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert_right(load(package / "data"))


def test_the_real_fashion_mnist_can_be_had_and_is_what_it_should_be() -> None:
    command = [
        sys.executable,
        "-m",
        "trainer.data.fetch",
        "fashion_mnist",
        "--root",
        str(REPOSITORY / "data"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    if done.returncode == 3 and "cannot be had" in done.stderr:
        pytest.skip(f"no network and no copy: {done.stderr.splitlines()[-2]}")
    assert done.stdout == "Fashion-MNIST, 70,000 images, checksums agree\n"
    splits = load(REPOSITORY / "data")
    train, val = splits.train, splits.val
    assert isinstance(train, TensorImages)
    assert isinstance(val, TensorImages)
    assert (train.images.shape, val.images.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert train.targets.bincount().tolist() == [6_000] * 10
    assert val.targets.bincount().tolist() == [1_000] * 10
    pixels = train.images.float() / 255
    assert pixels.mean().item() == pytest.approx(splits.preprocessing.mean[0], abs=1e-4)
    assert pixels.std().item() == pytest.approx(splits.preprocessing.std[0], abs=1e-4)
    theirs = torchvision.datasets.FashionMNIST(REPOSITORY / "data", train=False)
    assert torch.equal(theirs.data, val.images[:, 0])
    assert splits.classes == theirs.classes
