"""Checkpoints: safetensors files and a JSON manifest with checksums, committed by one rename; no pickle anywhere.

    checkpoints/step-00001200/
        tensors.safetensors    model.*, optimizer.*, and every rank's own buffers
        state.json             plain values: step, best result, scaler
        manifest.json          size and xxh3_128 of each file; written last

A folder without a good manifest does not exist for the reader.
"""

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from safetensors.torch import save as serialise

from trainer.errors import TrainingError
from trainer.rundir import RunDir, sync_directory, write_atomic, write_json

_TENSORS = "tensors.safetensors"
_STATE = "state.json"
_MANIFEST = "manifest.json"
_FORMAT = 1


class DamagedCheckpoint(Exception):
    """A checkpoint that must not be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        tensors: name -> tensor on the CPU.
        state: plain JSON values.
    """

    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint so that it exists either whole or not at all, also after a power cut.

    Raises:
        OSError: disk full, not writable, ...; nothing of the new checkpoint remains.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        _write_tensors(checkpoint.tensors, temporary / _TENSORS)
        (temporary / _STATE).write_text(json.dumps(checkpoint.state, indent=1))
        files = {}
        for name in (_TENSORS, _STATE):
            _sync_file(temporary / name)
            files[name] = {"bytes": (temporary / name).stat().st_size, "xxh3_128": _digest(temporary / name)}
        write_json(temporary / _MANIFEST, {"format": _FORMAT, "files": files})
        replaced = folder.with_name(f".{folder.name}.{os.getpid()}.replaced")
        if folder.exists():
            folder.rename(replaced)
        temporary.rename(folder)
        sync_directory(folder.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def load(folder: Path) -> Checkpoint:
    """Reads a checkpoint after its checksums agreed.

    Raises:
        DamagedCheckpoint: a file is missing, truncated or changed.
    """
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        for name, expected in manifest["files"].items():
            path = folder / name
            if path.stat().st_size != expected["bytes"]:
                raise DamagedCheckpoint(f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}")
            if _digest(path) != expected["xxh3_128"]:
                raise DamagedCheckpoint(f"the checksum of {name} does not agree")
        return Checkpoint(load_file(folder / _TENSORS), json.loads((folder / _STATE).read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise DamagedCheckpoint(f"{type(error).__name__}: {error}") from error


def steps(run: RunDir) -> list[int]:
    """The steps of the run's checkpoints, ascending, good or not."""
    found = []
    for path in run.checkpoints.glob("step-*"):
        number = path.name.removeprefix("step-")
        if number.isdigit():
            found.append(int(number))
    return sorted(found)


def load_newest(run: RunDir) -> tuple[int, Checkpoint | None, list[str]]:
    """The newest good checkpoint; damaged ones that are newer are put aside, so that nothing takes them for good.

    Returns:
        Its step (0 when there is none), its content, and a line about each damaged one.

    Raises:
        TrainingError: there are checkpoints, and every one is damaged.
    """
    damaged: dict[int, DamagedCheckpoint] = {}
    for step in reversed(steps(run)):
        try:
            found = load(run.checkpoint(step))
        except DamagedCheckpoint as damage:
            damaged[step] = damage
            continue
        return step, found, [_put_aside(run, bad, damage) for bad, damage in damaged.items()]
    if damaged:
        shown = [f"step {step:,}: {damage}" for step, damage in damaged.items()]
        raise TrainingError(
            f"all checkpoints in {run.checkpoints} are damaged; nothing was deleted",
            "\n  ".join([*shown, "run.fresh=true starts over beside this run"]),
        )
    return 0, None, []


def _put_aside(run: RunDir, step: int, damage: DamagedCheckpoint) -> str:
    folder = run.checkpoint(step)
    aside = folder.with_name(f"damaged-{folder.name}-{time.time_ns():x}")
    folder.rename(aside)
    return f"the checkpoint of step {step:,} is damaged and was passed over ({damage}); it is kept as {aside.name}"


def remove_unfinished(run: RunDir) -> None:
    """Removes what processes that were killed while saving have left; only the run's owner may call it."""
    for path in [*run.checkpoints.glob(".step-*.tmp"), *run.checkpoints.glob(".step-*.replaced")]:
        shutil.rmtree(path, ignore_errors=True)


def save_weights(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Writes a plain state dict that `model.load_state_dict(safetensors.torch.load_file(path))` takes.

    Raises:
        OSError: disk full, not writable, ...; the file that was there is intact.
    """
    write_atomic(path, serialise(_storable(state)))


def _write_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    try:
        save_file(_storable(tensors), path)
    except SafetensorError as error:
        # The library has its own error for a full disk; its text has the operating system's number.
        number = re.search(r"os error (\d+)", str(error))
        code = int(number.group(1)) if number else errno.EIO
        raise OSError(code, os.strerror(code)) from error


def _storable(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous CPU tensors that share no memory, as safetensors asks."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        address = plain.untyped_storage().data_ptr()
        if address in seen or plain.untyped_storage().nbytes() != plain.nbytes:
            plain = plain.clone()
        seen.add(plain.untyped_storage().data_ptr())
        result[name] = plain
    return result


def _digest(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
