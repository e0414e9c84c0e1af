"""Checks a composed configuration before anything heavy is imported or started: all problems at once."""

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer import runname
from trainer.config import names
from trainer.config.batch import batch_plan
from trainer.config.keys import get, leaves
from trainer.config.schema import Config
from trainer.config.suggest import did_you_mean
from trainer.config.timespan import parse_time_span
from trainer.errors import ConfigError
from trainer.judge import AVERAGED, metric_names

_DURATION = re.compile(r"\d{1,4}:[0-5]\d:[0-5]\d")
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_WEIGHT_FILES = (".pth", ".pt", ".safetensors", ".bin")
_OWN_KEYS = {"lr": "optim.lr", "weight_decay": "optim.weight_decay"}


@dataclass(frozen=True, slots=True)
class _Problem:
    text: str
    fix: str


def validate(config: Config, *, world_size: int, train_samples: int | None = None) -> list[str]:
    """Checks ranges, words, names, paths and batch arithmetic.

    Args:
        config: as composed.
        world_size: workers, over all nodes.
        train_samples: images of the training split, where that is known already.

    Returns:
        Notes to be said once, the batch arithmetic among them.

    Raises:
        ConfigError: what cannot work; with several problems, one per line with its fix.
    """
    problems = [
        *_ranges(config),
        *_run(config),
        *_evaluation(config),
        *_data(config),
        *_model(config),
        *_optimizer(config),
        *_average(config),
        *_combinations(config),
        *_checkpoint(config),
    ]
    notes: list[str] = []
    if not any("batch_size" in problem.text for problem in problems):
        problems += _batch(config, world_size, train_samples, notes)
    _refuse(problems)
    return notes + _remarks(config)


def validate_launch(config: Config) -> None:
    """Checks what matters to a job that runs somebody else's program: ranges, words, and the run's name.

    Raises:
        ConfigError: what cannot work.
    """
    _refuse([*_ranges(config), *_name(config)])


def _refuse(problems: list[_Problem]) -> None:
    if len(problems) == 1:
        raise ConfigError(problems[0].text, problems[0].fix)
    if problems:
        lines = "\n  ".join(f"{problem.text}: {problem.fix}" for problem in problems)
        raise ConfigError(f"{len(problems)} problems in the configuration", lines)


def _ranges(config: Config) -> Iterator[_Problem]:
    for path, key in leaves().items():
        value = get(config, path)
        if value is None:
            continue
        if key.choices and value not in key.choices:
            yield _Problem(f"{path}={value} is not a choice", did_you_mean(str(value), key.choices, prefix=f"{path}="))
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            low, high = key.low, key.high
            outside = (low is not None and value < low) or (high is not None and value > high)
            if outside or not math.isfinite(value):
                unit = f" {key.unit}" if key.unit else ""
                yield _Problem(f"{path}={value} is out of range", f"take {key.range or 'a finite number'}{unit}")


def _checkpoint(config: Config) -> Iterator[_Problem]:
    options = config.checkpoint
    if options.every not in ("auto", "evaluation") and parse_time_span(options.every) is None:
        fix = (
            f"checkpoint.every_steps={options.every}" if options.every.isdecimal() else "checkpoint.every=10m, 90s, 2h"
        )
        yield _Problem(f"checkpoint.every={options.every} is not auto, evaluation or a time", fix)
    elif options.every != "auto" and options.every_steps is not None:
        yield _Problem(
            f"checkpoint.every={options.every} and checkpoint.every_steps={options.every_steps} contradict each other",
            "leave one of them out",
        )


def _name(config: Config) -> Iterator[_Problem]:
    name = config.run.name
    if name is not None and (wrong := runname.wrong_name(name)):
        yield _Problem(f"run.name={name!r} {wrong}", runname.NAME_FIX)
    if not config.run.dir.strip():
        yield _Problem("run.dir is empty", "run.dir=runs")


def _run(config: Config) -> Iterator[_Problem]:
    yield from _name(config)
    if config.max_time is not None and not (_DURATION.fullmatch(config.max_time) and config.max_time.strip("0:")):
        yield _Problem(f"max_time={config.max_time} is not HH:MM:SS", "max_time=01:30:00 is an hour and a half")
    if config.epochs is None and config.max_steps is None:
        # max_time is no length: the schedule of the learning rate must know where the run ends.
        yield _Problem("nothing says how long the run is", "set one of epochs=10 or max_steps=1000")


def _evaluation(config: Config) -> Iterator[_Problem]:
    every = config.evaluate.every
    if isinstance(every, str) and every not in ("epoch", "end"):
        fix = f"evaluate.every={int(every)}" if every.isdecimal() else did_you_mean(every, ("epoch", "end"))
        yield _Problem(f"evaluate.every={every!r} is not epoch, end or a number of steps", fix)
    elif isinstance(every, int) and every < 1:
        yield _Problem(f"evaluate.every={every} is out of range", "take at least 1 step, epoch or end")
    best = config.evaluate.best
    averages = config.ema.decay is not None
    if not averages and best in metric_names(averages=True) and best.startswith(AVERAGED):
        yield _Problem(f"evaluate.best={best} needs a moving average of the weights", "ema.decay=0.999")
    elif best not in metric_names(averages=averages):
        offer = did_you_mean(best, metric_names(averages=averages), prefix="evaluate.best=")
        yield _Problem(f"evaluate.best={best} is not a metric of the evaluation", offer)
    if config.evaluate.patience is not None and every == "end":
        yield _Problem("evaluate.patience cannot end a run whose only evaluation is at its end", "evaluate.every=epoch")


def _data(config: Config) -> Iterator[_Problem]:
    data = config.data
    if data._target_ is not None:
        yield from _target("data._target_", data._target_)
    elif data.name not in names.dataset_names():
        yield _Problem(
            f"data.name={data.name} is not a data set",
            did_you_mean(data.name, names.dataset_names(), prefix="data.name="),
        )
    if data.channels == 2:
        yield _Problem("data.channels=2 is neither grey nor colour", "data.channels=1 or data.channels=3")
    if data._target_ is None and data.name in ("folder", "imagenet"):
        yield from _root(data.root, data.name)


def _root(root: str | None, name: str) -> Iterator[_Problem]:
    fix = "data.root=DIR, the directory that holds a folder per class"
    if not root:
        yield _Problem(
            f"data.name={name} needs data.root", f"{fix}; or a recipe with data of its own: recipe=fashion_mnist"
        )
        return
    path = Path(root).expanduser()
    try:
        if not path.exists():
            yield _Problem(f"data.root={root} does not exist", fix)
        elif not path.is_dir():
            yield _Problem(f"data.root={root} is not a directory", fix)
        else:
            with os.scandir(path) as entries:
                if next(entries, None) is None:
                    yield _Problem(f"data.root={root} is empty", fix)
    except OSError as error:
        yield _Problem(
            f"data.root={root} cannot be read ({error.strerror})",
            "check its permissions, or another data.root",
        )


def _model(config: Config) -> Iterator[_Problem]:
    model = config.model
    if model._target_ is not None:
        yield from _target("model._target_", model._target_)
    elif model.name.lower() not in names.model_names():
        yield _Problem(
            f"model.name={model.name} is not an image classification model",
            did_you_mean(model.name, names.model_names(), prefix="model.name="),
        )
        return
    if model.weights is None:
        return
    if is_weights_file(model.weights):
        yield from _weights_file(model.weights)
    elif model._target_ is None:
        known = names.weights_names(model.name)
        if not known:
            yield _Problem(
                f"model.weights={model.weights}: {model.name} has no pretrained weights",
                "model.weights=null, or a .safetensors or .pth file",
            )
        elif model.weights not in known:
            yield _Problem(
                f"model.weights={model.weights}: {model.name} has no weights of that name",
                did_you_mean(model.weights, known, prefix="model.weights="),
            )


def is_weights_file(weights: str) -> bool:
    """Whether `model.weights` means a file rather than the name of torchvision's weights."""
    return "/" in weights or os.sep in weights or weights.lower().endswith(_WEIGHT_FILES)


def _weights_file(weights: str) -> Iterator[_Problem]:
    path = Path(weights).expanduser()
    fix = "name a .safetensors or .pth file"
    if not path.exists():
        yield _Problem(f"model.weights={weights} does not exist", fix)
    elif not path.is_file():
        yield _Problem(f"model.weights={weights} is not a file", fix)
    elif not os.access(path, os.R_OK):
        yield _Problem(f"model.weights={weights} cannot be read", "check its permissions")


def _target(key: str, target: str) -> Iterator[_Problem]:
    if not _DOTTED.fullmatch(target):
        yield _Problem(f"{key}={target} is not a dotted path", f"{key}=package.module.callable")


def _optimizer(config: Config) -> Iterator[_Problem]:
    optim = config.optim
    known = names.optimizer_class(optim.name)
    if known is None:
        options = [name.lower() for name in names.optimizer_names()]
        yield _Problem(
            f"optim.name={optim.name} is not a class of torch.optim",
            did_you_mean(optim.name, options, prefix="optim.name="),
        )
        return
    if known in names.REFUSED_OPTIMIZERS:
        yield _Problem(
            f"optim.name={optim.name} cannot be used: {names.REFUSED_OPTIMIZERS[known]}",
            "optim.name=sgd or adamw",
        )
        return
    accepted = [name for name in names.optimizer_arguments(known) if name not in _OWN_KEYS]
    for name in optim.args:
        if name in _OWN_KEYS:
            yield _Problem(f"optim.args.{name} has a key of its own", f"{_OWN_KEYS[name]}=VALUE")
        elif name not in accepted:
            offer = did_you_mean(name, accepted, prefix="optim.args.")
            yield _Problem(f"optim.args.{name} is not an argument of torch.optim.{known}", offer)


def _average(config: Config) -> Iterator[_Problem]:
    decay = config.ema.decay
    if decay is not None and not 0 < decay < 1:
        yield _Problem(f"ema.decay={decay} is out of range", "take a number between 0 and 1 such as 0.999, or null")


def _combinations(config: Config) -> Iterator[_Problem]:
    cpu = config.device == "cpu"
    if cpu and config.precision == "tf32":
        yield _Problem("precision=tf32 does not exist on device=cpu", "precision=auto")
    if cpu and config.distributed.sync_batchnorm:
        yield _Problem("distributed.sync_batchnorm works on GPUs only", "distributed.sync_batchnorm=false")
    clip = config.optim.clip_norm
    if clip is not None and clip <= 0:
        yield _Problem(
            f"optim.clip_norm={clip:g} leaves nothing of the gradients", "optim.clip_norm=1, or null for none"
        )
    if config.optim.schedule == "step":
        epochs = config.optim.step_epochs
        if not epochs or any(later <= earlier for earlier, later in zip([0, *epochs], epochs, strict=False)):
            yield _Problem(f"optim.step_epochs={epochs} is not a rising list of epochs", "optim.step_epochs=[30,60,80]")


def _batch(config: Config, world_size: int, train_samples: int | None, notes: list[str]) -> list[_Problem]:
    try:
        plan = batch_plan(config.global_batch_size, world_size, config.micro_batch_size)
    except ConfigError as error:
        return [_Problem(error.problem, error.fix)]
    notes.append(str(plan))
    micro = config.micro_batch_size
    if micro is not None and micro > plan.share:
        notes.append(f"micro_batch_size={micro} is more than a worker's share of {plan.share}, which is taken at once")
    if train_samples is None:
        return []
    if train_samples < world_size:
        return [
            _Problem(
                f"{train_samples} training images are fewer than {world_size} workers",
                f"cluster.gpus_per_node={max(train_samples, 1)} or fewer, or more images",
            )
        ]
    if train_samples < config.global_batch_size:
        batch = config.global_batch_size
        notes.append(f"global_batch_size={batch}: every step takes all {train_samples} training images")
    return []


def _remarks(config: Config) -> list[str]:
    late: list[Any] = [epoch for epoch in config.optim.step_epochs if config.epochs and epoch >= config.epochs]
    if config.optim.schedule == "step" and late:
        return [f"optim.step_epochs: the run ends before epoch {late[0]}"]
    return []
