"""Checks a composed configuration before anything heavy is imported or started: all problems at once."""

import math
import re
from collections.abc import Iterator
from typing import Any

from trainer.check.sources import data_problems, model_problems
from trainer.config import names
from trainer.config.batch import batch_plan
from trainer.config.keys import get, leaves
from trainer.config.schema import Config
from trainer.config.suggest import choice, closest, did_you_mean, renamed, replaced
from trainer.config.timespan import parse_seconds, parse_time_span, spelled
from trainer.errors import ConfigError, SeveralErrors
from trainer.evaluate.judge import AVERAGED, metric_names
from trainer.run import runname

_DURATION = re.compile(r"\d{1,4}:[0-5]\d:[0-5]\d")
_OWN_KEYS = {"lr": "optim.lr", "weight_decay": "optim.weight_decay"}
_USELESS = {
    "capturable": "it is for steps inside CUDA graphs, which are not recorded here",
    "differentiable": "it is for gradients through the update itself, which nothing asks for here",
}


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
        UnfitError: the data cannot be read.
    """
    problems = [
        *_ranges(config),
        *_run(config),
        *_evaluation(config),
        *data_problems(config),
        *model_problems(config),
        *_optimizer(config),
        *_average(config),
        *_combinations(config),
        *_checkpoint(config),
        *_cluster(config),
    ]
    notes: list[str] = []
    if not any("batch_size" in problem.problem for problem in problems):
        problems += _batch(config, world_size, train_samples, notes)
    _refuse(problems)
    return notes + _remarks(config)


def validate_launch(config: Config) -> None:
    """Checks what matters to a job that runs somebody else's program: ranges, words, and the run's name.

    Raises:
        ConfigError: what cannot work.
    """
    _refuse([*_ranges(config), *_name(config), *_cluster(config)])


def _refuse(problems: list[ConfigError]) -> None:
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise SeveralErrors(problems)


def _ranges(config: Config) -> Iterator[ConfigError]:
    for path, key in leaves().items():
        value = get(config, path)
        if value is None:
            continue
        if key.choices and value not in key.choices:
            yield ConfigError(
                f"{path}={value} is not a choice",
                choice(path, str(value), key.choices),
                instead=replaced(path, str(value), key.choices),
            )
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            low, high = key.low, key.high
            outside = (low is not None and value < low) or (high is not None and value > high)
            if outside or not math.isfinite(value):
                unit = f" {key.unit}" if key.unit else ""
                yield ConfigError(f"{path}={value} is out of range", f"take {key.range or 'a finite number'}{unit}")


def _checkpoint(config: Config) -> Iterator[ConfigError]:
    options = config.checkpoint
    if options.every not in ("auto", "evaluation") and parse_time_span(options.every) is None:
        meant, written = "", f"checkpoint.every={options.every}"
        if options.every.isdecimal() and int(options.every):
            meant = f"checkpoint.every_steps={options.every}"
        elif near := closest(options.every, ("auto", "evaluation")) or spelled(options.every):
            meant = f"checkpoint.every={near}"
        yield ConfigError(
            f"{written} is not auto, evaluation or a time",
            meant or "checkpoint.every=10m, 90s, 2h",
            instead=([written], [meant]) if meant else None,
        )
    elif options.every != "auto" and options.every_steps is not None:
        yield ConfigError(
            f"checkpoint.every={options.every} and checkpoint.every_steps={options.every_steps} contradict each other",
            "leave one of them out",
        )


def _cluster(config: Config) -> Iterator[ConfigError]:
    timeout = config.cluster.hang_timeout
    if timeout is None or timeout == "auto":
        return
    seconds = parse_seconds(timeout)
    if seconds is None:
        near = closest(timeout, ("auto",)) or spelled(timeout)
        yield ConfigError(
            f"cluster.hang_timeout={timeout} is not auto, 0 or a time",
            f"cluster.hang_timeout={near}" if near else "cluster.hang_timeout=90s, 10m, or 0 for no watch",
            instead=([f"cluster.hang_timeout={timeout}"], [f"cluster.hang_timeout={near}"]) if near else None,
        )
    elif 0 < seconds < 1:
        yield ConfigError(
            f"cluster.hang_timeout={timeout} is out of range", "cluster.hang_timeout=1s or more, or 0 for no watch"
        )


def _name(config: Config) -> Iterator[ConfigError]:
    name = config.run.name
    if name is not None and (wrong := runname.wrong_name(name)):
        yield ConfigError(f"run.name={name!r} {wrong}", runname.NAME_FIX)
    if not config.run.dir.strip():
        yield ConfigError("run.dir is empty", "run.dir=runs")


def _run(config: Config) -> Iterator[ConfigError]:
    yield from _name(config)
    if config.max_time is not None and not (_DURATION.fullmatch(config.max_time) and config.max_time.strip("0:")):
        seconds = int(parse_time_span(config.max_time) or parse_time_span(spelled(config.max_time) or "") or 0)
        meant = f"max_time={seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        yield ConfigError(
            f"max_time={config.max_time} is not HH:MM:SS",
            meant if seconds else "max_time=01:30:00 is an hour and a half",
            instead=([f"max_time={config.max_time}"], [meant]) if seconds else None,
        )
    if config.epochs is None and config.max_steps is None:
        # max_time is no length: the schedule of the learning rate must know where the run ends.
        yield ConfigError("nothing says how long the run is", "set one of epochs=10 or max_steps=1000")


def _evaluation(config: Config) -> Iterator[ConfigError]:
    every = config.evaluate.every
    if isinstance(every, str) and every not in ("epoch", "end"):
        fix, words = "evaluate.every=epoch, end, or a number of steps such as evaluate.every=500", ("epoch", "end")
        if near := closest(every, words):
            fix = f"did you mean evaluate.every={near}?"
        elif every.isdecimal():
            fix = f"evaluate.every={int(every)}"
        yield ConfigError(
            f"evaluate.every={every!r} is not epoch, end or a number of steps",
            fix,
            instead=replaced("evaluate.every", every, words),
        )
    elif isinstance(every, int) and every < 1:
        yield ConfigError(f"evaluate.every={every} is out of range", "evaluate.every=epoch, end, or at least 1 step")
    best = config.evaluate.best
    averages = config.ema.decay is not None
    if not averages and best in metric_names(averages=True) and best.startswith(AVERAGED):
        yield ConfigError(f"evaluate.best={best} needs a moving average of the weights", "ema.decay=0.999")
    elif best not in metric_names(averages=averages):
        known = metric_names(averages=averages)
        yield ConfigError(
            f"evaluate.best={best} is not a metric of the evaluation",
            did_you_mean(best, known, prefix="evaluate.best="),
            instead=replaced("evaluate.best", best, known),
        )
    if config.evaluate.patience is not None and every == "end":
        yield ConfigError(
            "evaluate.patience cannot end a run whose only evaluation is at its end", "evaluate.every=epoch"
        )


def _optimizer(config: Config) -> Iterator[ConfigError]:
    optim = config.optim
    known = names.optimizer_class(optim.name)
    if known is None:
        options = [name.lower() for name in names.optimizer_names()]
        yield ConfigError(
            f"optim.name={optim.name} is not a class of torch.optim",
            did_you_mean(optim.name, options, prefix="optim.name="),
            instead=replaced("optim.name", optim.name, options),
        )
        return
    if known in names.REFUSED_OPTIMIZERS:
        yield ConfigError(
            f"optim.name={optim.name} cannot be used: {names.REFUSED_OPTIMIZERS[known]}",
            "optim.name=sgd or adamw",
        )
        return
    kinds = names.optimizer_arguments(known)
    accepted = [name for name in kinds if name not in _OWN_KEYS]
    for name, value in optim.args.items():
        if name in _OWN_KEYS:
            yield ConfigError(f"optim.args.{name} has a key of its own", f"{_OWN_KEYS[name]}=VALUE")
        elif name not in accepted:
            yield ConfigError(
                f"optim.args.{name} is not an argument of torch.optim.{known}",
                did_you_mean(name, accepted, prefix="optim.args."),
                instead=renamed("optim.args", name, accepted),
            )
        elif not _is_finite(value):
            # torch.optim's own checks, such as momentum < 0, let nan pass.
            yield ConfigError(f"optim.args.{name}={value} is not a finite number", "take a finite one, or leave it out")
        elif value is True and name in _USELESS:
            yield ConfigError(f"optim.args.{name}=true cannot be used: {_USELESS[name]}", "leave it out")
        elif wanted := _wanted_instead(kinds[name], value):
            yield ConfigError(f"optim.args.{name} takes {wanted}, got {value!r}", "write such, or leave it out")


def _wanted_instead(kind: str, value: Any) -> str:
    """What an optimizer's argument takes, in words, where the value is something else; else empty.

    Args:
        kind: its type as torch writes it, such as `float | Tensor` or `tuple[float, float]`.
        value: what it is given.
    """

    def is_number(item: Any) -> bool:
        return isinstance(item, (int, float)) and not isinstance(item, bool)

    if value is None and kind.endswith("None"):
        return ""
    if kind.startswith("float"):
        return "" if is_number(value) else "a number"
    if kind.startswith("bool"):
        return "" if isinstance(value, bool) else "true or false"
    if kind.startswith("tuple"):
        pair = isinstance(value, (list, tuple)) and len(value) == 2
        fits = pair and all(is_number(item) or (item is None and "None" in kind) for item in value)
        return "" if fits else "two numbers such as [0.9,0.999]"
    return ""


def _is_finite(value: Any) -> bool:
    """Whether there is neither nan nor infinity in a value, or in a list or dict of them."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _average(config: Config) -> Iterator[ConfigError]:
    decay = config.ema.decay
    if decay is not None and not 0 < decay < 1:
        yield ConfigError(f"ema.decay={decay} is out of range", "take a number between 0 and 1 such as 0.999, or null")


def _combinations(config: Config) -> Iterator[ConfigError]:
    cpu = config.device == "cpu"
    if cpu and config.precision == "tf32":
        yield ConfigError("precision=tf32 does not exist on device=cpu", "precision=auto")
    if cpu and config.distributed.sync_batchnorm:
        yield ConfigError("distributed.sync_batchnorm works on GPUs only", "distributed.sync_batchnorm=false")
    clip = config.optim.clip_norm
    if clip is not None and clip <= 0:
        yield ConfigError(
            f"optim.clip_norm={clip:g} leaves nothing of the gradients", "optim.clip_norm=1, or null for none"
        )
    if config.optim.schedule == "step":
        epochs = config.optim.step_epochs
        if not epochs or any(later <= earlier for earlier, later in zip([0, *epochs], epochs, strict=False)):
            yield ConfigError(
                f"optim.step_epochs={epochs} is not a rising list of epochs", "optim.step_epochs=[30,60,80]"
            )


def _batch(config: Config, world_size: int, train_samples: int | None, notes: list[str]) -> list[ConfigError]:
    try:
        plan = batch_plan(config.global_batch_size, world_size, config.micro_batch_size)
    except ConfigError as error:
        return [error]
    notes.append(str(plan))
    micro = config.micro_batch_size
    if micro is not None and micro > plan.share:
        notes.append(f"micro_batch_size={micro} is more than a worker's share of {plan.share}, which is taken at once")
    limit = None if config.debug else config.data.limit
    if limit is not None and limit < world_size:
        return [
            ConfigError(
                f"data.limit={limit} leaves fewer training images than the {world_size} workers",
                f"data.limit={world_size} or more",
            )
        ]
    if train_samples is None:
        return []
    if train_samples < world_size:
        return [
            ConfigError(
                f"there are fewer training images ({train_samples}) than workers ({world_size})",
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
