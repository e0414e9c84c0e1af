"""A commit gives nothing its name that has not been written down, is not allowed, or does not read back."""

import errno
import os
from pathlib import Path

import pytest

from tests.numerics.runs import configuration, train_in
from tests.workers import alone
from trainer import checkpoint, commit
from trainer.checkpoint import Image
from trainer.config import CheckpointConfig
from trainer.errors import TrainingError
from trainer.run.lease import LeaseLost
from trainer.rundir import RunDir


def test_what_is_not_allowed_any_more_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    commit.write_folder(folder, {"a": [b"old"]})
    commit.replace_file(file, [b"old"])
    written: list[str] = []

    def lost() -> None:
        # It is asked last: all that was to be published is on the disk, under another name.
        (hidden,) = [path for path in tmp_path.iterdir() if path.name.startswith(".")]
        written.append((hidden / "a" if hidden.is_dir() else hidden).read_text())
        raise LeaseLost(errno.ESTALE, "another job")

    with pytest.raises(LeaseLost):
        commit.write_folder(folder, {"a": [b"new folder"]}, guard=lost)
    with pytest.raises(LeaseLost):
        commit.replace_file(file, [b"new file"], guard=lost)
    assert written == ["new folder", "new file"]
    assert commit.read_folder(folder, ["a"]) == {"a": b"old"}
    assert file.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_saves_that_do_not_read_back_are_put_aside_and_the_one_before_them_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checkpoint.write

    def write_on_a_bad_disk(folder: Path, image: Image, state: bytes, **more: object) -> None:
        write(folder, image, state, **more)  # type: ignore[arg-type]
        if folder.name != "step-00000004":
            path = folder / "tensors.safetensors"
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)

    monkeypatch.setattr(checkpoint, "write", write_on_a_bad_disk)
    config = configuration([], epochs=1, checkpoint=CheckpointConfig(every_steps=4, keep=1))
    error, said = train_in(alone(), tmp_path, config)
    assert isinstance(error, TrainingError)
    assert "does not read back as it was written (the checksum of tensors.safetensors" in error.problem
    assert "training goes on" in said
    run = RunDir(tmp_path)
    assert checkpoint.steps(run) == [4]
    assert checkpoint.find_newest(run)[0] == 4
    assert run.read_status()["latest"] == "step-00000004"
    assert list(run.checkpoints.glob("damaged-step-00000026-*"))


def test_all_is_synced_from_the_inside_out_before_and_after_the_name_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a journalling file system the last of these brings the others along: a power cut there proves less than this.
    done: list[str] = []
    sync, rename = os.fsync, Path.rename

    def watched_sync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        done.append(f"sync {'hidden' if path.name.startswith('.') else path.name}")
        sync(descriptor)

    def watched_rename(path: Path, target: Path) -> Path:
        done.append(f"rename to {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(Path, "rename", watched_rename)
    commit.write_folder(tmp_path / "made" / "folder", {"a": [b"1"], "b": [b"2"]})
    inside = ["sync a", "sync b", "sync manifest.json", "sync hidden"]
    assert done == [f"sync {tmp_path.name}", *inside, "rename to folder", "sync made"]
