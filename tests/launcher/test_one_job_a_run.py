"""A run belongs to one job at a time, and a restarted job goes on in the run that it had begun."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from pathlib import Path

from launcher import local
from launcher.plan import Program, plan_job
from tests.trainer_command import DIGITS, ROOT, environment
from tests.waiting import until
from trainer.config import Config, DataConfig, RunConfig
from trainer.errors import InUseError
from trainer.rundir import RunDir, read_json

PACELINE = [sys.executable, "-m", "launcher", "run"]


def start(*arguments: str) -> "subprocess.Popen[str]":
    command = [*PACELINE, *DIGITS, *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)


def test_a_second_job_is_refused_and_the_first_ones_directory_stays_as_it_is(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "x")
    arguments = ["epochs=4000", "evaluate.every=end", f"run.dir={tmp_path}", "run.name=x", "cluster.gpus_per_node=1"]
    first = start(*arguments)
    until(run.metrics.exists, "the first job trains", first)
    second = start(*arguments)
    _, said = second.communicate(timeout=60)
    assert second.returncode == 2
    assert "run x is being trained by another job" in said
    assert "nothing was started" in said
    assert run.next_attempt() == 1
    assert len(read_json(run.job)["attempts"]) == 1
    assert run.read_status()["state"] == "running"
    first.send_signal(signal.SIGUSR2)
    assert first.wait(60) == 75
    assert run.read_status()["state"] == "preempted"


def test_a_job_that_loses_the_race_for_a_run_leaves_it_alone(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "x")
    late = start("max_steps=2", f"run.dir={tmp_path}", "run.name=x", "cluster.gpus_per_node=1")
    until(run.job.exists, "the run directory is there, but the worker is not", late)
    with run.lock.open("w") as ours:
        fcntl.flock(ours, fcntl.LOCK_EX)
        run.update_status(state="running", attempt=0)
        _, said = late.communicate(timeout=60)
        assert late.returncode == 2, said
        assert said.count("run x is being trained by another job") == 1
        assert run.read_status()["state"] == "running"
        assert not run.failure.exists()


def take_number(folder: Path, restarts: int, ready: str) -> None:
    """Takes a number as a launcher does, at the moment that the others do, and lives on until it is killed."""
    (folder / f"{ready}-here").touch()
    until((folder / "go").exists, "all are here")
    taken = local.take_attempt(RunDir(folder / "x"), restarts)
    (folder / f"{ready}-taken.part").write_text(str(taken))
    (folder / f"{ready}-taken.part").rename(folder / f"{ready}-taken")
    time.sleep(600)


def prepare_and_stay(folder: Path, number: int) -> None:
    config = Config(run=RunConfig(name="x", dir=str(folder)), data=DataConfig(name="digits"))
    plan = plan_job(config, program=Program("trainer", "trainer"), overrides=[], gpus=0, cpus=1, environment={})
    (folder / f"{number}-here").touch()
    until((folder / "go").exists, "all are here")
    try:
        local.prepare(plan, config, recipe="r", argv=["paceline", "run"])
    except InUseError:
        (folder / f"{number}-refused").touch()
    else:
        (folder / f"{number}-has").touch()
        until((folder / "leave").exists, "it leaves")


def launch(folder: Path, numbers: range) -> list[ForkProcess]:
    launchers = [
        get_context("fork").Process(target=prepare_and_stay, args=(folder, one), daemon=True) for one in numbers
    ]
    for launcher in launchers:
        launcher.start()
    return launchers


def test_of_launchers_at_the_same_moment_one_has_the_run_and_the_next_waits_for_it_to_leave(tmp_path: Path) -> None:
    run, count = RunDir(tmp_path / "x"), 4
    launch(tmp_path, range(count))
    until(lambda: len([*tmp_path.glob("*-here")]) == count, "all are here")
    (tmp_path / "go").touch()
    until(lambda: len([*tmp_path.glob("*-refused")]) == count - 1, "all but one are refused", deadline_s=20)
    until(lambda: [*tmp_path.glob("*-has")], "one has the run", deadline_s=20)
    assert [row["attempt"] for row in run.launches()] == run.launched()
    assert len([*(run.path / "logs").iterdir()]) == 1
    [late] = launch(tmp_path, range(count, count + 1))
    until((tmp_path / f"{count}-here").exists, "the next one is here")
    (tmp_path / "leave").touch()
    late.join(10)
    assert (tmp_path / f"{count}-has").exists()


def test_launchers_at_the_same_moment_take_no_number_that_another_may_need_for_restarts(tmp_path: Path) -> None:
    count, restarts = 6, 3
    launchers = [
        get_context("fork").Process(target=take_number, args=(tmp_path, restarts, str(number)), daemon=True)
        for number in range(count)
    ]
    for launcher in launchers:
        launcher.start()
    until(lambda: len([*tmp_path.glob("*-here")]) == count, "all are here")
    (tmp_path / "go").touch()
    until(lambda: len([*tmp_path.glob("*-taken")]) == count, "all have a number")
    taken = sorted(int(path.read_text()) for path in tmp_path.glob("*-taken"))
    run = RunDir(tmp_path / "x")
    assert taken == [number * (restarts + 1) for number in range(count)]
    assert run.next_attempt() == count * (restarts + 1)
    for launcher in launchers:
        launcher.kill()
        launcher.join()
    assert run.next_attempt() == taken[-1] + 1


def test_an_unnamed_run_under_torchrun_goes_on_after_a_restart_in_the_same_directory(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import os, signal, torch\n"
        "class Net(torch.nn.Linear):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__(64, num_classes)\n"
        "        self.calls = 0\n"
        "    def forward(self, images):\n"
        "        self.calls += self.training\n"
        "        if self.calls == 4 and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().forward(images.flatten(1))\n"
    )
    torchrun = ["-m", "torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--max-restarts=1"]
    arguments = ["data=digits", "model._target_=mine.Net", *DIGITS[1:], "max_steps=6", "checkpoint.every_steps=2"]
    done = subprocess.run(
        [sys.executable, *torchrun, "--nproc-per-node=1", "-m", "trainer", *arguments, f"run.dir={tmp_path / 'runs'}"],
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "runs").iterdir()
    run = RunDir(path)
    assert run.read_status()["state"] == "finished"
    assert [row["attempt"] for row in read_json(run.job)["attempts"]] == [0, 1]


def test_a_trainer_started_by_hand_inside_a_job_does_not_take_that_jobs_directory_for_its_own(tmp_path: Path) -> None:
    outer = {"PACELINE_RUN_DIR": str(tmp_path / "outer"), "PACELINE_ATTEMPT": "7", "PACELINE_DEVICE": "cuda"}
    done = subprocess.run(
        [sys.executable, "-m", "trainer", *DIGITS, "max_steps=1", f"run.dir={tmp_path}", "run.name=inner"],
        cwd=ROOT,
        env=environment() | outer,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert RunDir(tmp_path / "inner").read_status()["attempt"] == 0
    assert not (tmp_path / "outer").exists()
