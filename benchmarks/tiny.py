"""The tiny network and its images, on which what a trainer adds to a step can be seen."""

from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

SAMPLES, CLASSES, MICRO_BATCH, LR = 8192, 10, 32, 0.01
_generator = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (SAMPLES, 1, 8, 8), dtype=torch.uint8, generator=_generator)
TARGETS = torch.randint(0, CLASSES, (SAMPLES,), generator=_generator)
SCALE, SHIFT = 1 / (255 * 0.25), -0.5 / 0.25


class TinyNet(nn.Module):
    """Two convolutions and a linear layer: a step of 32 images takes about 0.6 ms on one core."""

    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(16, num_classes),
        )  # fmt: skip

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [B, classes] of images [B, 1, 8, 8]."""
        return self.layers(images)


class TinyData(Dataset[Any]):
    """The images, fetched a batch at a time, so that no contestant pays for collating single samples."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.tensor(indices)
        return IMAGES[chosen], TARGETS[chosen]


def normalised(images: torch.Tensor) -> torch.Tensor:
    """uint8 images as the network takes them."""
    return images.float().mul_(SCALE).add_(SHIFT)
