"""`paceline run --detach`: checked in the foreground, and then nobody's terminal matters."""

import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from launcher import runs
from launcher.cli import main
from tests.launcher.conftest import ROOT, TELLS, Job, parent_of
from tests.waiting import until
from trainer.rundir import RunDir

MakeJob = Callable[[str], Job]
DETACHED = ["run", "--detach", "run.name=job", "cluster.gpus_per_node=2", "device=cpu"]
WAITS = (
    TELLS
    + """
def end(*_):
    print("saved", rank, flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, end)
print("up", rank, sys.stdout.isatty(), sys.stdin.read(), flush=True)
tell("up")
time.sleep(600)
"""
)
FAILS = """
import os
if os.environ["RANK"] == "1":
    raise ValueError("no such luck")
import time
time.sleep(600)
"""


@pytest.fixture
def make_detached(make_job: MakeJob) -> Iterator[MakeJob]:
    """Jobs of which nothing stays behind, however a test ends."""
    jobs: list[Job] = []

    def make(script: str) -> Job:
        jobs.append(make_job(script))
        return jobs[-1]

    yield make
    for job in jobs:
        for pid in job.alive():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def paceline(job: Job, *words: str, hands_down: tuple[int, ...] = ()) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "launcher", *words],
        cwd=job.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        pass_fds=hands_down,
    )


def command_of(job: Job) -> int:
    """The pid of the `paceline` command that conducts a job."""
    pids = job.alive()
    (pid,) = {parent_of(pid) for pid in pids} - set(pids)
    return pid


def test_a_detached_job_outlives_its_terminal_and_a_hangup_and_is_stopped_from_another_one(
    make_detached: MakeJob,
) -> None:
    job = make_detached(WAITS)
    shell, terminal = pty.fork()
    if shell == 0:
        os.chdir(job.folder)
        os.environ["PYTHONPATH"] = str(ROOT)
        words = [sys.executable, "-m", "launcher", *DETACHED, "--", job.script.name]
        os.execvp("bash", ["bash", "-c", '"$@"; echo "returned $?"; read -r line', "bash", *words])
    seen = ""
    while "returned" not in seen:
        seen += os.read(terminal, 1 << 16).decode()
    assert "returned 0" in seen
    assert "2 workers, run directory runs/job\r\n" in seen
    assert f"\n{job.run.path}\r\n" in seen
    for verb in ("status job", "logs job -f", "stop job"):
        assert re.search(rf"paceline {verb}\r\n", seen)
    # The shell, the leader of that session, gets SIGHUP from the kernel, and dies of it.
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(shell, 0)[1]) == -signal.SIGHUP
    job.hears("up")
    command = command_of(job)
    assert os.getsid(command) == command
    os.kill(command, signal.SIGHUP)
    assert runs.look(job.run).state == "running"
    assert paceline(job, "logs", "job").stdout == "up 0 False \n"
    stopped = paceline(job, "stop", "job", "--wait")
    assert stopped.returncode == 0, stopped.stderr
    job.check_gone(deadline_s=10)
    until(lambda: runs.look(job.run).state == "stopped", "the state of its end")
    shown = paceline(job, "status", "job").stdout
    assert ", exit code 75\n" in shown
    assert "said       runs/job/logs/attempt-0/terminal.log\n" in shown
    said = job.run.terminal_log(0).read_text()
    assert said.startswith(
        "2 workers, run directory runs/job\nup 0 False \nsaved 0\nasked to stop (stop in the run directory)"
    )
    assert "\x1b" not in said


def test_a_detached_job_lets_go_of_what_its_caller_waits_for_and_is_lost_when_it_was_killed(
    make_detached: MakeJob,
) -> None:
    job = make_detached(WAITS)
    lock, held = os.pipe()
    # As over ssh: somebody waits for the end of every stream.
    done = paceline(job, *DETACHED, "--", job.script.name, hands_down=(held,))
    os.close(held)
    assert (done.returncode, done.stdout) == (0, f"{job.run.path}\n")
    job.hears("up")
    assert select.select([lock], [], [], 0)[0]
    assert os.read(lock, 1) == b""
    os.close(lock)
    os.kill(command_of(job), signal.SIGKILL)
    job.check_gone(deadline_s=10)
    assert runs.look(job.run).state == "lost"


def test_a_second_launch_before_the_first_one_has_workers_is_refused_where_it_was_typed(
    make_detached: MakeJob,
) -> None:
    job = make_detached(WAITS)
    words = (*DETACHED, "--", job.script.name)
    first = paceline(job, *words)
    second = paceline(job, *words)
    assert (first.returncode, second.returncode) == (0, 2), (first.stderr, second.stderr)
    assert "run job is being trained by another job" in second.stderr
    assert not job.run.log(1, 0).parent.exists()
    assert len(job.run.launches()) == 1
    job.hears("up")
    assert job.run.read_status()["state"] == "running"


def test_a_detached_job_leaves_its_verdict_and_its_exit_code(make_detached: MakeJob) -> None:
    job = make_detached(FAILS)
    words = [
        "nohup",
        "setsid",
        "sh",
        "-c",
        '"$@" <&- >&- 2>&-',
        "sh",
        *job.command,
        *DETACHED,
        "cluster.nodes=2",
        "cluster.max_restarts=1",
    ]
    surroundings = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    subprocess.run([*words, "--", job.script.name], cwd=job.folder, env=surroundings, check=True, capture_output=True)
    until(lambda: not runs.look(job.run).is_live, "its end")
    view = runs.look(job.run)
    assert (view.state, view.attempt, view.exit_code) == ("failed", 1, 1)
    assert (job.failure["type"], job.failure["exit_code"]) == ("ValueError", 1)
    said = job.run.terminal_log(0).read_text()
    assert "✗ attempt 0 failed: ValueError on rank 1: no such luck\n" in said
    assert "✗ failed: ValueError on rank 1, " in said
    shown = paceline(job, "status", "job").stdout
    assert re.search(r"failed .* ago, exit code 1\n", shown)
    assert "why        ValueError on rank 1: no such luck\n" in shown
    assert "--detach" not in shown
    job.check_gone(deadline_s=10)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--", "absent.py"], 2, "no such script: absent.py"),
        (["epochs=abc"], 2, "epochs"),
        (["device=cuda", "--", "mine.py"], 3, "device=cuda, but no GPU is visible"),
        (["run.name=taken", "--", "mine.py"], 2, "run taken is being trained by another job"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_detached(
    words: list[str],
    code: int,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    Path("mine.py").touch()
    taken = RunDir(tmp_path / "runs" / "taken")
    taken.path.mkdir(parents=True)
    with taken.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["run", "--detach", *words]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert told in err
    assert err.endswith("nothing was started\n")
    assert not list(tmp_path.glob("runs/*/logs"))
