"""Images may be skipped, but not most of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.test_bad_input import folder_of, image_folder
from tests.trainer_command import TRAINER, run
from tests.workers import alone, train_here
from trainer.config import compose
from trainer.config.continuation import differences
from trainer.data.bad_image import BadImage
from trainer.data.loader import choose_workers
from trainer.data.sampler import Indices
from trainer.data.samples import BadBatch, Samples
from trainer.data.skipped import SkipWatch, refuse_loss
from trainer.errors import ConfigError, UnfitError
from trainer.numerics.figures import NO_SAMPLE, Figures
from trainer.run.rows import read_json_lines
from trainer.rundir import RunDir, read_json

IMAGE = torch.ones(3, 8, 8, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        (1, "23 of the last 24 training images could not be read, too many to be skipped"),
        (24, "5 of the last 6 validation images could not be read, too many to be skipped"),
    ],
)
def test_a_run_whose_images_vanish_does_not_end_as_finished(tmp_path: Path, keep: int, says: str) -> None:
    root = image_folder(tmp_path / "images", split="train", per_class=12)
    image_folder(root, split="val", per_class=3)
    arguments = [
        *folder_of(root)[1:],
        "data._target_=tests.data.vanishing.build",
        f"data.args={{root: {root}, keep: {keep}}}",
        "data.on_bad_image=skip",
        "data.workers=0",
    ]
    done = run(TRAINER, *arguments)
    assert done.returncode == 3, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert read_json(tmp_path / "runs" / "f" / "status.json")["state"] == "failed"


def test_a_bad_image_is_told_with_the_override_with_which_the_run_goes_on() -> None:
    class Bad:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            raise BadImage("a.png", "broken")

    batch = Samples(Bad(), lambda image: image, seed=0).__getitems__(Indices(0, np.array([1])))
    assert isinstance(batch, BadBatch)
    error = batch.to_error()
    assert error.added == "data.on_bad_image=skip"
    assert error.added in error.fix
    # What has been computed without it is what it computes as well.
    assert differences(compose([]), compose([error.added])) == {}
    assert differences(compose([]), compose(["data.val_fraction=0.2"])) != {}


def test_not_one_good_image_is_an_error() -> None:
    class Bad:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            raise BadImage("a.png", "broken")

    batch = Samples(Bad(), lambda image: image, seed=0, skip_bad=True).__getitems__(Indices(0, np.array([1])))
    assert isinstance(batch, BadBatch)
    assert batch.problem == "not one of 3 images can be read"


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        ({"image": IMAGE, "label": 1}, "the class of sample 1 of the data set is 'label'"),
        (IMAGE, "sample 1 of the data set is a Tensor, not a pair"),
        ((IMAGE, 1, "a.png"), "sample 1 of the data set is a tuple, not a pair"),
        ((IMAGE, 1.5), "the class of sample 1 of the data set is 1.5"),
        ((IMAGE, "1"), "the class of sample 1 of the data set is '1'"),
        ((IMAGE, None), "the class of sample 1 of the data set is None"),
        ((IMAGE, torch.tensor([0.0, 1.0])), "the class of sample 1 of the data set is tensor([0., 1.])"),
        ((IMAGE.numpy(), 1), "the image of sample 1 of the data set is a ndarray [3, 8, 8]"),
        ((IMAGE[0], 1), "the image of sample 1 of the data set is a Tensor [8, 8]"),
    ],
)
def test_an_item_that_is_no_image_with_its_class_is_told(item: object, problem: str) -> None:
    split: Any = [None, item]
    batch = Samples(split, lambda image: image, seed=0).__getitems__(Indices(0, np.array([1])))
    assert isinstance(batch, BadBatch)
    assert batch.problem == problem


@pytest.mark.parametrize("target", [1, True, 1.0, np.int64(1), torch.tensor(1), torch.tensor([1])])
def test_a_class_may_be_any_number_that_is_whole(target: object) -> None:
    split: Any = [(IMAGE, target)]
    batch = Samples(split, lambda image: image, seed=0).__getitems__(Indices(0, np.array([0])))
    assert not isinstance(batch, BadBatch)
    assert batch[1].tolist() == [1]


@pytest.mark.parametrize(
    ("mixes", "dealt", "counts"), [(False, [0], True), (True, [0, 1], True), (True, [1, 1], False)]
)
def test_a_batch_without_an_image_that_counts_has_one_that_stands_in(
    mixes: bool, dealt: list[int], counts: bool
) -> None:
    class FirstBad:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            if index == 0:
                raise BadImage("a.png", "broken")
            return torch.ones(3, 8, 8, dtype=torch.uint8), 1

    samples = Samples(FirstBad(), lambda image: image, seed=0, skip_bad=True, mixes=mixes)
    batch = samples.__getitems__(Indices(0, np.array(dealt), counts))
    assert not isinstance(batch, BadBatch)
    images, *others = batch
    assert images[0].equal(torch.ones(3, 8, 8, dtype=torch.uint8))
    assert [(part.shape, part.dtype) for part in others] == [((0,), torch.int64)] * (3 if mixes else 1)


def figures(first: int, counted: list[int]) -> Figures:
    zeros = [0.0] * len(counted)
    skipped = [0.0 if count else NO_SAMPLE for count in counted]
    return Figures(first, zeros, [float(count) for count in counted], skipped, zeros)


def test_an_image_is_listed_once_however_often_a_run_goes_on(tmp_path: Path) -> None:
    class Bad:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            if index < 2:
                raise BadImage(f"{index}.png", "broken")
            return IMAGE, 1

    listed = tmp_path / "skipped_images.jsonl"
    for dealt in ([0, 2], [0, 1, 0], [1, 0]):
        samples = Samples(Bad(), lambda image: image, seed=0, skip_bad=True, report=listed)
        samples.__getitems__(Indices(0, np.array(dealt)))
    assert [row["path"] for row in read_json_lines(listed)] == ["0.png", "1.png"]


def test_half_of_the_latest_hundred_samples_may_be_missing_but_no_more() -> None:
    watch = SkipWatch(lambda _: 10, epoch=1000)
    watch.check(figures(1, [10] * 5))
    watch.check(figures(6, [0] * 5))  # half of a hundred
    watch.check(figures(11, [0] * 9))  # too few to tell
    watch.check(figures(11, [0] * 9))  # the same ones again
    with pytest.raises(UnfitError, match="100 of the last 100 training images"):
        watch.check(figures(20, [0]))


def test_what_comes_in_one_piece_is_judged_as_a_whole() -> None:
    watch = SkipWatch(lambda _: 10, epoch=30)
    watch.check(figures(1, [6] * 500))
    with pytest.raises(UnfitError, match="21 of the last 30"):
        watch.check(figures(501, [3] * 3))


def test_no_validation_image_at_all_is_an_error() -> None:
    refuse_loss(2, 1, what="validation images")  # half of them
    with pytest.raises(UnfitError):
        refuse_loss(2, 0, what="validation images")


def test_loading_processes_take_the_cores_of_a_worker_but_one_eight_at_most() -> None:
    assert [choose_workers(None, in_memory=False, cores=cores) for cores in (0, 1, 3, 64)] == [0, 0, 2, 8]
    assert choose_workers(3, in_memory=False, cores=1) == 3
    assert choose_workers(None, in_memory=True, cores=64) == 0


def test_skipping_or_not_computes_the_same_to_the_bit_and_a_file_that_is_emptied_meanwhile_is_named(
    tmp_path: Path,
) -> None:
    root = image_folder(tmp_path / "images", split="train", per_class=12)
    image_folder(root, split="val", per_class=3)
    arguments = [*folder_of(root), "data.workers=0", "max_steps=3", "evaluate.every=end"]
    train = {name: tmp_path / "runs" / name for name in ("whole", "mixed")}
    for path in train.values():
        path.parent.mkdir(exist_ok=True)
    train_here(alone(), [*arguments, "run.name=whole"])
    train_here(alone(), [*arguments, "run.name=mixed", "data.on_bad_image=skip"], 1)
    train_here(alone(), [*arguments, "run.name=mixed"], 2)
    emptied = root / "train" / "class_1" / "7.png"
    content = emptied.read_bytes()
    emptied.write_bytes(b"")
    with pytest.raises(ConfigError, match="training images were 24 and are now 23") as refused:
        train_here(alone(), [*arguments, "run.name=mixed", "data.on_bad_image=skip"])
    assert refused.value.fix.endswith(f"left out as unreadable: {emptied}")
    emptied.write_bytes(content)
    train_here(alone(), [*arguments, "run.name=mixed", "data.on_bad_image=skip"])
    whole, mixed = (load_file(RunDir(path).weights("last")) for path in train.values())
    assert all(torch.equal(whole[name], mixed[name]) for name in whole)
