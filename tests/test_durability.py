"""What must not cost a run: a full disk, damage, a second job, changed data; and what must not pass for success."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import torch

from tests.mounts import mounted
from tests.test_bad_input import folder_of, image_folder
from tests.trainer_command import DIGITS, ROOT, TORCHRUN, TRAINER, environment, interrupt, run, succeed
from tests.waiting import until
from trainer import checkpoint
from trainer.checkpoint import Checkpoint
from trainer.data.datasets import held_out
from trainer.run.rows import read_json_lines
from trainer.rundir import RunDir, read_json, write_json


def test_a_diverged_run_stays_failed_and_keeps_no_diverged_weights(tmp_path: Path) -> None:
    arguments = [*DIGITS, "optim.lr=1e30", "max_steps=8", f"run.dir={tmp_path}", "run.name=n"]
    for _ in range(2):
        done = run(TRAINER, *arguments)
        assert done.returncode == 1, done.stderr
        assert "not finite" in done.stderr
    run_dir = RunDir(tmp_path / "n")
    assert checkpoint.steps(run_dir) == []
    assert not run_dir.weights("best").exists()
    assert not run_dir.weights("last").exists()
    assert read_json(run_dir.status)["state"] == "failed"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a run's small files, and hardly for a checkpoint."""
    with mounted(tmp_path / "small", size="900k") as place:
        yield place


def test_a_disk_that_fills_up_does_not_end_the_training_but_does_not_pass_for_success(small_disk: Path) -> None:
    done = run(TRAINER, *DIGITS, "epochs=2", f"run.dir={small_disk}", "run.name=f")
    assert done.returncode == 1, done.stderr
    assert re.search(r"warning: .* has .* left, and checkpoints may take .* more: make room", done.stderr)
    assert "training goes on" in done.stderr
    assert "epoch 2" in done.stderr
    assert "error: the checkpoint of step 46 could not be written: No space left on device" in done.stderr
    assert "Done in" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_job_on_a_run_directory_is_refused(tmp_path: Path) -> None:
    arguments = [*DIGITS, "epochs=4000", f"run.dir={tmp_path}", "run.name=one"]
    with subprocess.Popen([*TRAINER, *arguments], env=environment(), cwd=ROOT, stderr=subprocess.DEVNULL) as first:
        until((tmp_path / "one" / "metrics.jsonl").exists, "the first job trains", first)
        second = run(TRAINER, *arguments)
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 75
    assert second.returncode == 2
    assert "is being trained by another job" in second.stderr
    steps = [row["step"] for row in read_json_lines(tmp_path / "one" / "metrics.jsonl") if "train/loss" in row]
    assert steps == sorted(set(steps))


def test_a_stop_reaches_all_workers_of_torchrun_and_leaves_a_checkpoint(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "s")
    arguments = [*DIGITS, "epochs=4000", "evaluate.every=end", f"run.dir={tmp_path}", "run.name=s"]
    command = ["paceline", "run"]
    _, said = interrupt(
        [str(Path(TRAINER[0]).parent / command[0]), command[1]],
        *arguments,
        when=run_dir.metrics.exists,
        number=signal.SIGINT,
    )
    assert "asked to stop (Ctrl-C): stopping" in said
    assert read_json(run_dir.status)["state"] == "preempted"
    latest = read_json(run_dir.status)["latest"]
    assert (run_dir.checkpoints / latest).exists()
    assert checkpoint.load(run_dir.checkpoints / latest).state["world_size"] == 2


def test_max_time_stops_in_time_with_a_checkpoint(tmp_path: Path) -> None:
    done = run(TRAINER, *DIGITS, "epochs=4000", "max_time=00:00:01", f"run.dir={tmp_path}", "run.name=m")
    assert done.returncode == 75, done.stderr
    assert "max_time=00:00:01 counts from the start of the command: " in done.stderr
    assert "max_time is near" in done.stderr
    assert checkpoint.steps(RunDir(tmp_path / "m"))


def test_changed_data_is_noticed_on_resume(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images", per_class=20)
    arguments = [*folder_of(root), "epochs=400", "model.name=small_resnet"]
    run_dir = RunDir(tmp_path / "runs" / "f")
    interrupt(TRAINER, *arguments, when=lambda: bool(checkpoint.steps(run_dir)), number=signal.SIGTERM)
    old = "class_0/0.png"
    # As many images as before in both splits.
    new = next(name for n in count(100) if held_out(name := f"class_0/{n}.png", 0.3) == held_out(old, 0.3))
    (root / old).rename(root / new)
    done = run(TRAINER, *arguments)
    assert done.returncode == 2, done.stderr
    assert re.search("the data has changed .*: (training|validation) files were added, removed or renamed", done.stderr)
    assert "run.accept_changes=true" in done.stderr


def test_a_lone_last_sample_before_batchnorm_is_refused_at_once(tmp_path: Path) -> None:
    arguments = [
        "data=synthetic", "data.args={n: 17, n_val: 4, classes: 2, size: 32}", "model.name=resnet18", "model.args={}",
        "global_batch_size=8", "tracking=none", "device=cpu", "precision=fp32", f"run.dir={tmp_path}",
    ]  # fmt: skip
    done = run(TRAINER, *arguments)
    assert done.returncode == 2, done.stderr
    assert "single sample" in done.stderr
    assert "data.drop_last=true" in done.stderr


def saved(run_dir: RunDir, step: int) -> None:
    checkpoint.save(run_dir.checkpoint(step), Checkpoint({"a": torch.full((1000,), float(step))}, {"step": step}))


def damage(run_dir: RunDir, step: int) -> None:
    file = run_dir.checkpoint(step) / "tensors.safetensors"
    content = bytearray(file.read_bytes())
    content[-50] ^= 4
    file.write_bytes(content)


def test_the_only_good_checkpoint_outlives_a_damaged_newer_one(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    saved(run_dir, 10)
    saved(run_dir, 20)
    damage(run_dir, 20)
    step, found, damaged = checkpoint.find_newest(run_dir)
    assert step == 10
    assert found is not None
    assert "step 20" in checkpoint.put_aside(run_dir, 20, damaged[20])
    saved(run_dir, 15)
    checkpoint.delete_old(run_dir, verified=15, keep=1, keep_every=None, best=0)
    assert checkpoint.steps(run_dir) == [15]
    assert len(list(run_dir.checkpoints.glob("damaged-*"))) == 1


def test_a_copy_under_another_step_is_neither_gone_on_from_nor_kept_for_one(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    for step in (10, 20, 30):
        saved(run_dir, step)
    shutil.copytree(run_dir.checkpoint(20), run_dir.checkpoint(9999))
    step, _, damaged = checkpoint.find_newest(run_dir)
    assert step == 30
    said = checkpoint.put_aside(run_dir, 9999, damaged[9999])
    assert "by its manifest.json it is step-00000020, under another name" in said
    checkpoint.delete_old(run_dir, verified=30, keep=2, keep_every=None, best=0)
    assert checkpoint.steps(run_dir) == [20, 30]


def test_a_checkpoint_whose_manifest_has_no_name_yet_still_loads(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    saved(run_dir, 10)
    manifest = run_dir.checkpoint(10) / "manifest.json"
    content = read_json(manifest)
    assert content.pop("folder") == "step-00000010"
    write_json(manifest, content)
    assert checkpoint.find_newest(run_dir)[0] == 10


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_a_missing_empty_or_truncated_file_of_a_checkpoint_is_found(tmp_path: Path, name: str) -> None:
    for change in ("missing", "empty", "truncated"):
        run_dir = RunDir(tmp_path / change)
        saved(run_dir, 1)
        saved(run_dir, 2)
        file = run_dir.checkpoint(2) / name
        content = file.read_bytes()
        file.unlink()
        if change != "missing":
            file.write_bytes(b"" if change == "empty" else content[: len(content) // 2])
        assert checkpoint.find_newest(run_dir)[0] == 1


def test_what_a_killed_save_left_is_removed_and_never_taken_for_a_checkpoint(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    saved(run_dir, 1)
    (run_dir.checkpoints / ".step-00000002.123.tmp").mkdir()
    # Of single files, by a process that is no more; another one may be writing status.json just now.
    weights, status, young = (
        run_dir.path / name
        for name in ("weights/.best.safetensors.h.1.2.tmp", ".status.json.h.1.tmp", ".job.json.h.1.tmp")
    )
    for path in (weights, status, young):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    os.utime(status, (0, 0))
    assert checkpoint.steps(run_dir) == [1]
    checkpoint.remove_unfinished(run_dir)
    assert [path.name for path in run_dir.checkpoints.iterdir()] == ["step-00000001"]
    assert [path for path in (weights, status, young) if path.exists()] == [young]


def test_two_workers_go_on_to_the_weights_of_an_undisturbed_run(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    short = [*DIGITS, "epochs=3", "deterministic=true", "checkpoint.every_steps=7", f"run.dir={tmp_path}"]
    succeed(TORCHRUN, *short, "run.name=whole")
    cut = RunDir(tmp_path / "cut")
    paceline = [str(Path(TRAINER[0]).parent / "paceline"), "run"]
    interrupt(paceline, *short, "run.name=cut", when=lambda: bool(checkpoint.steps(cut)), number=signal.SIGKILL)
    succeed(TORCHRUN, *short, "run.name=cut")
    one, other = (load_file(RunDir(tmp_path / name).weights("last")) for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_error_of_one_rank_is_the_one_that_is_told(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "import os, torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__()\n"
        "        self.layer = torch.nn.Linear(64, num_classes)\n"
        "        self.calls = 0\n"
        "    def forward(self, images):\n"
        "        self.calls += 1\n"
        "        if self.calls == 3 and os.environ['RANK'] == '1':\n"
        "            raise KeyError('the true cause')\n"
        "        return self.layer(images.flatten(1))\n"
    )
    arguments = [
        "data=digits",
        "model._target_=broken.Net",
        "device=cpu",
        "precision=fp32",
        "tracking=none",
        "run.name=b",
    ]
    for command in ([str(Path(TRAINER[0]).parent / "paceline"), "run"], TORCHRUN):
        done = run(command, *arguments, "run.fresh=true", cwd=tmp_path)
        assert done.returncode == 1, done.stderr
        newest = max((tmp_path / "runs").iterdir(), key=lambda path: path.stat().st_mtime)
        failure = read_json(newest / "failure.json")
        assert (failure["rank"], failure["type"], failure["exit_code"]) == (1, "KeyError", 1)
        assert "broken.py" in failure["traceback"]
        assert read_json(newest / "status.json")["state"] == "failed"


def test_diverged_weights_are_no_success_however_many_steps_were_left_out(tmp_path: Path) -> None:
    arguments = [*DIGITS, "optim.lr=1e30", "epochs=1", "on_nonfinite=skip", f"run.dir={tmp_path}", "run.name=d"]
    for _ in range(2):
        done = run(TRAINER, *arguments)
        assert done.returncode == 1, done.stderr
        assert "weights that have diverged" in done.stderr
        assert "best so far" not in done.stderr
    run_dir = RunDir(tmp_path / "d")
    assert read_json(run_dir.status)["state"] == "failed"
    assert not run_dir.weights("best").exists()


def test_a_run_whose_checkpoints_are_gone_does_not_start_over_unasked(tmp_path: Path) -> None:
    arguments = [*DIGITS, "epochs=1", f"run.dir={tmp_path}", "run.name=g"]
    run_dir = RunDir(tmp_path / "g")
    succeed(TRAINER, *arguments)
    run_dir.update_status(state="stopped")
    run_dir.checkpoints.rename(tmp_path / "elsewhere")
    before = run_dir.metrics.read_bytes()
    done = run(TRAINER, *arguments)
    assert done.returncode == 3, done.stderr
    assert "this run has saved step-00000023, and there is no checkpoint in" in done.stderr
    assert run_dir.metrics.read_bytes() == before
    assert "it starts over" in succeed(TRAINER, *arguments, "run.accept_changes=true")


def test_a_disk_that_stays_full_is_told_as_often_as_it_is_tried(small_disk: Path) -> None:
    arguments = ["epochs=3", "evaluate.every=3", "optim.lr=0.01", f"run.dir={small_disk}", "run.name=f"]
    done = run(TRAINER, *DIGITS, *arguments)
    assert done.returncode == 1, done.stderr
    # The first time, and once more at the end; the waits in between are longer than the run.
    assert 1 <= done.stderr.count("the best weights could not be written") <= 2
