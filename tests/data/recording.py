"""A user's own data set and model that write down what was drawn for which sample, and what reached the network."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import Dataset
from torchvision.transforms import v2

from trainer.data.datasets import Splits
from trainer.preprocessing import Preprocessing

SIDE = 4
_PICTURE = torch.arange(16 * 16, dtype=torch.uint8).reshape(1, 16, 16)
_AUGMENT = v2.Compose([v2.RandomResizedCrop(8, antialias=True), v2.RandomRotation([-30, 30])])


class Draws(Dataset[Any]):
    """Each image holds its sample's number, and what torch, numpy, random and a v2 transform drew for it."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        drawn = [
            float(index),
            float(torch.rand(())),
            float(np.random.rand()),
            random.random(),
            float(_AUGMENT(_PICTURE).float().mean()),
        ]
        image = torch.zeros(1, SIDE, SIDE)
        image.view(-1)[: len(drawn)] = torch.tensor(drawn)
        return image, index % 2


def build(count: int) -> Splits:
    """Two classes, `count` samples, two for validation."""
    return Splits(Draws(count), Draws(2), ["even", "odd"], Preprocessing(SIDE, SIDE, 1, (0.5,), (0.5,)))


class Witness(nn.Module):
    """Appends a row for every micro-batch that it is trained with: the step, and the images' first numbers."""

    def __init__(self, num_classes: int, folder: str) -> None:
        super().__init__()
        self.layer = nn.Linear(SIDE * SIDE, num_classes)
        self.folder = Path(folder)
        self.step = 0
        register_optimizer_step_post_hook(self._count)

    def _count(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        # Others may step, too, such as one that only shows what state it keeps.
        if any(parameter is self.layer.weight for group in optimizer.param_groups for parameter in group["params"]):
            self.step += 1

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flat = images.flatten(1)
        if self.training and torch.is_grad_enabled():
            rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
            with (self.folder / f"rank-{rank}.jsonl").open("a") as stream:
                stream.write(json.dumps({"step": self.step, "seen": flat[:, :5].tolist()}) + "\n")
        return self.layer(flat / 100)


def steps_seen(folder: Path) -> list[list[list[float]]]:
    """What each global step saw, in the order of ranks and micro-batches."""
    steps: list[list[list[float]]] = []
    for path in sorted(folder.glob("rank-*.jsonl")):
        for row in map(json.loads, path.read_text().splitlines()):
            steps += [[] for _ in range(row["step"] + 1 - len(steps))]
            steps[row["step"]] += row["seen"]
    return steps
