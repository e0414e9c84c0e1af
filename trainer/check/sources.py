"""Checks where the images and the network come from: names, folders, files, and what `_target_` names."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from inspect import Signature
from pathlib import Path
from typing import Any

from trainer.config import names, targets
from trainer.config.likeness import likely_models
from trainer.config.schema import Config
from trainer.config.suggest import choice, did_you_mean, renamed, replaced
from trainer.data.glance import Sight, glance
from trainer.errors import ConfigError
from trainer.evaluate.judge import check_metric
from trainer.model import demands
from trainer.model.form import check_form, is_weights_file, shapes
from trainer.run import saved

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_WITHOUT_FILES = ("digits", "synthetic")


def data_problems(config: Config) -> Iterator[ConfigError]:
    """What is wrong with `data`.

    Raises:
        UnfitError: its folder cannot be read.
    """
    data = config.data
    if data._target_ is not None:
        yield from _target("data._target_", data._target_, args=data.args)
    elif data.name in names.dataset_names():
        signature = targets.find("data.name", f"trainer.data.sets.{data.name}.build")
        yield from _misfit(signature, f"data.name={data.name}", data.args, positional=(data,))
    else:
        yield ConfigError(
            f"data.name={data.name} is not a data set",
            choice("data.name", data.name, names.dataset_names()),
            instead=replaced("data.name", data.name, names.dataset_names()),
        )
    if data.channels == 2:
        yield ConfigError("data.channels=2 is neither grey nor colour", "data.channels=1 or data.channels=3")
    if data._target_ is None and data.name in ("folder", "imagenet"):
        yield from _root(data.root, data.name, config)
    if data._target_ is None and data.name == "digits" and not data.val_fraction:
        yield from _told(lambda: check_unevaluated(config))
    if data._target_ is None and data.name in _WITHOUT_FILES and data.root is not None:
        yield ConfigError(
            f"data.root={data.root} has no effect with data.name={data.name}",
            f"data.name=folder for your own images, or recipe=finetune; without data.root for {data.name}",
        )


def check_unevaluated(config: Config) -> None:
    """Refuses, where there are no validation images, what follows from evaluations.

    Raises:
        ConfigError: early stopping, or checkpoints after evaluations alone.
    """
    patience, every = config.evaluate.patience, config.checkpoint.every
    if patience is not None:
        needing, instead = f"evaluate.patience={patience}", "evaluate.patience=null"
    elif every == "evaluation":
        needing, instead = f"checkpoint.every={every}", "checkpoint.every=auto"
    else:
        return
    raise ConfigError(
        f"{needing} needs evaluations, and data.val_fraction=0 leaves no images for them",
        f"data.val_fraction=0.1, or {instead}",
    )


def _root(root: str | None, name: str, config: Config) -> Iterator[ConfigError]:
    if not root:
        yield ConfigError(
            f"data.name={name} needs data.root",
            "data.root=DIR, the directory that holds a folder per class; or a recipe with data of its own: "
            "recipe=fashion_mnist",
        )
        return
    try:
        path = Path(root).expanduser()
    except RuntimeError as error:
        yield ConfigError(f"data.root={root} names the home of nobody: {error}", "data.root=/the/whole/path")
        return
    if name == "imagenet" and any(path.glob("*.tar*")):
        # Its archives: unpacked before the very first training.
        return
    yield from _told(lambda: _check_sight(glance(path), config))


def _check_sight(seen: Sight, config: Config) -> None:
    check_metric(config.evaluate.best, seen.most_classes)
    if not seen.has_val and not config.data.val_fraction:
        check_unevaluated(config)


def model_problems(config: Config) -> Iterator[ConfigError]:
    """What is wrong with `model`."""
    model = config.model
    if model._target_ is not None:
        yield from _target("model._target_", model._target_)
    elif model.name.lower() not in names.model_names():
        yield ConfigError(
            f"model.name={model.name} is not an image classification model",
            did_you_mean(model.name, names.model_names(), prefix="model.name="),
            instead=replaced("model.name", model.name, names.model_names()),
        )
        return
    else:
        yield from _told(lambda: demands.check_arguments(model.args))
        yield from _unknown_arguments(model.name, model.args)
        if names.is_torchvision(model.name):
            yield from _form(config)
    # A run that goes on has its weights in a checkpoint; those that it began with need not be there any more.
    if model.weights is None or saved.goes_on(config.run):
        return
    if is_weights_file(model.weights):
        # Arguments can make one model of another: resnet50 with width_per_group=128 is wide_resnet50_2.
        yield from _weights_file(model.weights, None if model._target_ or model.args else model.name)
    elif model._target_ is None:
        known = names.weights_names(model.name)
        if not known:
            yield ConfigError(
                f"model.weights={model.weights}: {model.name} has no pretrained weights",
                "model.weights=null, or a .safetensors or .pth file",
            )
        elif model.weights not in known:
            yield ConfigError(
                f"model.weights={model.weights}: {model.name} has no weights of that name",
                choice("model.weights", model.weights, known),
                instead=replaced("model.weights", model.weights, known),
            )


def _unknown_arguments(name: str, args: Mapping[str, Any]) -> Iterator[ConfigError]:
    """Arguments that one of our models does not take; those of torchvision's are told by their constructors."""
    accepted = names.model_arguments(name)
    if accepted is None:
        return
    free = [option for option in accepted if option not in demands.DERIVED_ARGUMENTS]
    for given in args:
        if given not in accepted and given not in demands.DERIVED_ARGUMENTS:
            yield ConfigError(
                f"model.args.{given} is not an argument of {name}",
                did_you_mean(given, free, prefix="model.args."),
                instead=renamed("model.args", given, free),
            )


def _form(config: Config) -> Iterator[ConfigError]:
    """What keeps a model of torchvision from taking the images that `data` asks for."""
    model, channels, side = config.model, config.data.channels, config.data.image_size
    if channels is not None:
        yield from _told(lambda: demands.check_channels(model.name, channels))
    if side is not None:
        yield from _told(lambda: demands.check_image_size(model.name, side))


def _weights_file(weights: str, name: str | None) -> Iterator[ConfigError]:
    """What is wrong with a file of weights; for the model of that name, where that alone says which it is."""
    path = Path(weights).expanduser()
    fix = "name a .safetensors or .pth file"
    if not path.exists():
        yield ConfigError(f"model.weights={weights} does not exist", fix)
    elif not path.is_file():
        yield ConfigError(f"model.weights={weights} is not a file", fix)
    elif not os.access(path, os.R_OK):
        yield ConfigError(f"model.weights={weights} cannot be read", "check its permissions")
    else:
        yield from _told(lambda: _check_weights(path, name))


def _check_weights(path: Path, name: str | None) -> None:
    check_form(path)
    # The header of a safetensors file tells all; what a pickle holds a worker sees, which may read it.
    others = likely_models(shapes(path)) if name is not None and path.suffix.lower() == ".safetensors" else set()
    if name is not None and others and name.lower() not in others:
        other = min(others)
        raise ConfigError(
            f"{path} does not fit {name}: it has the parameters of {other}",
            f"model.name={other}, or another file",
            instead=([f"model.name={name}"], [f"model.name={other}"]),
        )


def _target(key: str, target: str, args: Mapping[str, Any] | None = None) -> Iterator[ConfigError]:
    if not _DOTTED.fullmatch(target):
        yield ConfigError(f"{key}={target} is not a dotted path", f"{key}=package.module.callable")
        return
    try:
        signature = targets.find(key, target)
    except ConfigError as error:
        yield error
        return
    if args is not None:
        yield from _misfit(signature, f"{key}={target}", args)


def _misfit(
    signature: Signature | None, origin: str, args: Mapping[str, Any], positional: tuple[object, ...] = ()
) -> Iterator[ConfigError]:
    if signature is None:
        return
    yield from _told(lambda: targets.check_arguments(signature, origin, args, positional))


def _told(check: Callable[[], None]) -> Iterator[ConfigError]:
    """What a check refuses."""
    try:
        check()
    except ConfigError as error:
        yield error
