"""A user's data set whose loading process comes to grief at one sample."""

import ctypes
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
    """Comes to grief at sample FATAL.

    Args:
        how: a signal's name, `exit`, `hang`, or `deaf`: on SIGALRM it keeps Python's lock; empty: not at all.
    """

    def __init__(self, how: str) -> None:
        self.how = how
        self.is_deaf = torch.zeros(1).share_memory_() if how == "deaf" else None

    def _keep_the_lock(self, *_: object) -> None:
        assert self.is_deaf is not None
        self.is_deaf += 1
        ctypes.PyDLL(None).sleep(1000)

    def __len__(self) -> int:
        return 40

    def path_of(self, index: int) -> str:
        return f"/far/{index}.png"

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index == FATAL and self.how == "exit":
            os._exit(7)
        elif index == FATAL and self.how in ("hang", "deaf"):
            if self.how == "deaf":
                signal.signal(signal.SIGALRM, self._keep_the_lock)
            threading.Event().wait()
        elif index == FATAL and self.how:
            os.kill(os.getpid(), getattr(signal, self.how))
        return torch.zeros(1, 8, 8, dtype=torch.uint8), index % 2


def build(how: str) -> Splits:
    """Two classes, 40 samples."""
    return Splits(Dying(how), Dying(""), ["even", "odd"], Preprocessing(8, 8, 1, (0.5,), (0.5,)))


def build_large() -> Splits:
    """The same in images of 16 KiB."""
    return Splits(Dying(""), Dying(""), ["even", "odd"], Preprocessing(128, 128, 1, (0.5,), (0.5,)))


def build_validation(how: str) -> Splits:
    """The classes of the digits; it is the validation that comes to grief."""
    return Splits(Dying(""), Dying(how), [str(digit) for digit in range(10)], Preprocessing(8, 8, 1, (0.5,), (0.5,)))
