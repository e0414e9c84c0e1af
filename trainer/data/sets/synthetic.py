"""Made-up images that can be learned: each class is a pattern of blocks, under noise. Needs no files."""

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.config import DataConfig
from trainer.data.datasets import Splits, TensorImages
from trainer.data.transforms import sample_hash
from trainer.errors import ConfigError
from trainer.preprocessing import Preprocessing

_BLOCKS = 4
_MOST_BYTES = 8 * 2**30
_IMAGES_AT_ONCE = 1024
_PATTERN_SEED, _NOISE_SEED = 1, 2


def build(
    config: DataConfig,
    *,
    n: int = 4096,
    n_val: int | None = None,
    classes: int = 10,
    size: int = 32,
    channels: int = 3,
) -> Splits:
    """Images that depend on the arguments alone, the same on every machine.

    Args:
        config: `data`; nothing of it matters here.
        n: training images.
        n_val: validation images; by default a fifth of n, and at least one for each class.
        classes: number of classes, at least 2.
        size: side of the square images, pixels, at least 4.
        channels: 1 or 3.

    Raises:
        ConfigError: an argument is out of range, or the images would not fit into memory.
    """
    n_val = max(n // 5, classes) if n_val is None else n_val
    if min(n, n_val) < 1 or classes < 2 or size < _BLOCKS or channels not in (1, 3):
        raise ConfigError(
            f"synthetic images cannot be made with n={n}, n_val={n_val}, classes={classes}, size={size}, "
            f"channels={channels}",
            "data.args: n and n_val at least 1, classes at least 2, size at least 4, channels 1 or 3",
        )
    if (n + n_val) * channels * size * size > _MOST_BYTES:
        raise ConfigError(
            f"{n + n_val:,} synthetic images of {size}x{size} take more than 8 GiB", "a smaller data.args.n"
        )
    return Splits(
        train=_images(0, n, classes=classes, size=size, channels=channels),
        val=_images(n, n + n_val, classes=classes, size=size, channels=channels),
        classes=[f"pattern {index}" for index in range(classes)],
        preprocessing=Preprocessing(size, size, channels, (0.5,) * channels, (0.25,) * channels),
        # A mirrored pattern may be another class's.
        flip=False,
        title="synthetic images",
    )


def _images(first: int, end: int, *, classes: int, size: int, channels: int) -> TensorImages:
    blocks = _random_bytes(_PATTERN_SEED, np.arange(classes), channels * _BLOCKS * _BLOCKS)
    block_of = np.arange(size) * _BLOCKS // size
    patterns = blocks.reshape(classes, channels, _BLOCKS, _BLOCKS)[:, :, block_of[:, None], block_of[None, :]]
    samples = np.arange(first, end)
    targets = samples % classes
    images = np.empty((len(samples), channels, size, size), np.uint8)
    for start in range(0, len(samples), _IMAGES_AT_ONCE):
        part = slice(start, start + _IMAGES_AT_ONCE)
        noise = _random_bytes(_NOISE_SEED, samples[part], channels * size * size)
        # Half pattern, half noise; averaged without leaving 8 bits.
        images[part] = patterns[targets[part]] // 2 + noise.reshape(images[part].shape) // 2
    return TensorImages(torch.from_numpy(images), torch.from_numpy(targets))


def _random_bytes(seed: int, samples: NDArray[np.int64], count: int) -> NDArray[np.uint8]:
    """uint8 [len(samples), count], each row a function of the seed and its sample."""
    words = -(-count // 8)
    hashes = sample_hash(seed, 0, (samples[:, None] * words + np.arange(words)).reshape(-1))
    return hashes.astype("<u8").view(np.uint8).reshape(len(samples), words * 8)[:, :count]
