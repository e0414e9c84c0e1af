"""From the configuration to a network with the right head, on the CPU, in fp32."""

import inspect
import warnings
from typing import Any

import torch
from torch import nn

from trainer.config.schema import ModelConfig
from trainer.errors import ConfigError
from trainer.model import demands, registry
from trainer.model.weights import find_weights, load_weights


def build_model(
    config: ModelConfig,
    *,
    num_classes: int,
    channels: int,
    image_size: int | None = None,
    pretrained: bool = True,
) -> nn.Module:
    """Builds the network; the same weights for the same torch seed.

    Args:
        config: the `model` keys.
        num_classes: size of the head.
        channels: of the images, 1 (grey) or 3 (colour); torchvision's models take 3 only.
        image_size: side of the images in pixels, for the constructors that must know it; None: their own.
        pretrained: load `model.weights`; False builds the same architecture without reading or downloading
            anything, for whoever loads a state afterwards (resume, evaluation, export).

    Raises:
        ConfigError: unknown name, wrong arguments, or weights that do not fit.
        UnfitError: the weights cannot be downloaded.
    """
    source = find_weights(config)
    if config._target_ is not None:
        model = _from_target(config, num_classes, channels, image_size)
    elif registry.is_torchvision(config):
        model = _from_torchvision(config, num_classes, channels, image_size)
    else:
        constructor = registry.builder(config.name)
        demands.check_arguments(config.args)
        extra = _accepted(constructor, in_channels=channels, image_size=image_size)
        model = _construct(config, constructor, num_classes=num_classes, **extra)
    if source is not None and pretrained:
        load_weights(model, source, num_classes=num_classes, label=config._target_ or config.name)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return model


def _from_torchvision(config: ModelConfig, num_classes: int, channels: int, image_size: int | None) -> nn.Module:
    constructor = registry.builder(config.name)
    demands.check_arguments(config.args)
    demands.check_channels(config.name, channels)
    name = config.name.lower()
    extra: dict[str, Any] = {}
    if name in ("inception_v3", "googlenet"):
        # torchvision's weights expect inputs in -1..1; its constructors set this with `weights=`, so do we.
        extra["transform_input"] = config.weights is not None
        extra["init_weights"] = config.weights is None
        if name == "googlenet":
            # Its pretrained auxiliary heads were never trained, and torchvision leaves them out too.
            extra["aux_logits"] = config.weights is None
    if image_size is not None:
        demands.check_image_size(config.name, image_size)
        extra |= _size_arguments(name, image_size)
    return _construct(config, constructor, **{"num_classes": num_classes, **extra, **config.args})


def _size_arguments(name: str, image_size: int) -> dict[str, Any]:
    """What a constructor must know of the image's size."""
    if name.startswith("vit_"):
        return {"image_size": image_size}
    return {"input_size": (image_size, image_size)} if name.startswith("maxvit") else {}


def _construct(config: ModelConfig, constructor: Any, **arguments: Any) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*default weight initialization.*", category=FutureWarning)
            model = constructor(**{**arguments, **config.args})
    except (TypeError, ValueError, AssertionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        given = ", ".join(f"{key}={value}" for key, value in config.args.items())
        fix = f"look at model.args ({given})" if given else "look at data.image_size and model.name"
        raise ConfigError(f"{config.name} cannot be built: {reason}", fix) from error
    assert isinstance(model, nn.Module)
    return model


def _from_target(config: ModelConfig, num_classes: int, channels: int, image_size: int | None) -> nn.Module:
    # Imported here: nobody else in a worker needs Hydra, and it takes a quarter of a second.
    from hydra.errors import InstantiationException
    from hydra.utils import get_object, instantiate

    target = config._target_
    assert target is not None
    try:
        constructor = get_object(target)
    except Exception as error:
        # Importing somebody's module can raise anything.
        reason = (str(error.__cause__ or error) or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"model._target_={target} cannot be imported: {reason}",
            "give a dotted path such as my_package.my_module.MyModel, and start where it can be imported",
        ) from error
    known: dict[str, Any] = _accepted(constructor, in_channels=channels, image_size=image_size)
    if _accepted(constructor, any_keyword=True, num_classes=num_classes):
        known["num_classes"] = num_classes
    try:
        model = instantiate({"_target_": target, **known, **config.args}, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
        raise ConfigError(
            f"model._target_={target} failed: {type(cause).__name__}: {cause}".splitlines()[0],
            "look at model.args, the keyword arguments that it is called with",
        ) from error
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model._target_={target} returned {type(model).__name__}, not a torch.nn.Module",
            "give a class of modules, or a function that returns one",
        )
    return model


def _accepted(constructor: Any, *, any_keyword: bool = False, **arguments: Any) -> dict[str, Any]:
    """The arguments, of those not None, that a constructor names (or takes as `**kwargs`, if asked)."""
    try:
        parameters = inspect.signature(constructor).parameters
    except (TypeError, ValueError):
        return {}
    takes_any = any_keyword and any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {name: value for name, value in arguments.items() if value is not None and (name in parameters or takes_any)}
