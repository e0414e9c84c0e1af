"""Requests to stop, from whoever and at whatever moment: all ranks stop at one step, save, and exit 75."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
from pathlib import Path

import psutil
import pytest

from tests.trainer_command import DIGITS, PACELINE, ROOT, TRAINER, environment, free_port, rank_variables
from tests.waiting import until
from trainer import checkpoint
from trainer.run.rows import read_json_lines
from trainer.rundir import RunDir, read_json

LONG = [*DIGITS, "epochs=4000", "evaluate.every=end"]


def start(
    *arguments: str, rank: int = 0, world_size: int = 1, port: int = 0, cwd: Path = ROOT
) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*TRAINER, *arguments],
        env=environment() | (rank_variables(rank, world_size, port) if world_size > 1 else {}),
        cwd=cwd,
        stderr=subprocess.PIPE,
        text=True,
    )


def has(process: "subprocess.Popen[str]", field: str, number: signal.Signals) -> bool:
    """Whether a signal is in one of the kernel's sets: SigCgt (there is a handler), ShdPnd (not delivered yet)."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(field))
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


def check_preempted(run: RunDir, *processes: "subprocess.Popen[str]") -> str:
    """Waits for the end; all must have stopped with a good checkpoint of the same step. Returns what was said."""
    said = "".join(process.communicate(timeout=120)[1] for process in processes)
    assert [process.returncode for process in processes] == [75] * len(processes), said
    status = read_json(run.status)
    assert status["state"] == "preempted"
    assert checkpoint.steps(run)[-1] == status["step"]
    checkpoint.load(run.checkpoint(status["step"]))
    return said


def test_a_signal_to_any_one_worker_stops_all_of_them(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "s")
    port = free_port()
    workers = [
        start(*LONG, f"run.dir={tmp_path}", "run.name=s", rank=rank, world_size=2, port=port) for rank in range(2)
    ]
    until(run.metrics.exists, "the training has begun", *workers)
    workers[1].send_signal(signal.SIGUSR1)
    said = check_preempted(run, *workers)
    assert "another worker was asked to stop" in said


@pytest.mark.parametrize(
    ("number", "who"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C"), (signal.SIGUSR2, "SIGUSR2")]
)
def test_a_signal_before_torch_is_imported_is_a_request_too(tmp_path: Path, number: signal.Signals, who: str) -> None:
    run = RunDir(tmp_path / "s")
    worker = start(*LONG, f"run.dir={tmp_path}", "run.name=s")

    until(lambda: has(worker, "SigCgt", signal.SIGUSR1), "it listens", worker)
    assert "torch" not in Path(f"/proc/{worker.pid}/maps").read_text()
    worker.send_signal(number)
    assert f"asked to stop ({who}): stopping" in check_preempted(run, worker)


@pytest.mark.parametrize(
    ("command", "number"), [(TRAINER, signal.SIGTERM), (TRAINER, signal.SIGUSR1), (PACELINE, signal.SIGTERM)]
)
def test_a_signal_to_every_process_of_a_job_is_a_request_too(
    tmp_path: Path, command: list[str], number: signal.Signals
) -> None:
    # As `scancel`, systemd and container runtimes send it: the data-loading processes get it as well.
    run = RunDir(tmp_path / "s")
    arguments = [*LONG, "data.workers=2", f"run.dir={tmp_path}", "run.name=s", "cluster.gpus_per_node=1"]
    first = subprocess.Popen([*command, *arguments], env=environment(), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    until(run.metrics.exists, "the training has begun", first)
    tree = [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]
    assert len(tree) >= 3
    for process in reversed(tree):
        process.send_signal(number)
    said = check_preempted(run, first)
    assert "error" not in said
    _, left = psutil.wait_procs(tree[1:], timeout=10)
    assert not left


@pytest.mark.parametrize("ignores", [False, True])
def test_a_terminal_that_is_closed_asks_to_stop_but_not_under_nohup(tmp_path: Path, ignores: bool) -> None:
    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignores else signal.SIG_DFL)

    run = RunDir(tmp_path / "s")
    ours, theirs = pty.openpty()
    arguments = [*DIGITS, "epochs=9" if ignores else "epochs=4000", "evaluate.every=end", f"run.dir={tmp_path}"]
    worker = subprocess.Popen(
        [*TRAINER, *arguments, "run.name=s"],
        env=environment() | {"TERM": "xterm"},
        cwd=ROOT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=take_terminal,
    )
    os.close(theirs)
    until(run.metrics.exists, "the training has begun", worker)
    os.close(ours)
    assert worker.wait(60) == (0 if ignores else 75)
    status = read_json(run.status)
    assert status["state"] == ("finished" if ignores else "preempted")
    assert checkpoint.steps(run)[-1] == status["step"]


def test_a_file_in_the_run_directory_stops_the_run_once(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "s")
    worker = start(*LONG, f"run.dir={tmp_path}", "run.name=s")
    until(run.metrics.exists, "the training has begun", worker)
    run.stop.touch()
    said = check_preempted(run, worker)
    assert f"{run.stop} was there: stopping" in said
    assert not run.stop.exists()
    first = read_json(run.status)["step"]
    again = start(*LONG, f"run.dir={tmp_path}", "run.name=s")
    until(lambda: read_json(run.status).get("step", 0) > first, "it has gone on", again)
    again.send_signal(signal.SIGTERM)
    check_preempted(run, again)


def test_a_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    # The forward pass never ends, nor does it ever return to Python: only the second one can end it.
    (tmp_path / "stuck.py").write_text(
        "import ctypes, pathlib, torch\n"
        "class Net(torch.nn.Linear):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__(64, num_classes)\n"
        "    def forward(self, images):\n"
        "        pathlib.Path('waits').touch()\n"
        "        mutex = ctypes.create_string_buffer(64)\n"
        "        for _ in range(2):\n"
        "            ctypes.CDLL(None).pthread_mutex_lock(mutex)\n"
    )
    arguments = ["data=digits", "model=resnet18", "model._target_=stuck.Net", *DIGITS[1:], "run.name=s"]
    worker = start(*arguments, f"run.dir={tmp_path}", cwd=tmp_path)
    until((tmp_path / "waits").exists, "the forward pass has begun", worker)
    worker.send_signal(signal.SIGINT)
    # Two that are pending at once would be one.
    until(lambda: not has(worker, "ShdPnd", signal.SIGINT), "the first one has come", worker)
    worker.send_signal(signal.SIGINT)
    _, said = worker.communicate(timeout=20)
    assert worker.returncode == 128 + signal.SIGINT, said


SLOW_EVALUATION = """
import fcntl, pathlib, time, torch
class Net(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.norm, self.head = torch.nn.BatchNorm1d(64), torch.nn.Linear(64, num_classes)
        self.evaluated = 0
    def forward(self, images):
        if not self.training:
            self.evaluated += 1
            if self.evaluated == 3:
                pathlib.Path('evaluates').touch()
            if pathlib.Path('slow').exists():
                time.sleep(0.02)
                with open('slow') as slow:
                    # Held by the test until it has asked.
                    self.evaluated >= 3 and fcntl.flock(slow, fcntl.LOCK_SH)
        return self.head(self.norm(images.flatten(1)))
"""


def test_an_evaluation_is_broken_off_and_done_by_the_next_attempt(tmp_path: Path) -> None:
    (tmp_path / "slow_net.py").write_text(SLOW_EVALUATION)
    arguments = [
        "data=digits", "model=resnet18", "model._target_=slow_net.Net", *DIGITS[1:], "epochs=2", "optim.lr=0.01",
        "evaluate.batch_size=1", f"run.dir={tmp_path}", "deterministic=true",
    ]  # fmt: skip
    run, whole = RunDir(tmp_path / "s"), RunDir(tmp_path / "whole")

    def start_both(name: str) -> "list[subprocess.Popen[str]]":
        port = free_port()
        return [
            start(*arguments, f"run.name={name}", rank=rank, world_size=2, port=port, cwd=tmp_path) for rank in (0, 1)
        ]

    def stop_while_evaluating(rank: int) -> None:
        with (tmp_path / "slow").open("w") as slow:
            fcntl.flock(slow, fcntl.LOCK_EX)
            workers = start_both("s")
            until((tmp_path / "evaluates").exists, "an evaluation has begun", *workers)
            workers[rank].send_signal(signal.SIGUSR1)
            until(lambda: not has(workers[rank], "ShdPnd", signal.SIGUSR1), "the signal has come", *workers)
        check_preempted(run, *workers)
        assert not any("val/loss" in row for row in read_json_lines(run.metrics))
        for name in ("evaluates", "slow"):
            (tmp_path / name).unlink()

    stop_while_evaluating(rank=1)
    stop_while_evaluating(rank=0)
    for name in ("s", "whole"):
        for worker in start_both(name):
            worker.communicate(timeout=120)
    rows = [
        [(row["step"], row["val/loss"]) for row in read_json_lines(there.metrics) if "val/loss" in row]
        for there in (run, whole)
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 2
    assert run.weights("last").read_bytes() == whole.weights("last").read_bytes()


def test_the_jobs_of_a_sweep_leave_neither_threads_nor_descriptors() -> None:
    listening = (
        "import os, threading\n"
        "from trainer.stop import StopRequest\n"
        "def held():\n"
        "    StopRequest().listen()\n"
        "    return threading.active_count(), len(os.listdir('/proc/self/fd'))\n"
        "print(held(), held(), sep='\\n')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", listening], cwd=ROOT, check=True, timeout=30, capture_output=True, text=True
    )
    after_one, after_two = done.stdout.splitlines()
    assert after_one == after_two
