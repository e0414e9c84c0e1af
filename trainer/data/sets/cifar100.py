"""CIFAR-100: 60,000 colour images of 100 kinds of things, 32x32 pixels (Krizhevsky, 2009)."""

from trainer.config import DataConfig
from trainer.data.cifar import from_torchvision
from trainer.data.datasets import Splits
from trainer.preprocessing import Preprocessing


def build(config: DataConfig) -> Splits:
    """The official splits with the 100 fine labels: 50,000 images for training, 10,000 for validation.

    Raises:
        UnfitError: the files are damaged, or cannot be had.
    """
    from torchvision.datasets import CIFAR100  # 3 s, for this data set alone

    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    return from_torchvision(CIFAR100, config, title="CIFAR-100", preprocessing=Preprocessing(32, 32, 3, mean, std))
