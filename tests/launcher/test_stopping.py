"""`paceline stop --now`: for those who do not want to wait."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher import runs
from launcher.cli import main
from launcher.verbs import stop
from tests.launcher.conftest import ROOT, TELLS, Job
from trainer.rundir import RunDir, write_json

MakeJob = Callable[[str], Job]
DEAF = (
    TELLS
    + """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
tell("up")
while True:
    time.sleep(600)
"""
)


def test_now_kills_the_workers_of_all_nodes_although_they_were_asked_before(make_job: MakeJob) -> None:
    job = make_job(DEAF)
    process = job.start("cluster.nodes=2")
    job.hears("up", workers=4)
    command = [sys.executable, "-m", "launcher", "stop", "job"]
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT)}
    for option, told in (("", "its workers get SIGTERM"), ("--now", "its workers are killed")):
        words = [*command, option] if option else command
        done = subprocess.run(words, cwd=job.folder, env=surroundings, capture_output=True, text=True, check=True)
        assert done.stderr.startswith(f"asked run job to stop; {told}\n")
    code, _, err = job.finish(process)
    assert code == 128 + signal.SIGTERM
    assert "killed ranks 0, 1, 2, 3: told not to wait\n" in err
    assert "run job is stopped, after" in done.stderr
    assert runs.look(job.run).exit_code == code
    assert not job.run.stop_now.exists()
    job.check_gone(deadline_s=5)


def live_run(folder: Path, argv: list[str]) -> RunDir:
    run = RunDir(folder / "x")
    write_json(run.status, {"state": "running", "attempt": 0, "time": time.time()})
    write_json(run.job, {"argv": argv, "host": socket.gethostname(), "time": time.time() - 1})
    return run


def test_now_is_refused_where_there_is_no_launcher_to_hear_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = live_run(tmp_path, ["/somewhere/trainer/__main__.py", "recipe=digits"])
    with run.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["stop", str(run.path), "--now"]) == 2
    assert "was not begun by paceline run" in capsys.readouterr().err
    assert not run.stop_now.exists()


def test_a_launcher_that_does_not_answer_is_told_and_nothing_waits_for_the_next_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop, "_HEARD_S", 0.3)
    run = live_run(tmp_path, ["paceline", "run", "recipe=digits"])
    with run.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["stop", str(run.path), "--now"]) == 3
    assert "the launcher of run x does not answer\n  SIGKILL to its process" in capsys.readouterr().err
    assert not run.stop_now.exists()
