"""The one registry of models by name: torchvision's, with ours registered beside them."""

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from torch import nn
from torchvision import models

from trainer.config.schema import ModelConfig
from trainer.errors import ConfigError
from trainer.model import zoo

for _module in pkgutil.iter_modules(zoo.__path__):
    importlib.import_module(f"{zoo.__name__}.{_module.name}")


def ours() -> list[str]:
    """The names of the models in `trainer/model/zoo`."""
    return [name for name in models.list_models() if _is_ours(name)]


def names() -> list[str]:
    """The names that `model.name` takes: ours, then torchvision's image classification models."""
    return ours() + models.list_models(module=models)


def is_torchvision(config: ModelConfig) -> bool:
    """Whether the configuration names one of torchvision's models."""
    return config._target_ is None and not _is_ours(config.name)


def input_channels(config: ModelConfig) -> int | None:
    """The number of channels that the model insists on.

    Returns:
        3 for torchvision's models, None where the model takes what the data has (ours and `_target_`).
    """
    return 3 if is_torchvision(config) else None


def builder(name: str) -> Callable[..., nn.Module]:
    """The constructor behind `model.name`, in any case.

    Raises:
        ConfigError: no image classification model has that name.
    """
    wanted = name.lower()
    if wanted in names():
        found: Callable[..., nn.Module] = models.get_model_builder(wanted)
        return found
    known = names()
    close = difflib.get_close_matches(wanted, known, n=3, cutoff=0.5)
    bare = {"".join(filter(str.isalnum, other)): other for other in known}
    same = bare.get("".join(filter(str.isalnum, wanted)))
    if same:
        close = [same]
    problem = f"model.name={name} is not an image classification model"
    if close:
        raise ConfigError(problem, f"did you mean model.name={close[0]}?{_others(close[1:])}")
    raise ConfigError(problem, f"take one of torchvision's or ours, such as {', '.join(ours())} or resnet18")


def weights_enum(name: str) -> Any | None:
    """Torchvision's enumeration of weights for a model, or None where it has none."""
    return models.get_model_weights(name) if name.lower() in models.list_models(module=models) else None


def _is_ours(name: str) -> bool:
    if name.lower() not in models.list_models():
        return False
    return models.get_model_builder(name).__module__.startswith(f"{zoo.__name__}.")


def _others(names_: list[str]) -> str:
    return f" (or {', '.join(names_)})" if names_ else ""
