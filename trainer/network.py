"""The network that a configuration describes, and what it takes as input."""

import torch
from torch import nn

from trainer.config import Config
from trainer.data.sampler import mix_seed, seed_generators
from trainer.model.build import build_model
from trainer.model.registry import input_channels
from trainer.model.weights import weights_preprocessing
from trainer.preprocessing import Preprocessing


def input_format(config: Config, native: Preprocessing) -> Preprocessing:
    """What the model takes: the weights' own preprocessing, else the data's; config.data has the last word."""
    chosen = weights_preprocessing(config.model) or native
    channels = config.data.channels or input_channels(config.model) or chosen.channels
    size = config.data.image_size or chosen.image_size
    resize = chosen.resize_size * size // chosen.image_size
    mean, std = chosen.mean, chosen.std
    if channels != chosen.channels:
        # A grey image shown to a colour model has the same value in each channel, and the other way round.
        grey_mean, grey_std = sum(mean) / len(mean), sum(std) / len(std)
        mean, std = (grey_mean,) * channels, (grey_std,) * channels
    return Preprocessing(size, resize, channels, mean, std, chosen.interpolation)


def build_network(
    config: Config, device: torch.device, *, num_classes: int, preprocessing: Preprocessing, pretrained: bool
) -> nn.Module:
    """The network of the configuration on its device.

    Raises:
        PacelineError: as `build_model`.
    """
    # The initial weights depend on the seed alone, not on what was drawn while the data was read.
    seed_generators(device, mix_seed(config.seed, 0))
    model = build_model(
        config.model,
        num_classes=num_classes,
        channels=preprocessing.channels,
        image_size=preprocessing.image_size,
        pretrained=pretrained,
    ).to(device)
    if config.model.compile:
        model.compile()
    return model
