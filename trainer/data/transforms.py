"""From decoded images to the model's input: augmentation in 8 bits, normalisation on the device."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray
from torch import nn
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from trainer.data.datasets import TensorImages
from trainer.errors import ConfigError
from trainer.preprocessing import Preprocessing

Transform = Callable[[Any], torch.Tensor]

_RESIZED_CROP_FROM = 64
_STRETCH_LIMIT = 16


def resolve_augment(augment: str, preprocessing: Preprocessing) -> str:
    """What `auto` means: resized_crop for inputs of 64 pixels and more, crop for smaller ones."""
    if augment != "auto":
        return augment
    return "resized_crop" if preprocessing.image_size >= _RESIZED_CROP_FROM else "crop"


def eval_transform(preprocessing: Preprocessing) -> Transform:
    """PIL image or uint8 tensor -> uint8 [C, S, S]: the shorter side resized, then the centre.

    A tensor that has the right size already is taken as it is.
    """
    return _Evaluation(preprocessing)


def train_transform(preprocessing: Preprocessing, augment: str, *, flip: bool = True) -> Transform:
    """PIL image or uint8 tensor -> augmented uint8 [C, S, S]; draws from torch's default generator.

    Args:
        preprocessing: the input to make.
        augment: none, flip, crop, resized_crop, or auto.
        flip: whether a flipped image keeps its label; if not, nothing is flipped.
    """
    augment = resolve_augment(augment, preprocessing)
    size = preprocessing.image_size
    steps: list[nn.Module] = []
    if augment == "resized_crop":
        crop = v2.RandomResizedCrop(size, interpolation=InterpolationMode(preprocessing.interpolation), antialias=True)
        steps += [_Channels(preprocessing.channels), crop]
    else:
        steps.append(_Evaluation(preprocessing))
    if augment == "crop" and padding(size):
        steps.append(v2.RandomCrop(size, padding=padding(size), padding_mode="reflect"))
    if augment != "none" and flip:
        steps.append(v2.RandomHorizontalFlip())
    return v2.Compose(steps)


def padding(image_size: int) -> int:
    """Pixels by which `crop` may shift an image to either side: an eighth of it."""
    return image_size // 8


class _Channels(nn.Module):
    """PIL image or tensor -> tensor [channels, H, W] of the same values."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise ConfigError(f"data.channels={channels} is neither grey nor colour", "data.channels=1 or 3")
        self.channels = channels

    def forward(self, image: Any) -> torch.Tensor:
        tensor = image if isinstance(image, torch.Tensor) else functional.pil_to_tensor(image)
        if tensor.shape[-3] == self.channels:
            return tensor
        return to_channels(tensor, self.channels)


def to_channels(images: torch.Tensor, channels: int) -> torch.Tensor:
    """Grey [..., 1, H, W] to colour [..., 3, H, W] or back (luma of ITU-R 601), in the same type."""
    if images.shape[-3] == channels:
        return images
    if channels == 1:
        return functional.rgb_to_grayscale(images)
    return images.expand(*images.shape[:-3], channels, *images.shape[-2:]).contiguous()


class _Evaluation(nn.Module):
    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.shape = (preprocessing.channels, preprocessing.image_size, preprocessing.image_size)
        self.size = preprocessing.image_size
        self.resize_size = preprocessing.resize_size
        self.channels = _Channels(preprocessing.channels)
        self.interpolation = InterpolationMode(preprocessing.interpolation)

    def forward(self, image: Any) -> torch.Tensor:
        tensor = self.channels(image)
        if isinstance(image, torch.Tensor) and tensor.shape == self.shape:
            return tensor
        height, width = tensor.shape[-2:]
        short = min(height, width)
        if max(height, width) > _STRETCH_LIMIT * short:
            # Only the centre is kept in the end; resizing the whole of a banner could take gigabytes.
            longest = _STRETCH_LIMIT * short
            tensor = functional.center_crop(tensor, [min(height, longest), min(width, longest)])
        if short != self.resize_size:
            tensor = functional.resize(tensor, [self.resize_size], self.interpolation, antialias=True)
        if tensor.shape == self.shape:
            return tensor
        return functional.center_crop(tensor, [self.size, self.size])


class BatchAugment:
    """Augments whole batches of images in memory.

    What happens to a sample is a hash of (seed, epoch, sample) alone: the same in whatever batch it is.

    Args:
        channels: of the output.
        shift: crop after padding by this many reflected pixels; 0 does not shift.
        flip: flip half of the images.
    """

    def __init__(self, *, channels: int, shift: int, flip: bool) -> None:
        self.channels = channels
        self.shift = shift
        self.flip = flip

    def __call__(self, images: torch.Tensor, *, seed: int, epoch: int, samples: NDArray[np.int64]) -> torch.Tensor:
        """Images, uint8 [B, C, H, W], of the samples, int64 [B] -> the same, uint8 [B, channels, H, W]."""
        if self.shift or self.flip:
            # Three independent numbers of one hash: bit 0, and two fields of 24 bits.
            draws = sample_hash(seed, epoch, samples)
            array = images.numpy()
            if self.shift:
                down = _scale(draws >> np.uint64(8), 2 * self.shift + 1)
                right = _scale(draws >> np.uint64(36), 2 * self.shift + 1)
                array = shift_reflected(array, down, right, self.shift)
            if self.flip:
                flipped = (draws & np.uint64(1)).astype(bool)
                array = array if self.shift else array.copy()
                array[flipped] = array[flipped][..., ::-1]
            images = torch.from_numpy(array)
        return to_channels(images, self.channels)


def batch_augment(preprocessing: Preprocessing, augment: str, *, flip: bool, split: object) -> BatchAugment | None:
    """The augmentation of whole batches, or None where samples must be transformed one by one.

    Args:
        preprocessing: the input to make.
        augment: none, flip, crop, resized_crop, or auto.
        flip: whether a flipped image keeps its label.
        split: only images in memory that have the input's size can be taken in batches.
    """
    augment = resolve_augment(augment, preprocessing)
    size = preprocessing.image_size
    if not isinstance(split, TensorImages) or augment == "resized_crop":
        return None
    if tuple(split.images.shape[-2:]) != (size, size):
        return None
    return BatchAugment(
        channels=preprocessing.channels,
        shift=padding(size) if augment == "crop" else 0,
        flip=flip and augment != "none",
    )


def shift_reflected(
    images: NDArray[np.uint8], down: NDArray[np.int64], right: NDArray[np.int64], most: int
) -> NDArray[np.uint8]:
    """Crops each image [B, C, H, W] out of its reflection-padded self, padded by `most` pixels.

    Args:
        images: the images; not changed.
        down: first row of each crop, 0 .. 2 * most.
        right: first column of each crop, 0 .. 2 * most.
        most: pixels of padding, less than the sides.
    """
    batch, channels, height, width = images.shape
    rows = np.abs(np.arange(height) + (down - most)[:, None])
    rows = np.where(rows >= height, 2 * (height - 1) - rows, rows)
    padded_width = width + 2 * most
    padded = np.empty((batch, channels, height, padded_width), np.uint8)
    padded[..., most : most + width] = images
    padded[..., :most] = images[..., most:0:-1]
    padded[..., most + width :] = images[..., width - 2 : width - 2 - most : -1]
    # A crop's row is one run of bytes, so a row is copied at once: several times faster than pixel by pixel.
    runs = as_strided(padded.reshape(-1), (padded.size - width + 1, width), (1, 1))
    planes = np.arange(batch * channels).reshape(batch, channels, 1) * height
    return runs[(planes + rows[:, None, :]) * padded_width + right[:, None, None]]


def sample_hash(seed: int, epoch: int, samples: NDArray[np.int64]) -> NDArray[np.uint64]:
    """64 random bits for each sample: splitmix64 (Steele et al., 2014) chained over seed, epoch, sample."""
    state = np.full(len(samples), seed & (2**64 - 1), np.uint64)
    # A round for the seed alone: else seed 1 in epoch 0 would be seed 0 in epoch 1.
    for value in (np.uint64(0), np.uint64(epoch), samples.astype(np.uint64)):
        state = (state ^ value) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return state


def _scale(bits: NDArray[np.uint64], bound: int) -> NDArray[np.int64]:
    """The low 24 bits as a number below `bound`."""
    return ((bits & np.uint64(0xFFFFFF)) * np.uint64(bound) >> np.uint64(24)).astype(np.int64)


class Normaliser(nn.Module):
    """uint8 images [B, C, H, W] -> float32, (x / 255 - mean) / std; floating-point images pass as they are.

    Keeps the memory format. Its buffers are not part of a state dict: the weights stay plain.

    Args:
        preprocessing: gives mean and standard deviation for each channel.
    """

    scale: torch.Tensor
    offset: torch.Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        mean = torch.tensor(preprocessing.mean, dtype=torch.float64).view(1, -1, 1, 1)
        std = torch.tensor(preprocessing.std, dtype=torch.float64).view(1, -1, 1, 1)
        self.register_buffer("scale", (1 / (255 * std)).float(), persistent=False)
        self.register_buffer("offset", (-mean / std).float(), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalises a batch."""
        if images.is_floating_point():
            return images
        # The product reads bytes and writes floats in one pass, the sum works in place.
        return (images * self.scale).add_(self.offset)
