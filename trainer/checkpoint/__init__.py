"""Checkpoints: what they are made of, how they are written, found, read and deleted."""

from trainer.checkpoint.background import BackgroundWriter
from trainer.checkpoint.files import (
    Checkpoint,
    find_newest,
    load,
    prove,
    put_aside,
    remove_unfinished,
    save,
    steps,
    write,
)
from trainer.checkpoint.image import Image
from trainer.checkpoint.optimizer import lacks_entries, optimizer_tensors, restore_optimizer
from trainer.checkpoint.retention import delete_old
from trainer.checkpoint.schedule import Schedule
from trainer.commit import Damaged

__all__ = [
    "BackgroundWriter",
    "Checkpoint",
    "Damaged",
    "Image",
    "Schedule",
    "delete_old",
    "find_newest",
    "lacks_entries",
    "load",
    "optimizer_tensors",
    "prove",
    "put_aside",
    "remove_unfinished",
    "restore_optimizer",
    "save",
    "steps",
    "write",
]
