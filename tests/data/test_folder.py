import os
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainer.config import DataConfig
from trainer.data import datasets
from trainer.data.datasets import held_out
from trainer.data.identity import identity
from trainer.data.sets.folder import FolderImages, PathList
from trainer.errors import ConfigError, UnfitError


def make(root: Path, *names: str, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> Path:
    """Writes images; the grey value of each tells its class, the first letter of the class folder."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, "white").save(path)
    return root


def many(root: Path, *classes: str, count: int = 30) -> Path:
    return make(root, *(f"{name}/{index:03d}.png" for name in classes for index in range(count)))


def load(root: Path, **options: Any) -> datasets.Splits:
    return datasets.load(DataConfig(name="folder", root=str(root), **options))


def paths(split: object) -> list[str]:
    assert isinstance(split, FolderImages)
    return list(split.paths)


def test_a_class_per_folder_becomes_two_splits_with_the_classes_sorted(tmp_path: Path) -> None:
    splits = load(many(tmp_path, "dog", "ant", "cat"), val_fraction=0.3)
    assert splits.classes == ["ant", "cat", "dog"]
    train, val = paths(splits.train), paths(splits.val)
    assert sorted(train + val) == sorted(f"{n}/{i:03d}.png" for n in splits.classes for i in range(30))
    assert train == sorted(train)
    assert 12 <= len(val) <= 42
    for index in (0, len(train) - 1):
        image, target = splits.train[index]
        assert (image.mode, image.size) == ("RGB", (12, 10))
        assert train[index].startswith(splits.classes[target])


def test_adding_files_moves_no_other_between_the_splits(tmp_path: Path) -> None:
    before = load(many(tmp_path, "a", "b"), val_fraction=0.3)
    make(many(tmp_path, "c", count=40), *(f"a/new-{index}.png" for index in range(50)))
    after = load(tmp_path, val_fraction=0.3)
    assert set(paths(before.train)) < set(paths(after.train))
    assert set(paths(before.val)) < set(paths(after.val))


def test_the_split_does_not_depend_on_where_the_folder_lies(tmp_path: Path) -> None:
    here = load(many(tmp_path / "here", "a", "b"), val_fraction=0.3)
    there = load(many(tmp_path / "there" / "train", "a", "b").parent, val_fraction=0.3)
    assert paths(here.val) == paths(there.val)
    assert identity(here) == identity(there)


def test_a_larger_val_fraction_only_adds_and_is_met(tmp_path: Path) -> None:
    names = [f"class/{index}.jpg" for index in range(20_000)]
    held = [{name for name in names if held_out(name, fraction)} for fraction in (0.1, 0.25)]
    assert held[0] < held[1]
    assert abs(len(held[0]) / 20_000 - 0.1) < 0.01
    assert abs(len(held[1]) / 20_000 - 0.25) < 0.015


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test", "Val"])
def test_train_and_val_folders_are_used_as_they_are(tmp_path: Path, name: str) -> None:
    make(tmp_path, "train/a/1.png", "train/b/2.png", f"{name}/a/3.png", f"{name}/b/4.png")
    splits = load(tmp_path)
    assert paths(splits.train) == ["a/1.png", "b/2.png"]
    assert paths(splits.val) == ["a/3.png", "b/4.png"]
    assert [splits.val[index][1] for index in range(2)] == [0, 1]


def test_val_goes_before_test_and_what_is_not_read_is_said(tmp_path: Path) -> None:
    make(tmp_path, "train/a/1.png", "train/b/2.png", "val/a/3.png", "test/b/4.png", "extra/x/5.png")
    splits = load(tmp_path)
    assert splits.val.path_of(0) == f"{tmp_path}/val/a/3.png"  # pyrefly: ignore[missing-attribute]
    assert any("extra, test" in note for note in splits.notes)
    assert any("has no images of b" in note for note in splits.notes)


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    assert load(many(tmp_path, "bus", "train"), val_fraction=0.3).classes == ["bus", "train"]


def test_nested_folders_count_to_their_class(tmp_path: Path) -> None:
    make(tmp_path, "train/a/x/y/1.png", "train/a/2.png", "train/b/z/3.JPEG", "val/a/4.png", "val/b/5.png")
    splits = load(tmp_path)
    assert paths(splits.train) == ["a/2.png", "a/x/y/1.png", "b/z/3.JPEG"]
    assert list(splits.train.targets) == [0, 0, 1]  # pyrefly: ignore[missing-attribute]


def test_stray_files_are_counted_and_named_once(tmp_path: Path) -> None:
    many(tmp_path, "a", "b")
    for name in ("readme.txt", "a/Thumbs.db", "b/.hidden.png", "b/notes.csv"):
        (tmp_path / name).write_text("x")
    make(tmp_path, "loose.png", ".git/c/1.png")
    splits = load(tmp_path)
    (note,) = [note for note in splits.notes if "not images" in note]
    assert note.startswith("6 files left out")
    assert "and 3 more" in note
    assert len(splits.train) + len(splits.val) == 60
    assert splits.classes == ["a", "b"]


def test_a_zero_byte_file_ends_the_load_by_its_name(tmp_path: Path) -> None:
    many(tmp_path, "a", "b")
    for name in ("a/empty.jpg", "b/empty.png"):
        (tmp_path / name).touch()
    with pytest.raises(UnfitError, match=r"a/empty\.jpg: the file is empty, and 1 more") as caught:
        load(tmp_path)
    assert caught.value.added == "data.on_bad_image=skip"
    assert caught.value.added in caught.value.fix


def test_with_skip_zero_byte_files_are_known_and_in_neither_split(tmp_path: Path) -> None:
    many(tmp_path, "a", "b")
    (tmp_path / "a/empty.jpg").touch()
    (tmp_path / "b/broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
    splits = load(tmp_path, on_bad_image="skip")
    assert len(splits.train) + len(splits.val) == 60
    assert [(bad.path, bad.reason.split(":")[0]) for bad in splits.bad_files] == [
        (str(tmp_path / "a/empty.jpg"), "the file is empty"),
        (str(tmp_path / "b/broken.jpg"), "broken link"),
    ]
    assert any("2 images left out, unreadable" in note for note in splits.notes)


def test_linked_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    many(tmp_path / "data", "a", "b")
    make(tmp_path, "elsewhere/far.png")
    (tmp_path / "data/a/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/b/circle").symlink_to(tmp_path / "data")
    splits = load(tmp_path / "data")
    assert len(splits.train) + len(splits.val) == 61


def test_folders_that_are_linked_into_each_other_are_read_once(tmp_path: Path) -> None:
    many(tmp_path / "data", "a", "b")
    make(tmp_path, "beside/far.png", "up.png")
    (tmp_path / "data/a/to_b").symlink_to(tmp_path / "data/b")
    (tmp_path / "data/b/to_a").symlink_to(tmp_path / "data/a")
    (tmp_path / "data/a/beside").symlink_to(tmp_path / "beside")
    (tmp_path / "beside/back").symlink_to(tmp_path / "data/a")
    (tmp_path / "beside/up").symlink_to(tmp_path)
    splits = load(tmp_path / "data")
    # Each class also has the other's images, once; a has the one beside it, which b reaches through a.
    assert len(splits.train) + len(splits.val) == 60 + 60 + 2


def test_links_that_lead_to_each_other_are_bad_files(tmp_path: Path) -> None:
    many(tmp_path, "a", "b")
    for one, other in (("p.png", "q.png"), ("q.png", "p.png")):
        (tmp_path / "a" / one).symlink_to(tmp_path / "a" / other)
    (tmp_path / "r").symlink_to(tmp_path / "s")
    (tmp_path / "s").symlink_to(tmp_path / "r")
    splits = load(tmp_path, on_bad_image="skip")
    assert len(splits.train) + len(splits.val) == 60
    assert {Path(bad.path).name for bad in splits.bad_files} == {"p.png", "q.png"}


def test_a_folder_without_images_is_no_class(tmp_path: Path) -> None:
    many(tmp_path, "a", "b")
    (tmp_path / "empty").mkdir()
    splits = load(tmp_path)
    assert splits.classes == ["a", "b"]
    assert any("empty" in note for note in splits.notes)


def test_names_of_any_bytes_are_read(tmp_path: Path) -> None:
    many(tmp_path, "a", "b")
    strange = os.fsdecode(os.fsencode(tmp_path / "a") + b"/caf\xe9.png")
    Path(strange).write_bytes((tmp_path / "a/000.png").read_bytes())
    splits = load(tmp_path, val_fraction=0.3)
    for split in (splits.train, splits.val):
        found = [index for index, path in enumerate(paths(split)) if path.endswith("\udce9.png")]
        if found:
            assert split[found[0]][1] == 0
            return
    pytest.fail("the file is in neither split")


def test_small_square_images_suggest_their_own_size_and_grey_ones_one_channel(tmp_path: Path) -> None:
    names = [f"{name}/{index}.png" for name in "ab" for index in range(30)]
    small = load(make(tmp_path / "small", *names, size=(28, 28), mode="L")).preprocessing
    large = load(make(tmp_path / "large", *names)).preprocessing
    assert (small.image_size, small.resize_size, small.channels, len(small.mean)) == (28, 28, 1, 1)
    assert (large.image_size, large.resize_size, large.channels, len(large.mean)) == (224, 256, 3, 3)
    grey, _ = load(tmp_path / "small").train[0]
    assert grey.mode == "L"


def test_the_order_does_not_depend_on_the_order_of_creation(tmp_path: Path) -> None:
    names = [f"{name}/{index}.png" for name in "abc" for index in range(20)]
    forwards = load(make(tmp_path / "x", *names))
    backwards = load(make(tmp_path / "y", *reversed(names)))
    assert paths(forwards.train) == paths(backwards.train)


def test_a_limit_keeps_paths_and_targets_together(tmp_path: Path) -> None:
    splits = load(many(tmp_path, "a", "b"), limit=7, val_fraction=0.4)
    assert len(splits.train) == len(splits.val) == 7
    for index, path in enumerate(paths(splits.train)):
        assert path[0] == splits.classes[splits.train[index][1]]


def _file(root: Path) -> Path:
    (root / "a.zip").touch()
    return root / "a.zip"


def _flat_val(root: Path) -> Path:
    return make(root, "train/a/1.png", "train/b/1.png", "val/1.png")


def _flat_splits(root: Path) -> Path:
    return make(root, "train/1.png", "val/2.png")


def _new_class_in_val(root: Path) -> Path:
    return make(root, "train/a/1.png", "train/b/1.png", "val/a/1.png", "val/c/1.png")


def _not_text(root: Path) -> Path:
    return make(root, "train/a/1.png", "train/" + os.fsdecode(b"caf\xe9") + "/1.png")


@pytest.mark.parametrize(
    ("prepare", "problem"),
    [
        (_not_text, "folders whose names are not UTF-8: caf"),
        (lambda root: root / "missing", "missing does not exist"),
        (_file, "is a file"),
        (lambda root: root, "holds nothing"),
        (lambda root: make(root, "1.png", "2.png"), r"holds only 1\.png, 2\.png"),
        (lambda root: many(root, "only"), "only one class, only"),
        (_flat_val, "no folder per class"),
        (_flat_splits, "no folder per class"),
        (_new_class_in_val, "has no images of: c"),
        (lambda root: make(root, "a/1.png", "b/1.png"), r"data\.val_fraction=1e-09 leaves 2 images"),
    ],
)
def test_what_cannot_be_a_data_set_is_refused_with_a_fix(tmp_path: Path, prepare: object, problem: str) -> None:
    root = prepare(tmp_path)  # pyrefly: ignore[not-callable]
    with pytest.raises(ConfigError, match=problem) as caught:
        load(root, val_fraction=1e-9)
    assert caught.value.exit_code == 2
    assert caught.value.fix


def test_without_a_root_the_error_names_the_key() -> None:
    with pytest.raises(ConfigError, match=r"needs data\.root"):
        datasets.load(DataConfig(name="folder"))


@contextmanager
def as_an_ordinary_user() -> Iterator[None]:
    """Root can read everything, so it becomes `nobody` for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_an_unreadable_folder_is_the_environments_fault() -> None:
    # Not in tmp_path, which only its owner may enter.
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        root = many(Path(place) / "images", "a", "b")
        for unreadable in (root / "a", root):
            unreadable.chmod(0)
            try:
                with (
                    pytest.raises(UnfitError, match=r"read the folder .*Permission denied") as caught,
                    as_an_ordinary_user(),
                ):
                    load(root)
            finally:
                unreadable.chmod(0o755)
            assert caught.value.exit_code == 3
            assert str(unreadable) in caught.value.fix


def test_a_path_list_behaves_like_a_list_of_strings() -> None:
    names = ["a/1.png", "", "ü/2.png", "\udce9"]
    stored = pickle.loads(pickle.dumps(PathList(names)))
    assert list(stored) == names
    assert stored[2] == "ü/2.png"
    for index in (-1, 4):
        with pytest.raises(IndexError):
            stored[index]


def test_a_split_survives_being_sent_to_another_process(tmp_path: Path) -> None:
    train = load(many(tmp_path, "a", "b")).train
    sent = pickle.loads(pickle.dumps(train))
    assert np.array_equal(np.asarray(sent[3][0]), np.asarray(train[3][0]))
