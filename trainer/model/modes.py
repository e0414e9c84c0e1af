"""Which modules of a model train and which evaluate, kept over what sets them all alike."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(models: Sequence[nn.Module]) -> Iterator[None]:
    """Puts models into evaluation mode, and every module back into its own afterwards.

    A part that the model never trains, such as a frozen BatchNorm, was evaluating before and stays so.
    """
    before = [(model, model.training, [(part, part.training) for part in model.modules()]) for model in models]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for model, was_training, parts in before:
            # A model's own `train` may do more than set the flags, such as take merged weights apart.
            model.train(was_training)
            for part, part_was_training in parts:
                part.training = part_was_training
