"""A checkpoint's files: safetensors and JSON in a folder that is committed by one rename; no pickle anywhere.

    checkpoints/step-00001200/
        tensors.safetensors    model.*, optimizer.*, each_rank.*: what buffers the state dict does not tell; averaged.*
        state.json             plain values: step, best result, scaler
        manifest.json          the folder's name, size and xxh3_128 of each file; written last

A folder without a good manifest does not exist for the reader.
"""

import errno
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse

from trainer import commit
from trainer.checkpoint.image import Image
from trainer.commit import Damaged
from trainer.errors import TrainingError
from trainer.rundir import RunDir, is_number

_TENSORS = "tensors.safetensors"
_STATE = "state.json"
_ABANDONED_S = 60.0
_ANY_TIME = nullcontext()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        tensors: name -> tensor.
        state: plain JSON values.
    """

    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]


def write(
    folder: Path,
    image: Image,
    state: bytes,
    *,
    guard: Callable[[], None] = lambda: None,
    turn: AbstractContextManager[object] = _ANY_TIME,
) -> None:
    """Writes a checkpoint so that it exists either whole or not at all, also after a power cut.

    Args:
        folder: where.
        image: its tensors.
        state: its plain values as JSON.
        guard: as in `commit.write_folder`.
        turn: likewise.

    Raises:
        OSError: disk full, not writable, ...; nothing of the new checkpoint remains.
    """
    commit.write_folder(folder, {_TENSORS: image.pieces(), _STATE: [state]}, guard=guard, turn=turn)


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint here and now; the trainer itself writes beside the training, see `Keeper`.

    Raises:
        OSError: as `write`.
    """
    image = Image(checkpoint.tensors)
    image.fill(checkpoint.tensors)
    write(folder, image, json.dumps(checkpoint.state).encode())


def load(folder: Path) -> Checkpoint:
    """Reads a checkpoint after its checksums agreed.

    Raises:
        Damaged: a file is missing, truncated or changed, or cannot be read.
    """
    content = commit.read_folder(folder, (_TENSORS, _STATE))
    try:
        tensors, state = parse(content[_TENSORS]), json.loads(content[_STATE])
    except (ValueError, RecursionError, SafetensorError) as error:
        raise Damaged(f"{type(error).__name__}: {error}") from error
    if not isinstance(state, dict):
        raise Damaged(f"{_STATE} holds no names")
    return Checkpoint(tensors, state)


def steps(run: RunDir) -> list[int]:
    """The steps of the run's checkpoints, ascending, good or not."""
    found = []
    for path in run.checkpoints.glob("step-*"):
        number = path.name.removeprefix("step-")
        # A name that we do not give, such as step-20, is not where a checkpoint of that step would be looked for.
        if is_number(number) and run.checkpoint(int(number)).name == path.name:
            found.append(int(number))
    return sorted(found)


def find_newest(run: RunDir) -> tuple[int, Checkpoint | None, dict[int, Damaged]]:
    """The newest good checkpoint; nothing is changed, but a name given back that a killed writer had taken away.

    Returns:
        Its step (0 when there is none), its content, and what is wrong with each newer one, by step.

    Raises:
        TrainingError: there are checkpoints, and every one is damaged.
    """
    commit.give_names_back(run.checkpoints, "step-*")
    damaged: dict[int, Damaged] = {}
    for step in reversed(steps(run)):
        try:
            found = load(run.checkpoint(step))
        except Damaged as damage:
            damaged[step] = damage
            continue
        return step, found, damaged
    if damaged:
        shown = [f"step {step:,}: {damage}" for step, damage in damaged.items()]
        raise TrainingError(
            f"all checkpoints in {run.checkpoints} are damaged; nothing was deleted",
            "\n  ".join([*shown, "run.fresh=true starts over beside this run"]),
        )
    return 0, None, {}


def put_aside(run: RunDir, step: int, damage: Damaged) -> str:
    """Gives a damaged checkpoint a name that nothing takes for good; returns a line about it."""
    folder = run.checkpoint(step)
    aside = folder.with_name(f"damaged-{folder.name}-{time.time_ns():x}")
    told = f"the checkpoint of step {step:,} is damaged and was passed over ({damage})"
    try:
        folder.rename(aside)
    except OSError as error:
        return f"{told}; it could not be put aside: {error.strerror}"
    return f"{told}; it is kept as {aside.name}"


def prove(run: RunDir, step: int) -> None:
    """Reads back the checkpoint of a step, from the medium where the system allows that.

    Raises:
        OSError: it is not what was written; it is put aside.
    """
    try:
        commit.verify_folder(run.checkpoint(step))
    except Damaged as damage:
        put_aside(run, step, damage)
        raise OSError(errno.EIO, f"it does not read back as it was written ({damage})") from damage


def remove_unfinished(run: RunDir) -> None:
    """Removes what processes that were killed while saving have left; only the run's owner may call it."""
    commit.clear_up(run.checkpoints, "step-*")
    commit.remove_unfinished_files(run.weights("last").parent)
    # The launcher, and an evaluation on request, write there beside the owner.
    commit.remove_unfinished_files(run.path, older_than_s=_ABANDONED_S)
