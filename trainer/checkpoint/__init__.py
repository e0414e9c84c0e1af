"""Checkpoints: what they are made of, how they are written, found, read and deleted."""

from trainer.checkpoint.files import (
    Checkpoint,
    DamagedCheckpoint,
    load,
    load_newest,
    remove_unfinished,
    save,
    save_weights,
    steps,
)
from trainer.checkpoint.optimizer import optimizer_tensors, restore_optimizer
from trainer.checkpoint.retention import delete_old

__all__ = [
    "Checkpoint",
    "DamagedCheckpoint",
    "delete_old",
    "load",
    "load_newest",
    "optimizer_tensors",
    "remove_unfinished",
    "restore_optimizer",
    "save",
    "save_weights",
    "steps",
]
