"""Real file systems: power cuts during a save and right after it, disks without room or inodes, reads that fail."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.faults.tracing import calls, load, needs_root, needs_strace, prepare, save, tensors
from tests.trainer_command import DIGITS, ROOT, TRAINER, environment
from trainer import checkpoint
from trainer.checkpoint import Checkpoint
from trainer.rundir import RunDir

_SHUTDOWN, _WITHOUT_FLUSHING_THE_JOURNAL = 0x8004587D, 2


def mount(*arguments: str | Path) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")


class Disk:
    """An ext4 file system in a file; its power can be cut."""

    def __init__(self, folder: Path) -> None:
        self.image, self.place = folder / "disk.img", folder / "disk"
        self.place.mkdir()
        with self.image.open("wb") as stream:
            stream.truncate(16 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-O", "^metadata_csum_seed", self.image], check=True, capture_output=True)
        # Far between, so that nothing is on the disk but what was synced.
        self.options = ("-o", "loop,commit=300", self.image, self.place)
        mount(*self.options)
        self.run = RunDir(self.place / "runs" / "run")

    def cut(self) -> None:
        """Cuts the power, and starts the machine again."""
        descriptor = os.open(self.place, os.O_RDONLY)
        fcntl.ioctl(descriptor, _SHUTDOWN, _WITHOUT_FLUSHING_THE_JOURNAL.to_bytes(4, sys.byteorder))
        os.close(descriptor)
        self.remount()

    def remount(self) -> None:
        subprocess.run(["umount", self.place], check=True)
        mount(*self.options)

    def thaw(self) -> None:
        """Ends a freeze; where there is none, nothing happens."""
        subprocess.run(["fsfreeze", "--unfreeze", self.place], check=False, stderr=subprocess.DEVNULL)

    def keep(self, image: Path) -> None:
        """Leaves a copy of the disk as it is now, synced."""
        subprocess.run(["umount", self.place], check=True)
        subprocess.run(["cp", "--sparse=always", self.image, image], check=True)
        mount(*self.options)

    def become(self, image: Path) -> None:
        """Takes over the content of such a copy."""
        subprocess.run(["umount", self.place], check=True)
        subprocess.run(["cp", "--sparse=always", image, self.image], check=True)
        mount(*self.options)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 is not installed")
    made = Disk(tmp_path)
    yield made
    subprocess.run(["umount", "-l", made.place], check=False)


@needs_root
@needs_strace
def test_a_power_cut_right_after_saved_loses_nothing(disk: Disk) -> None:
    disk.run.path.mkdir(parents=True)
    for step in (1, 2):
        # The first one makes every directory from the run's own on.
        assert save(disk.run, step).stdout == "saved"
        disk.cut()
        assert load(disk.run) == step
        assert torch.equal(load_file(disk.run.weights("last"))["model.a"], tensors(step)["model.a"])
    # That the cut is one: what was not synced is gone.
    (disk.run.path / "unsynced").write_text("lost")
    disk.cut()
    assert not (disk.run.path / "unsynced").exists() or not (disk.run.path / "unsynced").read_text()


@needs_root
@needs_strace
def test_a_power_cut_at_any_system_call_of_a_save_leaves_the_newest_committed_checkpoint(
    disk: Disk, tmp_path: Path
) -> None:
    disk.run.path.mkdir(parents=True)
    prepare(disk.run, 1)
    before = tmp_path / "before.img"
    disk.keep(before)
    found = calls(disk.run, 2)
    steps = []
    for call in found:
        disk.become(before)
        done = save(disk.run, 2, "-e", f"inject={call.name}:signal=KILL:when={call.number}")
        disk.cut()
        step = load(disk.run)
        assert step == 2 if done.stdout == "saved" else step in (1, 2), call
        steps.append(step)
    assert {1, 2} == set(steps)


@needs_root
@pytest.mark.parametrize("limit", ["size={}k", "nr_inodes={}"])
def test_without_room_or_inodes_the_old_one_is_intact_and_the_remains_are_removed(tmp_path: Path, limit: str) -> None:
    place = tmp_path / "small"
    place.mkdir()
    outcomes = []
    for amount in range(8, 140, 4) if "size" in limit else range(6, 24):
        mount("-t", "tmpfs", "-o", f"size=1m,{limit.format(amount)}", "tmpfs", place)
        try:
            run = RunDir(place / "run")
            try:
                prepare(run, 1)
            except OSError:
                continue
            try:
                prepare(run, 2)
                outcomes.append(2)
            except OSError:
                # No trace of the try, since a full disk needs its room.
                assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000001"]
                outcomes.append(1)
            assert load(run) == outcomes[-1]
        finally:
            subprocess.run(["umount", place], check=True)
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {1, 2}


@needs_strace
@pytest.mark.parametrize("fault", ["error=EIO", "retval=0"], ids=["EIO", "a short read"])
def test_a_read_that_fails_makes_it_go_on_from_the_one_before(tmp_path: Path, fault: str) -> None:
    run = RunDir(tmp_path / "run")
    prepare(run, 1, 2)
    newest = run.checkpoint(2) / "tensors.safetensors"
    code = (
        "import sys\nfrom trainer import checkpoint\nfrom trainer.rundir import RunDir\n"
        "step, found, damaged = checkpoint.find_newest(RunDir(sys.argv[1]))\n"
        "print(step, float(found.tensors['model.a'][0]), damaged)\n"
    )
    done = subprocess.run(
        ["strace", "-f", "-qq", "-o", os.devnull, "-P", newest, "-e", f"inject=read:{fault}:when=1+",
         sys.executable, "-c", code, run.path],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    reason = "cannot be read: Input/output error" if "EIO" in fault else "has 0 bytes instead of"
    assert done.stdout.startswith("1 1.0 {2: Damaged('tensors.safetensors " + reason)
    # Nothing was wrong with the file: asked again, it is found.
    assert load(run) == 2


def test_two_writers_of_one_step_leave_a_whole_one(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    prepare(run, 1)

    def write(number: int) -> bool:
        try:
            checkpoint.save(run.checkpoint(2), Checkpoint(tensors(2), {"step": 2}))
        except OSError:
            return False
        return True

    for _ in range(10):
        with ThreadPoolExecutor(4) as pool:
            assert any(pool.map(write, range(4)))
        assert load(run) == 2
    checkpoint.remove_unfinished(run)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-00000001", "step-00000002"]


@needs_root
def test_a_file_system_that_is_frozen_in_a_save_holds_up_neither_the_steps_nor_the_word_of_a_stop(disk: Disk) -> None:
    arguments = [*DIGITS, "epochs=4000", "checkpoint.every_steps=20", "evaluate.every=end"]
    with subprocess.Popen(
        [*TRAINER, *arguments, f"run.dir={disk.place}", "run.name=frozen"],
        env=environment(), cwd=ROOT, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        run, deadline = RunDir(disk.place / "frozen"), time.monotonic() + 60
        while not checkpoint.steps(run):
            assert process.poll() is None
            assert time.monotonic() < deadline
            os.sched_yield()
        subprocess.run(["fsfreeze", "--freeze", disk.place], check=True)
        late = threading.Timer(30, disk.thaw)
        late.start()
        before = checkpoint.steps(run)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        # Said between two steps, with the log on the frozen disk.
        said = any("asked to stop (SIGTERM): stopping" in line for line in process.stderr)
        while_frozen = said, not late.finished.is_set(), process.poll(), checkpoint.steps(run)
        late.cancel()
        disk.thaw()
        assert process.wait(60) == 75
    assert while_frozen == (True, True, None, before)
    assert run.read_status()["state"] == "preempted"
    assert checkpoint.find_newest(run)[0] == run.read_status()["step"] > before[-1]
    assert "asked to stop (SIGTERM): stopping" in run.log(0, 0).read_text()
