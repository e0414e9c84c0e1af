"""`paceline submit` on a real Slurm: two nodes of two workers, preempted, cancelled, refused."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.slurm import requeue
from tests.slurm.conftest import ROOT, SLURM_CONF, Run
from tests.test_documents import commands
from tests.trainer_command import environment
from tests.waiting import until
from trainer.rundir import RunDir, read_json

SECRET = "a-planted-secret-4711"
PACELINE = [sys.executable, "-m", "launcher"]
TRAINING = ["recipe=digits", "device=cpu", "tracking=none", "checkpoint.every_steps=40", "epochs=40"]
Submit = Callable[..., "subprocess.CompletedProcess[str]"]

SCRIPT = """
import os, sys, torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
print(f"rank {dist.get_rank()} on {os.uname().nodename}: {total.item():g}", flush=True)
if "fails" in sys.argv and dist.get_rank() == 3:
    raise ValueError("on purpose")
dist.barrier()
"""


@pytest.fixture
def submit(slurm: Run, tmp_path: Path) -> Submit:
    def submit(*words: str, program: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
        behind = ["--", *program] if program else []
        variables = {**environment(), "SLURM_CONF": SLURM_CONF, "PYTHONPATH": str(ROOT), "MY_API_KEY": SECRET}
        return subprocess.run(
            [*PACELINE, "submit", "cluster=slurm_dev", f"run.dir={tmp_path}/runs", *words, *behind],
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return submit


def accounted(slurm: Run, job_id: str) -> str:
    return slurm("sacct", "-n", "-X", "-P", f"--jobs={job_id}", "--format=state,exitcode").stdout.strip()


def ends(slurm: Run, job_id: str, *, as_: str) -> None:
    until(lambda: accounted(slurm, job_id) == as_, f"job {job_id} ends as {as_}")


def rows(run: RunDir) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.steps.read_text().splitlines()]


def test_a_preempted_training_on_two_nodes_ends_as_one_machine_alone_would(
    slurm: Run, submit: Submit, tmp_path: Path
) -> None:
    here = [*PACELINE, "run", *TRAINING, f"run.dir={tmp_path}/runs", "cluster.gpus_per_node=4", "run.name=here"]
    submitted = submit(*TRAINING, "run.name=there")
    assert submitted.returncode == 0, submitted.stderr
    job_id, there = submitted.stdout.strip(), RunDir(tmp_path / "runs/there")
    assert read_json(there.job)["attempts"][-1]["job_id"] == job_id
    until(lambda: "latest" in there.read_status(), "the training has saved a checkpoint")
    other = slurm("sbatch", "--parsable", "-p", "high", "-N4", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")
    ends(slurm, other.stdout.strip(), as_="COMPLETED|0:0")
    assert there.read_status()["state"] == "preempted"
    subprocess.run(here, cwd=tmp_path, env={**environment(), "PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
    ends(slurm, job_id, as_="COMPLETED|0:0")
    assert there.read_status()["state"] == "finished"
    attempts = read_json(there.job)["attempts"]
    assert [(row["attempt"], row["job_id"]) for row in attempts] == [(0, job_id), (1, job_id)]
    alone = RunDir(tmp_path / "runs/here")
    assert rows(there) == rows(alone)
    assert there.weights("last").read_bytes() == alone.weights("last").read_bytes()


def test_a_script_runs_on_both_nodes_and_a_failure_is_named_and_accounted_for_as_one(
    slurm: Run, submit: Submit, tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    # What a user has lying about must not stand in for our packages.
    (tmp_path / "launcher").mkdir()
    well = submit("device=cpu", "run.name=well", program=("script.py",)).stdout.strip()
    fails = submit("device=cpu", "run.name=fails", program=("script.py", "fails")).stdout.strip()
    ends(slurm, well, as_="COMPLETED|0:0")
    ends(slurm, fails, as_="FAILED|1:0")
    logs = [(tmp_path / f"runs/well/logs/attempt-0/rank-{rank}.log").read_text() for rank in range(4)]
    assert [line.split(":")[-1].strip() for line in logs] == ["4"] * 4
    assert {line.split(":")[0].split()[-1] for line in logs if "rank" in line} == {"node1", "node2"}
    failure = read_json(tmp_path / "runs/fails/failure.json")
    assert (failure["rank"], failure["host"], failure["type"]) == (3, "node2", "ValueError")
    assert RunDir(tmp_path / "runs/fails").read_status()["state"] == "failed"


def test_one_that_is_cancelled_saves_and_is_not_queued_again(slurm: Run, submit: Submit, tmp_path: Path) -> None:
    job_id, run = submit(*TRAINING, "epochs=2000", "run.name=r").stdout.strip(), RunDir(tmp_path / "runs/r")
    until(lambda: "latest" in run.read_status(), "the training has saved a checkpoint")
    slurm("scancel", job_id)
    until(lambda: accounted(slurm, job_id).startswith(f"CANCELLED by {os.getuid()}|"), "the job is cancelled")
    until(lambda: not slurm("squeue", "-h").stdout, "nothing is queued")
    assert run.read_status()["state"] == "preempted"
    assert run.read_status()["exit_code"] == 75


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["cluster.nodes=9"], "error: Slurm refuses this job: Node count specification invalid"),
        (["cluster.partition=nosuch"], "error: Slurm refuses this job: invalid partition specified: nosuch"),
        (["optim.lrr=1"], "error: unknown key optim.lrr"),
        (["cluster=local"], "error: only a cluster with a scheduler can be submitted to"),
        (["cluster=slurm"], "error: cluster.gpus_per_node is not set"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_queued_or_written(
    submit: Submit, slurm: Run, tmp_path: Path, words: list[str], says: str
) -> None:
    done = submit(*TRAINING, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(says), done.stderr
    assert not (tmp_path / "runs").exists()
    assert slurm("squeue", "-h").stdout == ""


def test_a_job_that_slurm_does_not_take_is_told_and_is_no_attempt(
    slurm: Run, submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The controller goes away between the question and the submission."""
    real, shim = shutil.which("sbatch"), tmp_path / "bin" / "sbatch"
    shim.parent.mkdir()
    problem = "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)"
    shim.write_text(f'#!/bin/sh\n[ "$1" = --test-only ] && exec {real} "$@"\necho "{problem}" >&2\nexit 1\n')
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{shim.parent}:{os.environ['PATH']}")
    done = submit(*TRAINING, "run.name=r")
    assert (done.returncode, done.stdout) == (3, "")
    assert "error: Slurm did not take the job: Unable to contact slurm controller" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "runs/r/logs").iterdir())


def test_a_dry_run_shows_the_script_which_works_when_it_is_pasted_and_has_no_secret(
    slurm: Run, submit: Submit, tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    shown = submit("device=cpu", "run.name=x", "--dry-run", program=("script.py",)).stdout
    assert "#SBATCH --nodes=2\n" in shown
    assert SECRET not in shown
    assert not (tmp_path / "runs").exists()
    job_id = submit("device=cpu", "run.name=x", program=("script.py",)).stdout.strip()
    ends(slurm, job_id, as_="COMPLETED|0:0")
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    script = next((tmp_path / "runs/x").rglob("*_submission.sh"))
    assert script.read_text() == shown.partition("\nworkers ")[0]
    pasted = slurm("sbatch", "--parsable", "--wait", str(script)).stdout.strip()
    ends(slurm, pasted, as_="COMPLETED|0:0")
    rows = read_json(tmp_path / "runs/x/job.json")["attempts"]
    assert [(row["attempt"], row["job_id"]) for row in rows] == [(0, job_id), (1, pasted)]


def test_the_guides_commands_work(submit: Submit, slurm: Run, tmp_path: Path) -> None:
    for words in map(shlex.split, commands(ROOT / "docs" / "slurm.md")):
        if words[1] == "submit":
            done = submit("tracking=none", "epochs=2", *words[2:])
        else:
            done = slurm(*PACELINE, *words[1:], f"--dir={tmp_path}/runs")
        assert done.returncode == 0, done.stderr
    run = RunDir(tmp_path / "runs/queued")
    until(lambda: run.read_status()["state"] == "finished", "the guide's training is finished")


def test_without_a_time_the_partitions_limit_counts_and_a_cluster_that_is_not_there_is_no_mistake(
    submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "#SBATCH --time=10\n" in submit(*TRAINING, "--dry-run").stdout
    assert "--time" not in submit(*TRAINING, "cluster.time=null", "--dry-run").stdout
    monkeypatch.setattr("tests.slurm.test_submit.SLURM_CONF", str(tmp_path / "none"))
    done = submit(*TRAINING)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("error: Slurm cannot be reached from here: ")


def test_run_says_that_a_queue_is_submitted_to(tmp_path: Path) -> None:
    command = [*PACELINE, "run", "cluster=slurm", "recipe=digits"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "paceline submit cluster=slurm recipe=digits" in done.stderr


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, True),
        ({"code": 1}, False),
        ({"code": 0}, False),
        ({"asked": None}, False),
        ({"asked": 2}, False),
        ({"state": "COMPLETING"}, False),
        ({"state": ""}, False),
        ({"restarts": requeue.MOST_REQUEUES}, False),
        ({"has_progress": False}, False),
    ],
)
def test_a_job_is_queued_again_when_slurm_stopped_it_and_it_got_on(changed: dict[str, Any], expected: bool) -> None:
    values: dict[str, Any] = {"code": 75, "asked": 15, "state": "RUNNING", "restarts": 3, "has_progress": True}
    assert requeue.is_worth(**{**values, **changed}) is expected
