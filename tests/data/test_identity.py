"""A run that goes on notices that the files are others, although their number is the same."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder

from tests.data.test_folder import load, make
from tests.numerics import runs
from trainer.data.identity import changes, identity
from trainer.data.sets.folder import FolderImages

FILES = ["train/a/1.png", "train/a/2.png", "train/b/3.png", "val/a/4.png", "val/b/5.png"]


def test_the_place_of_the_folder_does_not_matter(tmp_path: Path) -> None:
    one, other = load(make(tmp_path / "one", *FILES)), load(make(tmp_path / "other", *FILES))
    assert changes(json.loads(json.dumps(identity(one))), identity(other)) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("train/a/1.png", "train/a/9.png", "training files were added, removed or renamed"),
        ("train/a/1.png", "train/b/1.png", "training files were added, removed or renamed"),
        ("val/a/4.png", "val/a/9.png", "validation files were added, removed or renamed"),
    ],
)
def test_renamed_files_are_noticed(tmp_path: Path, old: str, new: str, said: str) -> None:
    root = make(tmp_path, *FILES)
    before = identity(load(root))
    (root / old).rename(root / new)
    assert changes(before, identity(load(root))) == [said]
    # An earlier version noted no files.
    assert changes({name: before[name] for name in before if "files" not in name}, identity(load(root))) == []


def test_other_classes_are_named(tmp_path: Path) -> None:
    before = identity(load(make(tmp_path, *FILES)))
    make(tmp_path, *(f"train/{name}/1.png" for name in "cdefg"))
    (tmp_path / "train" / "a").rename(tmp_path / "train" / "z")
    (tmp_path / "val" / "a").rename(tmp_path / "val" / "z")
    assert "the classes are others (c, d, e and 3 more are new; a is missing)" in changes(
        before, identity(load(tmp_path))
    )
    assert changes(before, {**before, "classes": ["b", "a"]}) == ["the classes are others (their order is)"]


def test_data_sets_of_others_are_known_by_their_paths(tmp_path: Path) -> None:
    folders = [ImageFolder(make(tmp_path / name, *FILES) / "train") for name in ("one", "other")]
    splits = load(tmp_path / "one")
    known = [identity(replace(splits, train=folder)) for folder in folders]
    assert known[0] == known[1]
    assert known[0]["training files"] is not None
    folders[1].samples[2] = (folders[1].samples[2][0].replace("3.png", "6.png"), 1)
    assert changes(known[0], identity(replace(splits, train=folders[1]))) == [
        "training files were added, removed or renamed"
    ]
    parts = [identity(replace(splits, train=Subset(folders[0], chosen))) for chosen in ([0, 2], [1, 2], [2, 1])]
    assert len({part["training files"] for part in parts}) == 3


def test_targets_count_and_a_split_without_paths_has_no_digest() -> None:
    splits = runs.digits_with_blanks([])
    before = identity(splits)
    assert before["training files"] is not None
    assert before["validation files"] is None
    assert isinstance(splits.train, runs.NamedImages)
    splits.train.targets[3] += 1
    assert len(changes(before, identity(splits))) == 1


def test_a_million_files_take_no_time() -> None:
    targets = torch.arange(1_000_000).numpy()
    split = FolderImages(
        Path("/images"), (f"n{index // 1000:08d}/{index}.jpeg" for index in range(1_000_000)), targets, 3
    )
    started = time.perf_counter()
    split.digest_of_paths()
    assert time.perf_counter() - started < 0.5
