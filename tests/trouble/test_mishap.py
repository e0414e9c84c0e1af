"""What an error in a user's own model or a worker that does not answer looks like to a person."""

import errno
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from launcher import runs
from tests.trainer_command import DIGITS, TRAINER, run
from trainer.run.lease import LeaseLost
from trainer.rundir import RunDir, error_beside, read_json, write_json
from trainer.terminal.console import LineConsole
from trainer.trouble import mishap
from trainer.trouble.mishap import Attempt, explain, report

NET = """
import torch
class Net(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layer = torch.nn.Linear({inputs}, {outputs})
    def forward(self, images):
        return self.layer(images.flatten(1))
"""
ARGUMENTS = ["data=digits", "model._target_=net.Net", *DIGITS[1:], "max_steps=2", "run.name=n"]


def test_an_error_in_a_users_model_names_the_users_line_and_leaves_a_traceback_in_the_log(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET.format(inputs=63, outputs="num_classes"))
    done = run(TRAINER, *ARGUMENTS, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "(net.py:8 in forward)" in done.stderr
    assert "Traceback" not in done.stderr
    assert "in forward\n    return self.layer" in RunDir(tmp_path / "runs" / "n").log(0, 0).read_text()


def test_a_model_with_too_few_logits_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET.format(inputs=64, outputs=7))
    done = run(TRAINER, *ARGUMENTS, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "the data has 10 classes, but the model gives 7 logits" in done.stderr
    assert "num_classes" in done.stderr


@pytest.mark.parametrize(
    "error",
    [
        IndexError("Target 12 is out of bounds."),
        RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported"),
    ],
)
def test_a_target_that_is_no_class_is_told_in_words(error: Exception) -> None:
    problem, fix = explain(error)
    assert problem == f"a target of the data is none of its classes ({str(error).splitlines()[0].rstrip('.')})"
    assert "device=cpu" in fix


def test_a_worker_that_does_not_answer_is_told_in_words() -> None:
    gloo = RuntimeError("[/build/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 8000ms for recv operation")
    problem, fix = explain(gloo)
    assert "another worker did not answer in time" in problem
    assert "distributed.timeout_s" in fix


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.setattr(mishap, "_OTHER_RANKS_S", 0.1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    run_dir = RunDir(tmp_path / "r")
    write_json(run_dir.status, {"state": "running", "attempt": 1, "step": 5})
    return run_dir


def fails_on(
    rank: int, error: Exception, run_dir: RunDir, monkeypatch: pytest.MonkeyPatch, *, ours: bool = True
) -> str:
    """What a worker says when its error is reported."""
    monkeypatch.setenv("RANK", str(rank))
    said = io.StringIO()
    with pytest.raises(type(error)) as raised:
        raise error
    console = LineConsole(said, None, clock=time.monotonic)
    assert report(raised.value, Attempt(run_dir, 1, is_ours=ours), console) == 1
    return said.getvalue()


def test_another_rank_leaves_the_status_to_rank_zero_and_is_found_all_the_same(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run_dir.status.read_bytes()
    assert runs.look(run_dir).state == "lost"
    assert "the true cause" in fails_on(1, KeyError("the true cause"), run_dir, monkeypatch)
    assert run_dir.status.read_bytes() == before
    view = runs.look(run_dir)
    assert (view.state, view.failure["rank"], view.failure["type"]) == ("failed", 1, "KeyError")
    # It only heard of the other's end, has nothing to add, and is the one to write how the run has ended.
    assert fails_on(0, ConnectionError("Connection reset by peer"), run_dir, monkeypatch) == ""
    assert read_json(run_dir.status)["state"] == "failed"
    assert read_json(run_dir.failure)["rank"] == 1


def test_the_same_error_is_told_once_and_is_in_the_log_of_each_rank(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "the cause of both" in fails_on(0, ValueError("the cause of both"), run_dir, monkeypatch)
    assert fails_on(1, ValueError("the cause of both"), run_dir, monkeypatch) == ""
    for rank in (0, 1):
        assert "raise error\nValueError: the cause of both" in run_dir.log(1, rank).read_text()


def test_that_another_worker_is_gone_is_said_where_neither_it_nor_a_launcher_says_why(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = ConnectionError("Connection reset by peer")
    assert "another worker ended" in fails_on(0, gone, run_dir, monkeypatch)
    run_dir.failure.unlink()
    run_dir.attempt_failure(1).unlink()
    monkeypatch.setenv("PACELINE_RUN_DIR", str(run_dir.path))
    monkeypatch.setattr(mishap, "_OTHER_RANKS_S", 60.0)
    assert fails_on(0, gone, run_dir, monkeypatch) == ""
    # The launcher finds it beside the log, among the others' words.
    assert read_json(error_beside(run_dir.log(1, 0)))["type"] == "ConnectionError"
    assert run_dir.read_failure(1) == {}


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_of_a_job_that_has_lost_the_run_leaves_the_next_jobs_files_alone(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    def fenced() -> None:
        raise LeaseLost(errno.ESTALE, "process 7 on there has taken this run over")

    run_dir.guard = fenced
    write_json(run_dir.status, {"state": "running", "attempt": 2})
    write_json(run_dir.failure, {"attempt": 2, "rank": 3})
    kept = [path.read_bytes() for path in (run_dir.status, run_dir.failure)]
    assert "process 7 on there" in fails_on(rank, ValueError("mine"), run_dir, monkeypatch)
    assert [path.read_bytes() for path in (run_dir.status, run_dir.failure)] == kept
    assert run_dir.read_failure(1)["message"] == "mine"


def test_an_error_before_the_run_is_ours_is_told_beside_the_attempts_logs_alone(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_on(0, ValueError("early"), run_dir, monkeypatch, ours=False)
    assert not run_dir.failure.exists()
    assert read_json(run_dir.status)["state"] == "running"
    assert run_dir.read_failure(1)["message"] == "early"


def test_threads_that_change_the_status_together_lose_nothing(tmp_path: Path) -> None:
    run_dir, together = RunDir(tmp_path), threading.Barrier(4, timeout=20)

    def update(thread: int) -> None:
        for number in range(10):
            together.wait()
            run_dir.update_status(**{f"field {thread} {number}": number})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(update, range(4)))
    assert len([name for name in run_dir.read_status() if name.startswith("field")]) == 40
