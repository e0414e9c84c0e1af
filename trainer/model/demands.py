"""What the networks known by name demand of the images and of `model.args`, known before torch is there."""

from collections.abc import Container

from trainer.config import names
from trainer.errors import ConfigError

DERIVED_ARGUMENTS = {
    "num_classes": "the number of classes comes from the data",
    "in_channels": "set data.channels instead",
    "image_size": "set data.image_size instead",
    "weights": "set model.weights instead",
    "pretrained": "set model.weights instead",
}
"""Names that are none in `model.args`, and what gives them their values."""

# Four halvings after the stem's, and windows of 7 x 7 after each of them.
_MAXVIT_MULTIPLE = 224


def check_arguments(args: Container[str]) -> None:
    """Refuses arguments that follow from the data, or have a key of their own.

    Raises:
        ConfigError: there is one.
    """
    for name, instead in DERIVED_ARGUMENTS.items():
        if name in args:
            raise ConfigError(f"model.args.{name} cannot be given", instead)


def check_channels(name: str, channels: int) -> None:
    """Refuses images of other than 3 channels for a model of torchvision.

    Raises:
        ConfigError: they have another number.
    """
    if channels != 3:
        raise ConfigError(
            f"{name} takes images of 3 channels, the data gives {channels}",
            "data.channels=3 repeats grey images in three channels",
        )


def check_image_size(name: str, side: int) -> None:
    """Refuses images that a model of torchvision cannot take.

    Args:
        name: the model's, in any case.
        side: of the square images, pixels.

    Raises:
        ConfigError: they are too small, or no multiple of what the network cuts them into.
    """
    family = name.lower()
    if family.startswith("vit_"):
        patch = int(family.rpartition("_")[2])
        _check_multiple(f"{name} cuts images into patches of {patch} x {patch}", patch, side)
    elif family.startswith("maxvit"):
        problem = f"{name} takes images of {_MAXVIT_MULTIPLE} pixels a side, or a multiple of that"
        _check_multiple(problem, _MAXVIT_MULTIPLE, side)
    # `min_size` is the smallest input the network can take, except where it says what it was trained with.
    elif not family.startswith(("swin", "efficientnet")) and side < (smallest := names.smallest_image(family)):
        raise ConfigError(
            f"{name} needs images of at least {smallest} pixels a side, these have {side}",
            f"data.image_size={smallest} scales them, or a model for small images: model.name=small_resnet",
        )


def _check_multiple(problem: str, size: int, side: int) -> None:
    if side % size:
        below = side // size * size
        ways = [f"data.image_size={value}" for value in (below, below + size) if value]
        raise ConfigError(f"{problem}, and these have {side} pixels a side", " or ".join(ways))
