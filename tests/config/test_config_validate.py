import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torchvision import models

from trainer.check.validate import validate
from trainer.config import Config, DataConfig, ModelConfig, batch_plan
from trainer.config.keys import get, leaves
from trainer.data.sampler import StepPlan
from trainer.errors import ConfigError


def with_values(**values: object) -> Config:
    """A configuration that is valid, with `section__key=value` set."""
    config = Config(data=DataConfig(name="digits"), model=ModelConfig(name="small_resnet"))
    for path, value in values.items():
        section, _, name = path.partition("__")
        setattr(get(config, section) if name else config, name or section, value)
    return config


def refusal(config: Config, world_size: int = 2, train_samples: int | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        validate(config, world_size=world_size, train_samples=train_samples)
    return caught.value


def test_the_defaults_want_a_folder_of_images_and_nothing_else(tmp_path: Path) -> None:
    assert "needs data.root" in refusal(Config()).problem
    assert "recipe=fashion_mnist" in refusal(Config()).fix
    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").touch()
    check_accepted(Config(data=DataConfig(root=str(tmp_path))))


def test_the_batch_is_said_in_a_line() -> None:
    assert validate(with_values(), world_size=2) == ["global batch 256 = 2 workers x 128 x 1"]


@pytest.mark.parametrize(
    ("values", "problem", "fix"),
    [
        ({"precision": "fp61"}, "precision=fp61 is not a choice", "did you mean precision=fp16?"),
        ({"data__on_bad_image": "ignore"}, "data.on_bad_image=ignore", "did you mean data.on_bad_image=skip?"),
        ({"data__augment": "False"}, "data.augment=False", "did you mean data.augment=none?"),
        ({"precision": "BFloat16"}, "precision=BFloat16 is not a choice", "did you mean precision=bf16?"),
        ({"device": "gpu"}, "device=gpu is not a choice", "did you mean device=cuda?"),
        ({"device": "cuda:1"}, "device=cuda:1 is not a choice", "CUDA_VISIBLE_DEVICES=1 in front of the command"),
        ({"device": "0"}, "device=0 is not a choice", "CUDA_VISIBLE_DEVICES=0 in front of the command"),
        ({"optim__lr": -0.1}, "optim.lr=-0.1 is out of range", "at least 0"),
        ({"optim__lr": float("nan")}, "optim.lr=nan is out of range", "at least 0"),
        ({"optim__lr": float("inf")}, "optim.lr=inf is out of range", "at least 0"),
        ({"data__workers": 1000}, "data.workers=1000 is out of range", "0 to 256"),
        ({"data__channels": 2}, "data.channels=2 is neither grey nor colour", "data.channels=1"),
        ({"data__channels": 4}, "data.channels=4 is out of range", "1 to 3"),
        ({"optim__clip_norm": 0.0}, "optim.clip_norm=0 leaves nothing", "optim.clip_norm=1"),
        ({"epochs": 0}, "epochs=0 is out of range", "at least 1"),
        ({"epochs": None}, "nothing says how long the run is", "epochs=10"),
        ({"max_time": "90"}, "max_time=90 is not HH:MM:SS", "max_time=01:30:00"),
        ({"max_time": "00:00:00"}, "max_time=00:00:00 is not HH:MM:SS", "max_time=01:30:00"),
        ({"evaluate__every": "epochs"}, "evaluate.every='epochs'", "did you mean evaluate.every=epoch?"),
        ({"evaluate__every": "often"}, "evaluate.every='often'", "such as evaluate.every=500"),
        ({"evaluate__every": "100"}, "evaluate.every='100'", "evaluate.every=100"),
        ({"evaluate__every": 0}, "evaluate.every=0 is out of range", "at least 1 step"),
        ({"checkpoint__every": "soon"}, "is not auto, evaluation or a time", "checkpoint.every=10m"),
        ({"checkpoint__every": "0m"}, "is not auto, evaluation or a time", "checkpoint.every=10m"),
        ({"checkpoint__every": "500"}, "is not auto, evaluation or a time", "checkpoint.every_steps=500"),
        ({"checkpoint__every": "2h", "checkpoint__every_steps": 5}, "contradict each other", "leave one of them out"),
        ({"run__name": "a/b"}, "has a path separator", "run.name=NAME"),
        ({"run__name": "a\\b"}, "has a path separator", "run.name=NAME"),
        ({"run__name": ".."}, "means a directory above it", "run.name=NAME"),
        ({"run__name": " "}, "is empty", "run.name=NAME"),
        ({"run__name": "-rf"}, "read as an option", "run.name=NAME"),
        ({"run__name": "a\nb"}, "unprintable", "run.name=NAME"),
        ({"run__name": "é" * 65}, "longer than 128 bytes", "run.name=NAME"),
        ({"run__dir": ""}, "run.dir is empty", "run.dir=runs"),
        ({"data__name": "fashion_minst"}, "is not a data set", "did you mean data.name=fashion_mnist?"),
        ({"data__name": "folder"}, "data.name=folder needs data.root", "data.root=DIR"),
        ({"data__name": "folder", "data__root": "~nobody-of-this-name/x"}, "names the home of nobody", "data.root=/"),
        ({"data__root": "photos"}, "data.root=photos has no effect with data.name=digits", "data.name=folder"),
        ({"data___target_": "nodots"}, "is not a dotted path", "package.module.callable"),
        (
            {"model__name": "resnet19"},
            "is not an image classification model",
            "did you mean model.name=resnet18?",
        ),
        ({"model__name": "vit_b_16", "data__image_size": 100}, "patches of 16 x 16", "data.image_size=96 or "),
        ({"model__name": "VGG11", "data__image_size": 31}, "at least 32 pixels a side", "data.image_size=32"),
        ({"model__name": "resnet18", "data__channels": 1}, "resnet18 takes images of 3 channels", "data.channels=3"),
        ({"optim__args": {"momentum": "high"}}, "optim.args.momentum takes a number, got 'high'", "leave it out"),
        ({"optim__args": {"nesterov": 1}}, "optim.args.nesterov takes true or false, got 1", "leave it out"),
        (
            {"optim__name": "adamw", "optim__args": {"betas": 0.9}},
            "optim.args.betas takes two numbers such as [0.9,0.999], got 0.9",
            "leave it out",
        ),
        ({"model__args": {"widht": 8}}, "model.args.widht is not an argument of small_resnet", "model.args.width?"),
        ({"model__args": {"num_classes": 3}}, "model.args.num_classes cannot be given", "comes from the data"),
        ({"model__weights": "DEFAULT"}, "small_resnet has no pretrained weights", "model.weights=null"),
        ({"model__name": "resnet18", "model__weights": "none"}, "has no weights of that name", "model.weights=null"),
        ({"model__name": "resnet18", "model__weights": "True"}, "has no weights of that name", "model.weights=DEFAULT"),
        ({"data__name": "ImageFolder"}, "data.name=ImageFolder is not a data set", "did you mean data.name=folder?"),
        ({"model__weights": "nowhere.pth"}, "model.weights=nowhere.pth does not exist", ".safetensors"),
        ({"model___target_": "my model"}, "is not a dotted path", "package.module.callable"),
        ({"optim__name": "adamv"}, "is not a class of torch.optim", "did you mean optim.name=adam"),
        ({"optim__name": "lbfgs"}, "cannot be used: it needs a closure", "optim.name=sgd"),
        ({"optim__args": {"betas": 1}}, "optim.args.betas is not an argument of torch.optim.SGD", "momentum"),
        ({"optim__args": {"momentun": 1}}, "optim.args.momentun", "did you mean optim.args.momentum?"),
        ({"optim__args": {"momentum": math.nan}}, "optim.args.momentum=nan is not a finite number", "a finite one"),
        (
            {"optim__name": "adam", "optim__args": {"betas": [0.9, math.inf]}},
            "optim.args.betas=[0.9, inf]",
            "a finite one",
        ),
        ({"data__timeout_s": 30 * 86_400}, "data.timeout_s=2592000 is out of range", "1 to 604800 seconds"),
        ({"distributed__timeout_s": 10**14}, "distributed.timeout_s=10", "1 to 604800 seconds"),
        ({"optim__args": {"lr": 1}}, "optim.args.lr has a key of its own", "optim.lr=VALUE"),
        (
            {"precision": "tf32", "device": "cpu"},
            "precision=tf32 does not exist on device=cpu",
            "precision=auto",
        ),
        (
            {"distributed__sync_batchnorm": True, "device": "cpu"},
            "works on GPUs only",
            "sync_batchnorm=false",
        ),
        ({"optim__schedule": "step", "optim__step_epochs": [5, 3]}, "not a rising list", "[30,60,80]"),
        ({"global_batch_size": 1}, "less than one sample for each of 2 workers", "global_batch_size=2"),
    ],
)
def test_what_cannot_work_is_refused_with_its_fix(values: dict[str, object], problem: str, fix: str) -> None:
    error = refusal(with_values(**values))
    assert problem in error.problem
    assert fix in error.fix
    assert error.exit_code == 2


def test_all_problems_are_told_at_once() -> None:
    error = refusal(with_values(precision="fp61", optim__lr=-1.0, run__name="a/b"))
    told = str(error).splitlines()
    assert told[0] == "3 problems in the configuration"
    assert [line.split("=")[0].strip() for line in told[1:]] == ["precision", "optim.lr", "run.name"]
    # Nobody knows the rate that was meant.
    assert error.mended(["precision=fp61", "optim.lr=-1", "run.name=a/b"]) is None


def check_accepted(config: Config, world_size: int = 2) -> None:
    """Asserts that a configuration is valid: its batch arithmetic is said, and no problem."""
    assert validate(config, world_size=world_size)[0].startswith(f"global batch {config.global_batch_size} = ")


BOUNDS = [
    (path, int(bound) if key.type is int else bound, beyond if key.type is int else math.copysign(1e-9, beyond))
    for path, key in leaves().items()
    for bound, beyond in ((key.low, -1), (key.high, 1))
    if bound is not None and path != "global_batch_size"
]


@pytest.mark.parametrize(("path", "bound", "beyond"), BOUNDS, ids=lambda value: str(value))
def test_a_bound_itself_is_allowed_and_what_lies_beyond_is_not(path: str, bound: float, beyond: float) -> None:
    name = path.replace(".", "__")
    check_accepted(with_values(**{name: bound}), world_size=1)
    assert f"{path}={bound + beyond} is out of range" in str(refusal(with_values(**{name: bound + beyond})))


def _images(*names: str) -> Callable[[Path], object]:
    """Makes a root with files called so."""

    def make(root: Path) -> None:
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text("no image, but not empty")

    return make


@pytest.mark.parametrize(
    ("make", "problem", "fix"),
    [
        (lambda path: None, "does not exist", "a folder per class"),
        (lambda path: path.write_text("x"), "is a file", "unpack it"),
        (lambda path: path.mkdir(), "no images in folders, one for each class: it holds nothing", "images/CLASS/"),
        (_images("a.jpg", "b.png"), "it holds only a.jpg, b.png", "images/CLASS/"),
        (_images("a.jpg", "../b/b.jpg"), "holds images, but no folder per class", "one of several classes, data.root="),
        (_images("cats/deep/a.jpg", "dogs/notes.txt", ".dogs/a.jpg"), "images of only one class, cats", "two classes"),
        (_images("train/a.jpg", "val/b.jpg"), "they hold no folder per class", "images/train/CLASS/"),
        (_images("train/cats/a.jpg", "train/dogs/a.jpg", "val/a.jpg"), "its images have no labels", "as in"),
        (_images("train/cats/a.jpg", "train/dogs/a.jpg", "val/cats/a.txt"), "val has no images in folders", "/CLASS/"),
        (
            _images("train/cats/a.jpg", "train/dogs/a.jpg", "val/cats/a.jpg", "val/elks/deep/a.jpg", "val/empty/a.txt"),
            "val has classes that {root}/train has no images of: elks",
            "the same folders",
        ),
        (
            _images(
                *(f"{split}/{number}/a.jpg" for split, many in (("train", 9), ("val", 300)) for number in range(many))
            ),
            "no images of: 10, 100, 101 and 288 more",
            "the same folders",
        ),
    ],
)
@pytest.mark.parametrize("name", ["folder", "imagenet"])
def test_a_folder_that_is_no_data_set_is_refused_before_anything_starts(
    name: str, make: Callable[[Path], object], problem: str, fix: str, tmp_path: Path
) -> None:
    root = tmp_path / "images"
    make(root)
    error = refusal(with_values(data__name=name, data__root=str(root)))
    assert problem.format(root=root) in error.problem
    assert fix in error.fix


@pytest.mark.parametrize(
    "names",
    [
        ("cats/deep/er/a.JPG", "dogs/a.webp"),
        ("Training/cats/a.jpg", "Training/dogs/a.jpg", "test/dogs/a.jpg"),
        ("stray.txt", "cats/stray.txt", "cats/a.jpg", "dogs/a.jpg", "empty/.gitkeep"),
        ("train/cats/a.jpg", "train/dogs/a.jpg", "train/elks/a.jpg", "val/dogs/a.jpg", "val/notes/a.txt"),
    ],
)
def test_a_folder_of_images_is_accepted(names: tuple[str, ...], tmp_path: Path) -> None:
    _images(*names)(tmp_path)
    check_accepted(with_values(data__name="folder", data__root=str(tmp_path)))


def test_a_metric_that_means_nothing_for_so_few_classes_is_refused(tmp_path: Path) -> None:
    _images(*(f"{number}/a.jpg" for number in range(5)))(tmp_path)
    top5 = {"data__name": "folder", "data__root": str(tmp_path), "evaluate__best": "val/ema_accuracy_top5"}
    error = refusal(with_values(**top5, ema__decay=0.9))
    assert error.problem == "evaluate.best=val/ema_accuracy_top5 says nothing: there are only 5 classes"
    assert error.fix == "evaluate.best=val/ema_accuracy"
    _images("6/a.jpg")(tmp_path)
    check_accepted(with_values(**top5, ema__decay=0.9))


def test_a_glance_at_ten_thousand_classes_reads_few_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(10_000):
        (tmp_path / f"{number:05}").mkdir()
    read: list[object] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: read.append(folder) or scandir(folder))
    config = with_values(data__name="folder", data__root=str(tmp_path))
    # Whether there are images at all, only the worker finds out.
    check_accepted(config)
    assert len(read) <= 80
    for number in (3, 5):
        (tmp_path / f"{number:05}" / "a.jpg").touch()
    read.clear()
    check_accepted(config)
    assert len(read) <= 10


SETS = """
from somewhere_else import other as borrowed
def build(count, *, flip=False): ...
@borrowed
def decorated(count): ...
class Net: ...
Lazy = build
match {"made": build}:
    case {"made": matched, **others}: ...
def redefined(): ...
if Lazy:
    def redefined(count): ...
"""


@pytest.mark.parametrize(
    ("values", "problem", "fix"),
    [
        ({"data___target_": "no_such_package.build"}, "there is no module no_such_package", "working directory"),
        ({"data___target_": "own.no_such.build"}, "there is no module own.no_such", "working directory"),
        ({"data___target_": "own.sets.biuld"}, "sets.py has no biuld", "did you mean data._target_=own.sets.build?"),
        ({"data___target_": "own.broken.build"}, "broken.py:2: ", "mend the file"),
        ({"data___target_": "own.sets.build"}, "missing a required argument: 'count'", "it takes count, flip"),
        (
            {"data___target_": "own.sets.build", "data__args": {"count": 1, "counts": 1}},
            "unexpected keyword argument 'counts'",
            "it takes count, flip",
        ),
        ({"data__args": {"size": 3}}, "data.args does not fit data.name=digits", "it takes no arguments"),
        (
            {"data__name": "synthetic", "data__args": {"clases": 3}},
            "unexpected keyword argument 'clases'",
            "it takes n, n_val, classes, size, channels",
        ),
        ({"model___target_": "own.sets.Nett"}, "sets.py has no Nett", "did you mean model._target_=own.sets.Net?"),
        ({"model___target_": "torchvision.modells.resnet18"}, "has no modells", "torchvision.models.resnet18"),
    ],
)
def test_a_target_that_cannot_be_imported_is_refused_without_importing_it(
    values: dict[str, object], problem: str, fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_a_package(tmp_path, monkeypatch)
    error = refusal(with_values(**values))
    assert problem in error.problem
    assert fix in error.fix


@pytest.mark.parametrize(
    ("key", "target"),
    [
        ("data", "own.sets.decorated"),
        ("data", "own.sets.borrowed"),
        ("data", "own.sets.Lazy"),
        ("data", "own.sets.matched"),
        ("data", "own.sets.others"),
        ("data", "own.sets.redefined"),
        ("data", "own.sets.Net.made"),
        ("data", "own.dynamic.anything"),
        ("data", "own.starred.anything"),
        ("model", "own.sets.Net"),
        ("model", "torchvision.models.resnet18"),
        ("model", "torch.nn.Identity"),
    ],
)
def test_a_target_that_may_be_there_is_left_to_the_import(
    key: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_a_package(tmp_path, monkeypatch)
    check_accepted(with_values(**{f"{key}___target_": target, "data__args": {"count": 1} if key == "data" else {}}))


def in_a_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes to a folder with a package `own` (without `__init__.py`), whose modules must not be imported."""
    (folder / "own").mkdir()
    modules = {
        "sets": SETS,
        "broken": "\ndef build(:\n",
        "dynamic": "globals()['x'] = 1\n",
        "starred": "from os import *",
    }
    for name, source in modules.items():
        (folder / "own" / f"{name}.py").write_text(f"{source}\nraise SystemExit('must not run')\n")
    monkeypatch.chdir(folder)


@pytest.mark.parametrize(("limit", "workers"), [(1, 2), (3, 4)])
def test_a_limit_below_the_number_of_workers_is_refused(limit: int, workers: int) -> None:
    error = refusal(with_values(data__limit=limit), workers)
    assert error.problem == f"data.limit={limit} leaves fewer training images than the {workers} workers"
    assert error.fix == f"data.limit={workers} or more"
    check_accepted(with_values(data__limit=workers), workers)
    # Which takes a limit of its own.
    check_accepted(with_values(data__limit=limit, debug=True), workers)


def test_a_weights_file_must_be_a_file(tmp_path: Path) -> None:
    assert "is not a file" in refusal(with_values(model__weights=str(tmp_path))).problem
    (tmp_path / "w.pth").write_bytes(b"PK\x03\x04 and so on")
    check_accepted(with_values(model__weights=str(tmp_path / "w.pth")))


SAFETENSORS = b"\x40\0\0\0\0\0\0\0" + b'{"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}'.ljust(64) + b"abcd"


@pytest.mark.parametrize(
    ("name", "content", "problem", "fix"),
    [
        ("w.safetensors", b"", "is empty", "download it again"),
        ("w.safetensors", SAFETENSORS[:-1], "is cut off: it has 75 of at least 76 bytes", "download it again"),
        ("w.safetensors", b"PK\x03\x04 and so on", "is no safetensors file: it begins with b'PK", "rename it to .pth"),
        ("w.safetensors", b"{}", "is no safetensors file: it begins with b'{}'", "download it again"),
        ("w.pth", SAFETENSORS, "is a safetensors file by another name", "rename it to .safetensors"),
        ("w.pth", b"\n<html>404</html>", "is a web page", "download it again"),
        ("w.bin", b"version https://git-lfs.github.com/spec/v1", "is a Git LFS pointer", "git lfs pull"),
        ("w.pt", b"install me", "is no PyTorch file: it begins with b'install me'", "download it again"),
    ],
)
def test_a_file_that_is_none_of_weights_is_refused_by_its_first_bytes(
    name: str, content: bytes, problem: str, fix: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    error = refusal(with_values(model__weights=str(tmp_path / name)))
    assert error.problem.startswith(f"{tmp_path / name} {problem}")
    assert fix in error.fix


def test_a_safetensors_file_is_accepted_by_its_header(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(SAFETENSORS)
    check_accepted(with_values(model__weights=str(tmp_path / "w.safetensors")))


def test_weights_of_a_model_that_arguments_make_of_another_are_accepted(tmp_path: Path) -> None:
    with torch.device("meta"):
        state = models.wide_resnet50_2(num_classes=2).state_dict()
    tensors = {
        key: {"dtype": "F32", "shape": list(value.shape), "data_offsets": [0, 0]} for key, value in state.items()
    }
    header = json.dumps(tensors).encode()
    file = tmp_path / "wide.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    error = refusal(with_values(model__name="resnet50", model__weights=str(file)))
    assert "it has the parameters of wide_resnet50_2" in error.problem
    check_accepted(with_values(model__name="resnet50", model__weights=str(file), model__args={"width_per_group": 128}))


def test_the_weights_of_a_torchvision_model_are_checked_by_name() -> None:
    check_accepted(with_values(model__name="ResNet18", model__weights="IMAGENET1K_V1"))
    error = refusal(with_values(model__name="resnet18", model__weights="IMAGENET1K_V2"))
    assert "did you mean model.weights=IMAGENET1K_V1?" in error.fix


def test_the_arguments_of_optimizers_and_models_are_accepted() -> None:
    check_accepted(
        with_values(optim__args={"momentum": 1, "nesterov": False, "foreach": None}, model__args={"width": 8})
    )
    check_accepted(with_values(optim__name="Adafactor", optim__args={"eps": [None, 0.001]}))
    check_accepted(with_values(model__name="resnet18", model__args={"zero_init_residual": True}))


@pytest.mark.parametrize("name", ["capturable", "differentiable"])
def test_arguments_that_only_other_loops_can_use_are_refused_before_the_start(name: str) -> None:
    error = refusal(with_values(optim__name="adam", optim__args={name: True}))
    assert error.problem.startswith(f"optim.args.{name}=true cannot be used: it is for ")
    check_accepted(with_values(optim__name="adam", optim__args={name: False}))


def test_own_targets_need_no_known_name() -> None:
    unknown = {"model__name": "x", "data__name": "y"}
    assert "model.name=x" in str(refusal(with_values(**unknown)))
    check_accepted(with_values(model___target_="torch.nn.Identity", data___target_="collections.Counter", **unknown))


def test_fewer_samples_than_workers_is_an_error() -> None:
    assert "fewer training images (3) than workers (4)" in refusal(with_values(), 4, train_samples=3).problem
    assert any("every step takes all 100" in note for note in validate(with_values(), world_size=4, train_samples=100))


def test_a_batch_that_does_not_divide_is_said_once_with_the_nearest_that_do() -> None:
    (note,) = validate(with_values(global_batch_size=250), world_size=4)
    assert "global_batch_size=248 or global_batch_size=252 would divide" in note
    (note,) = validate(with_values(micro_batch_size=48), world_size=2)
    assert "global_batch_size=192 or global_batch_size=288 would divide" in note


def test_a_micro_batch_above_the_share_is_said() -> None:
    notes = validate(with_values(micro_batch_size=500), world_size=2)
    assert notes == [
        "global batch 256 = 2 workers x 128 x 1",
        "micro_batch_size=500 is more than a worker's share of 128, which is taken at once",
    ]


@example(total=217, workers=2, micro=12)
@given(total=st.integers(1, 5000), workers=st.integers(1, 64), micro=st.one_of(st.none(), st.integers(1, 600)))
def test_the_plan_says_what_the_sampler_does(total: int, workers: int, micro: int | None) -> None:
    if total < workers:
        with pytest.raises(ConfigError):
            batch_plan(total, workers, micro)
        return
    plan = batch_plan(total, workers, micro)
    shares = [
        StepPlan(samples=total, global_batch_size=total, world_size=workers, rank=rank, micro_batch_size=micro)
        .share(0)
        .micro_batches
        for rank in range(workers)
    ]
    sizes = {size for share in shares for size in share}
    assert plan.micro_batch_size == StepPlan(total, total, workers, 0, micro).largest_micro_batch
    assert plan.share == max(map(sum, shares))
    assert plan.accumulation == max(map(len, shares))
    assert plan.micro_batch_size == max(sizes)
    assert plan.even == (len(sizes) == 1 and len({len(share) for share in shares}) == 1)
    assert bool(plan.nearest) != plan.even
    for value in plan.nearest:
        assert batch_plan(value, workers, micro).even
        assert value != total
    if plan.even:
        factors = [int(number) for number in re.findall(r"\d+", str(plan))]
        assert factors == [total, workers, plan.micro_batch_size, plan.accumulation]
        assert workers * plan.micro_batch_size * plan.accumulation == total


def test_a_run_that_goes_on_needs_its_first_weights_no_more(tmp_path: Path) -> None:
    config = with_values(model__weights=str(tmp_path / "gone.pth"), run__dir=str(tmp_path), run__name="r")
    assert "gone.pth does not exist" in refusal(config).problem
    (tmp_path / "r" / "checkpoints" / "step-00000001").mkdir(parents=True)
    check_accepted(config)
    config.run.fresh = True
    assert "gone.pth does not exist" in refusal(config).problem
