"""A user's data set whose loading process comes to grief at one sample."""

import os
import signal
import threading
from typing import Any

import torch
from torch.utils.data import Dataset

from trainer.data.datasets import Splits
from trainer.preprocessing import Preprocessing

FATAL = 13


class Dying(Dataset[Any]):
    def __init__(self, how: str) -> None:
        self.how = how

    def __len__(self) -> int:
        return 40

    def path_of(self, index: int) -> str:
        return f"/far/{index}.png"

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index == FATAL and self.how == "exit":
            os._exit(7)
        elif index == FATAL and self.how == "hang":
            threading.Event().wait()
        elif index == FATAL and self.how:
            os.kill(os.getpid(), getattr(signal, self.how))
        return torch.zeros(1, 8, 8, dtype=torch.uint8), index % 2


def build(how: str) -> Splits:
    """Two classes, 40 samples."""
    return Splits(Dying(how), Dying(""), ["even", "odd"], Preprocessing(8, 8, 1, (0.5,), (0.5,)))


def build_validation(how: str) -> Splits:
    """The classes of the digits; it is the validation that comes to grief."""
    return Splits(Dying(""), Dying(how), [str(digit) for digit in range(10)], Preprocessing(8, 8, 1, (0.5,), (0.5,)))
