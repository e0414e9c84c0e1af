"""CIFAR-10: 60,000 colour images of 10 kinds of things, 32x32 pixels (Krizhevsky, 2009)."""

from trainer.config import DataConfig
from trainer.data.cifar import from_torchvision
from trainer.data.datasets import Splits
from trainer.preprocessing import Preprocessing


def build(config: DataConfig) -> Splits:
    """The official splits: 50,000 images for training, 10,000 for validation.

    Raises:
        UnfitError: the files are damaged, or cannot be had.
    """
    from torchvision.datasets import CIFAR10  # 3 s, for this data set alone

    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    return from_torchvision(CIFAR10, config, title="CIFAR-10", preprocessing=Preprocessing(32, 32, 3, mean, std))
