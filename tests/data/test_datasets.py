import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset

from trainer.config import DataConfig
from trainer.data import datasets
from trainer.data.datasets import Splits, TensorImages, limited
from trainer.errors import ConfigError
from trainer.preprocessing import Preprocessing

CONFIGS = Path(__file__).parents[2] / "configs" / "data"
GREY = Preprocessing(4, 4, 1, (0.5,), (0.5,))


def tensors(count: int, classes: int = 2) -> TensorImages:
    images = torch.arange(count).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    return TensorImages(images, torch.arange(count) % classes)


def my_splits(count: int = 10, *, val: int = 4, classes: int = 2) -> Splits:
    return Splits(tensors(count), tensors(val), [str(index) for index in range(classes)], GREY)


class Endless(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


def endless() -> Splits:
    return Splits(Endless(), tensors(2), ["a", "b"], GREY)  # pyrefly: ignore[bad-argument-type]


def failing() -> Splits:
    raise TypeError("a mistake inside")


NOT_CALLABLE = 3


def own(name: str, **options: Any) -> DataConfig:
    return DataConfig(_target_=f"{__name__}.{name}", **options)


def test_own_data_is_loaded_by_its_import_path_with_its_arguments() -> None:
    splits = datasets.load(own("my_splits", args={"count": 20, "val": 6}))
    assert (len(splits.train), len(splits.val)) == (20, 6)


@pytest.mark.parametrize(
    ("config", "problem", "fix"),
    [
        (DataConfig(name="fashion_mnst"), "no data set called 'fashion_mnst'", "data.name=fashion_mnist"),
        (DataConfig(name="qqq"), "no data set called 'qqq'", "cifar10, cifar100"),
        (DataConfig(name="digits", args={"size": 3}), "unexpected keyword argument 'size'", "no arguments"),
        (
            DataConfig(name="synthetic", args={"sizes": 3}),
            "'sizes'",
            "it takes n, n_val, classes, size, channels",
        ),
        (DataConfig(_target_="no_such_package.build"), "cannot be imported", "package.module.function"),
        (own("no_such_function"), "cannot be imported", "package.module.function"),
        (own("NOT_CALLABLE"), "is a int, which cannot be called", "returns a"),
        (own("tensors", args={"count": 3}), "returned TensorImages", "Splits"),
        (own("my_splits", args={"counts": 3}), "'counts'", "it takes count, val, classes"),
        (own("my_splits", args={"count": 0}), "training split .* is empty", "more images"),
        (own("my_splits", args={"val": 0}), "validation split .* is empty", "more images"),
        (own("my_splits", args={"classes": 1}), "has 1 class", "two classes"),
        (own("endless"), "Endless, which has no length", "map-style"),
    ],
)
def test_wrong_data_is_refused_with_a_fix(config: DataConfig, problem: str, fix: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        datasets.load(config)
    assert fix in caught.value.fix


def test_classes_of_any_kind_of_sequence_are_what_a_checkpoint_gives_back() -> None:
    split = TensorImages(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]))
    splits = Splits(split, split, ("even", "odd"), Preprocessing(8, 8, 1, (0.5,), (0.5,)))  # type: ignore[arg-type]
    assert splits.classes == ["even", "odd"]


def test_a_type_error_inside_own_code_is_not_taken_for_a_wrong_argument() -> None:
    with pytest.raises(TypeError, match="a mistake inside"):
        datasets.load(own("failing"))


def test_a_limit_is_a_fixed_part_of_each_split_and_is_said() -> None:
    config = own("my_splits", args={"count": 100, "val": 5}, limit=20)
    first, second = datasets.load(config), datasets.load(config)
    assert isinstance(first.train, TensorImages)
    assert isinstance(second.train, TensorImages)
    assert (len(first.train), len(first.val)) == (20, 5)
    assert torch.equal(first.train.images, second.train.images)
    assert len({int(image[0, 0, 0]) for image in first.train.images}) == 20
    assert first.notes == ["data.limit=20: 20 of 100 training images"]


def test_a_smaller_limit_is_a_part_of_a_larger_one_and_no_mere_beginning() -> None:
    split = tensors(200)
    small, large = limited(split, 30), limited(split, 60)
    values = [{int(part[index][0][0, 0, 0]) for index in range(len(part))} for part in (small, large)]
    assert values[0] < values[1]
    assert values[0] != set(range(30))


def test_a_limit_works_on_any_map_style_data() -> None:
    part = limited([(None, index) for index in range(50)], 10)
    assert len(part) == 10
    assert len({part[index][1] for index in range(10)}) == 10


def test_images_in_memory_must_fit_their_targets() -> None:
    with pytest.raises(ValueError, match="2 images but 3 targets"):
        TensorImages(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3))
    with pytest.raises(ValueError, match="must be uint8"):
        TensorImages(torch.zeros(2, 1, 4, 4), torch.zeros(2))


def test_digits_are_split_without_overlap_and_not_flipped() -> None:
    splits = datasets.load(DataConfig(name="digits", val_fraction=0.2))
    assert isinstance(splits.train, TensorImages)
    assert isinstance(splits.val, TensorImages)
    assert len(splits.train) + len(splits.val) == 1797
    assert 300 < len(splits.val) < 420
    assert not splits.flip
    assert splits.train.images.max() == 255
    pixels = torch.cat([splits.train.images, splits.val.images]).float() / 255
    assert pixels.mean().item() == pytest.approx(splits.preprocessing.mean[0], abs=1e-3)
    assert pixels.std().item() == pytest.approx(splits.preprocessing.std[0], abs=1e-3)


def test_synthetic_images_are_the_same_every_time_and_differ_between_samples() -> None:
    args = {"n": 2000, "classes": 3, "size": 9, "channels": 1}
    first, second = (datasets.load(DataConfig(name="synthetic", args=args)) for _ in range(2))
    assert isinstance(first.train, TensorImages)
    assert isinstance(second.train, TensorImages)
    assert torch.equal(first.train.images, second.train.images)
    assert first.train.images.shape == (2000, 1, 9, 9)
    assert len(np.unique(first.train.images.numpy().reshape(2000, -1), axis=0)) == 2000
    # Any change of these numbers breaks comparisons with earlier runs.
    assert first.train.images[7, 0, 0, :4].tolist() == PINNED


PINNED = [172, 196, 214, 151]


def test_synthetic_classes_can_be_told_apart() -> None:
    splits = datasets.load(DataConfig(name="synthetic", args={"n": 500, "classes": 5, "size": 16}))
    train, val = splits.train, splits.val
    assert isinstance(train, TensorImages)
    assert isinstance(val, TensorImages)
    means = torch.stack([train.images[train.targets == index].float().mean(0) for index in range(5)])
    distances = torch.cdist(val.images.float().flatten(1), means.flatten(1))
    assert (distances.argmin(1) == val.targets).float().mean() > 0.99


@pytest.mark.parametrize("args", [{"n": 0}, {"classes": 1}, {"size": 2}, {"channels": 2}, {"n": 10**7, "size": 224}])
def test_impossible_synthetic_images_are_refused(args: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="synthetic images"):
        datasets.load(DataConfig(name="synthetic", args=args))


def test_every_data_set_has_its_configuration_and_the_other_way_round() -> None:
    assert sorted(path.stem for path in CONFIGS.glob("*.yaml")) == datasets.names()
    for path in CONFIGS.glob("*.yaml"):
        assert f"name: {path.stem}\n" in path.read_text()


def test_importing_the_data_sets_does_not_import_torchvision_or_scikit_learn() -> None:
    code = (
        "import sys, trainer.data.datasets\n"
        "print([name for name in ('torchvision', 'sklearn', 'hydra') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
