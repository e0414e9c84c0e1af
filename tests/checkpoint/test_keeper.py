"""What the training loop sees of saving: nothing. The trainer as a process of its own, with faults put into it."""

import json
import signal
import sys
import textwrap
from pathlib import Path

import torch
from safetensors.torch import load_file
from torchvision.models import get_model

import trainer.model.zoo.small_resnet  # noqa: F401  # registers the model
from tests import warm
from tests.trainer_command import DIGITS, TRAINER, run, succeed
from trainer import checkpoint
from trainer.run.rows import read_json_lines
from trainer.rundir import RunDir
from trainer.training.state import weights_in

SHORT = [
    *DIGITS,
    "epochs=3",
    "log_every_steps=5",
    "checkpoint.every_steps=7",
    "checkpoint.keep=100",
    "deterministic=true",
]


def train_with(fault: str, tmp_path: Path) -> list[str]:
    """The trainer's command, in a process where the Python code `fault` was executed before."""
    driver = tmp_path / "driver.py"
    driver.write_text(textwrap.dedent(fault) + "\nimport runpy\nrunpy.run_module('trainer', run_name='__main__')\n")
    return [sys.executable, str(driver)]


def test_a_storage_that_hangs_stops_neither_the_steps_nor_the_end(tmp_path: Path) -> None:
    hangs = """
        import threading
        from trainer import commit
        from trainer.training import keeper
        from trainer.checkpoint import BackgroundWriter
        BackgroundWriter.__init__.__kwdefaults__["patience_s"] = 1.0
        keeper._TURN_S = keeper._LEAVE_S = 0.5
        write, saves = commit.write_folder, []
        def write_folder(folder, files, **more):
            saves.append(folder)
            if len(saves) == 2:
                threading.Event().wait()
            write(folder, files, **more)
        commit.write_folder = write_folder
    """
    done = run(train_with(hangs, tmp_path), *SHORT, f"run.dir={tmp_path}", "run.name=h")
    assert done.returncode == 1, done.stderr
    assert "warning: the checkpoint has been under way for" in done.stderr
    assert "error: the checkpoint of step 69 could not be written: the storage does not answer" in done.stderr
    run_dir = RunDir(tmp_path / "h")
    assert checkpoint.steps(run_dir) == [7]
    assert max(row["step"] for row in read_json_lines(run_dir.metrics)) == 69
    assert [row["step"] for row in read_json_lines(run_dir.events) if row["event"] == "write_overdue"]
    assert checkpoint.find_newest(run_dir)[0] == 7


def test_where_even_the_error_cannot_be_kept_the_process_ends_all_the_same(tmp_path: Path) -> None:
    hangs = """
        import threading
        from trainer import commit
        from trainer.training import keeper
        from trainer.trouble import mishap
        from trainer.checkpoint import BackgroundWriter
        BackgroundWriter.__init__.__kwdefaults__["patience_s"] = 2.0
        keeper._LEAVE_S, keeper._TURN_S = 2.0, 0.1
        commit.write_folder = mishap.write_json_once = lambda *_, **__: threading.Event().wait()
    """
    done = run(train_with(hangs, tmp_path), *SHORT, "max_steps=10", f"run.dir={tmp_path}", "run.name=h")
    assert done.returncode == 1, done.stderr
    assert "the storage is slow: waiting for the save under way, at most" in done.stderr
    assert "error: the checkpoint of step 10 could not be written: the storage does not answer" in done.stderr


def test_a_slow_storage_merges_requests_and_what_is_saved_is_the_state_of_its_step(tmp_path: Path) -> None:
    slow = """
        import threading
        from trainer import commit
        write = commit.write_folder
        def write_folder(folder, files, **more):
            threading.Event().wait(1.0)
            write(folder, files, **more)
        commit.write_folder = write_folder
    """
    succeed(train_with(slow, tmp_path), *SHORT, f"run.dir={tmp_path}", "run.name=slow")
    succeed(TRAINER, *SHORT, f"run.dir={tmp_path}", "run.name=fast")
    slow_run, fast_run = (RunDir(tmp_path / name) for name in ("slow", "fast"))
    assert checkpoint.steps(slow_run)[0] == 7
    assert checkpoint.steps(slow_run)[-1] == 69
    assert len(checkpoint.steps(slow_run)) < 10
    common = set(checkpoint.steps(slow_run)) & set(checkpoint.steps(fast_run))
    assert {7, 69} <= common
    for step in common:
        one, other = (checkpoint.load(run_dir.checkpoint(step)) for run_dir in (slow_run, fast_run))
        assert one.tensors.keys() == other.tensors.keys()
        assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
        for state in (one.state, other.state):
            state["progress"].pop("seconds")
        assert one.state == other.state
    last = load_file(slow_run.weights("last"))
    tensors = checkpoint.load(slow_run.checkpoint(69)).tensors
    assert all(torch.equal(last[name], tensors[f"model.{name}"]) for name in last)
    # What it cost the steps does not contain the waiting.
    saves = [row for row in read_json_lines(slow_run.events) if row["event"] == "checkpoint"]
    assert all(row["seconds"] > 1.0 for row in saves)
    assert all(row["stall_seconds"] < 1.0 for row in saves)


def test_no_checkpoint_is_ahead_of_rows_that_wait_for_a_full_disk(tmp_path: Path) -> None:
    """Rows are refused for a moment; a kill after the next checkpoint finds those of all steps before it."""
    full = """
        import errno, os, signal
        from trainer import checkpoint
        from trainer.tracking import jsonl
        append, verify = jsonl.append_json_line, checkpoint.prove
        def append_json_line(path, row):
            # From step 10 on: when the row is new, and when a checkpoint wants it to be there.
            if path.name == "metrics.jsonl" and row["step"] >= 10 and len(refused) < 2:
                refused.append(row)
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            append(path, row)
        def prove(run, step):
            verify(run, step)
            if step >= 14:
                os.kill(os.getpid(), signal.SIGKILL)
        refused = []
        jsonl.append_json_line, checkpoint.prove = append_json_line, prove
    """
    done = run(train_with(full, tmp_path), *SHORT, "checkpoint.every_steps=7", f"run.dir={tmp_path}", "run.name=r")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert "the checkpoint could not be written: No space left on device" in done.stderr
    run_dir = RunDir(tmp_path / "r")
    newest = checkpoint.find_newest(run_dir)[0]
    assert newest >= 14
    rows = {row["step"] for row in read_json_lines(run_dir.metrics) if "train/loss" in row}
    assert set(range(5, newest + 1, 5)) <= rows


def test_no_checkpoint_is_ahead_of_the_best_weights_that_it_speaks_of(tmp_path: Path) -> None:
    watched = """
        import json, pathlib, threading
        from trainer import commit
        from trainer.rundir import RunDir
        replace_file, write_folder = commit.replace_file, commit.write_folder
        written = []
        def slow_for_the_best(path, pieces, **more):
            if path.name.startswith("best"):
                threading.Event().wait(0.3)
            replace_file(path, pieces, **more)
            written.append(path.name)
        def watched(folder, files, **more):
            write_folder(folder, files, **more)
            with pathlib.Path("order.jsonl").open("a") as stream:
                best = json.loads((folder / "state.json").read_text())["progress"]["best"]["step"]
                stream.write(json.dumps([folder.name, best, written.count("best.safetensors")]) + "\\n")
        commit.replace_file, commit.write_folder = slow_for_the_best, watched
    """
    arguments = [*DIGITS, "epochs=3", "evaluate.every=5", "checkpoint.every_steps=5", "run.dir=.", "run.name=b"]
    done = run(train_with(watched, tmp_path), *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "order.jsonl").read_text().splitlines()]
    assert rows[0][:2] == ["step-00000005", 5]
    assert all(written > 0 for _, _, written in rows)


def test_what_two_workers_have_saved_one_goes_on_from_and_plain_torch_reads(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "n")
    arguments = [*DIGITS, "run.dir=.", "run.name=n", "evaluate.every=end", "run.accept_changes=true"]
    arguments += ["checkpoint.every_steps=2", "checkpoint.keep=9"]
    for world_size, steps in ((2, 4), (1, 8)):
        processes = warm.start(*arguments, f"max_steps={steps}", world_size=world_size, folder=tmp_path)
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0] * world_size, (tmp_path / "rank-0.txt").read_text()
        plain = load_file(run_dir.checkpoint(steps) / "tensors.safetensors")
        assert any(name.startswith("each_rank.") for name in plain) == (world_size == 2)
        last = load_file(run_dir.weights("last"))
        get_model("small_resnet", num_classes=10, image_size=8).load_state_dict(last)
        for name, tensor in last.items():
            assert torch.equal(tensor, plain.get(f"averaged.{name}", plain[f"model.{name}"])), name
    # Between evaluations each worker has seen its own samples; the weights hold what they have seen together.
    early = load_file(run_dir.checkpoint(2) / "tensors.safetensors")
    averaged = [name.removeprefix("averaged.") for name in early if name.startswith("averaged.")]
    assert any(not torch.equal(early[f"averaged.{name}"], early[f"model.{name}"]) for name in averaged)
    names = weights_in(early)
    assert {names[name] for name in averaged} == {f"averaged.{name}" for name in averaged}
    assert names.keys() == last.keys()
    assert "goes on after step 4" in (tmp_path / "rank-0.txt").read_text()
    assert any(name.startswith("optimizer.") for name in plain)
