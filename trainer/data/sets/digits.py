"""scikit-learn's handwritten digits: 1,797 real images of 8x8 pixels, part of the installed package."""

import numpy as np
import torch

from trainer.config import DataConfig
from trainer.data.datasets import Splits, TensorImages, held_out
from trainer.preprocessing import Preprocessing

_LEVELS = 16


def build(config: DataConfig) -> Splits:
    """The digits; `data.val_fraction` of them are held out by their number in the set."""
    from sklearn.datasets import load_digits  # 1 s, for this data set alone

    grey, targets = load_digits(return_X_y=True)
    pixels = np.rint(grey.reshape(-1, 1, 8, 8) * (255 / _LEVELS)).astype(np.uint8)
    held = np.array([held_out(f"digits/{index}", config.val_fraction) for index in range(len(targets))])
    images = TensorImages(torch.from_numpy(pixels), torch.from_numpy(np.asarray(targets, np.int64)))
    return Splits(
        train=images.select(np.flatnonzero(~held)),
        val=images.select(np.flatnonzero(held)),
        classes=[str(digit) for digit in range(10)],
        # Mean and deviation of all 1,797 images.
        preprocessing=Preprocessing(8, 8, 1, (0.3053,), (0.3759,)),
        flip=False,
        title="scikit-learn's digits",
    )
