"""Checkpoints: what they are made of, how they are written, found, read and deleted."""

from trainer.checkpoint.background import BackgroundWriter
from trainer.checkpoint.files import Checkpoint, load, load_newest, remove_unfinished, save, steps, write
from trainer.checkpoint.image import Image
from trainer.checkpoint.optimizer import optimizer_tensors, restore_optimizer
from trainer.checkpoint.retention import delete_old
from trainer.commit import Damaged

__all__ = [
    "BackgroundWriter",
    "Checkpoint",
    "Damaged",
    "Image",
    "delete_old",
    "load",
    "load_newest",
    "optimizer_tensors",
    "remove_unfinished",
    "restore_optimizer",
    "save",
    "steps",
    "write",
]
