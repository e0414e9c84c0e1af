"""Jobs of real workers that hang in every way, and such that only seem to."""

import os
import select
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.hang.sighting import Findings
from launcher.hang.watch import HangWatch, Watched
from launcher.plan import JobPlan, Program
from launcher.verdict import Exit
from tests.launcher.conftest import DEADLINE_S, TELLS, Job
from tests.trainer_command import DIGITS, PACELINE, ROOT, environment
from tests.waiting import until
from trainer.errors import STOPPED
from trainer.run.rows import read_json_lines
from trainer.rundir import RunDir, read_json

MakeJob = Callable[[str], Job]
TIMEOUT_S = 4

HANGS = (
    TELLS
    + """
import ctypes
import torch, torch.distributed as dist
# A monitor beside it, as many programs have one: no sign of life.
worker = os.getpid()
if not os.fork():
    while os.getppid() == worker:
        time.sleep(0.2)
        begin = time.thread_time()
        while time.thread_time() < begin + 0.0125: pass
    os._exit(0)
attempt = os.environ["PACELINE_ATTEMPT"]
dist.init_process_group("gloo")
def load(step):
    if (attempt, rank, step) == ("0", 1, 2):
        # Holds Python's lock meanwhile.
        ctypes.PyDLL(None).sleep(600)
    return torch.ones(2)
def exchange(step):
    if (attempt, rank, step) == ("1", 1, 2):
        skipped()
    else:
        dist.all_reduce(load(step))
def skipped():
    dist.monitored_barrier()
for step in range(4):
    exchange(step)
tell("up")
# The last attempt: silent work in one place, longer than what is granted to idleness.
begin = time.thread_time()
if rank == 1:
    while time.thread_time() < begin + 5.5: pass
dist.all_reduce(load(0))
"""
)


def test_a_script_that_hangs_is_ended_and_named_and_one_that_works_in_silence_or_is_paused_is_not(
    make_job: MakeJob,
) -> None:
    job = make_job(HANGS)
    process = job.start(f"cluster.hang_timeout={TIMEOUT_S}", "cluster.max_restarts=2")
    workers = job.hears("up")
    # All of them: nobody hangs.
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    ends = os.pidfd_open(process.pid)
    assert not select.select([ends], [], [], TIMEOUT_S + 1.5)[0], process.communicate()
    os.close(ends)
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    code, _, err = job.finish(process)
    assert code == 0, err
    first, second = [row for row in read_json_lines(job.run.events) if row["event"] == "attempt_failed"]
    assert [first["type"], first["rank"], second["type"]] == ["Hang", 1, "Hang"]
    assert first["message"].splitlines()[0].startswith("rank 1 hangs: no output and no work for ")
    assert "rank 1: is in load (script.py:24)" in first["message"]
    assert "rank 0: waits in all_reduce (" in first["message"]
    assert "monitored_barrier" in second["message"]
    assert "all_reduce" in second["message"]
    for attempt in (0, 1):
        text = job.run.log(attempt, 0).with_name("stacks.txt").read_text()
        assert "exchange (script.py:" in text
    assert job.alive() == []


def test_a_rank_that_gave_up_waiting_is_not_the_cause_the_one_is_whose_loading_process_does_not_come_back(
    make_job: MakeJob,
) -> None:
    job = make_job(
        TELLS
        + """
import datetime
import torch, torch.distributed as dist
class Data:
    def __len__(self): return 9
    def __getitem__(self, index):
        return torch.ones(1) if rank == 0 else never()
def never():
    time.sleep(600)
batches = iter(torch.utils.data.DataLoader(Data(), num_workers=1))
dist.init_process_group("gloo")
# Nobody gives up before all have met.
group = dist.new_group(timeout=datetime.timedelta(seconds=2))
dist.all_reduce(next(batches), group=group)
"""
    )
    code, _, err = job.go()
    assert code == 124, err
    failure = job.failure
    assert (failure["type"], failure["rank"], failure["exit_code"]) == ("Hang", 1, 124)
    assert failure["host"]
    headline, culprit, process, other = failure["message"].splitlines()
    assert headline == "rank 1 has not answered in time"
    assert "__next__ (data/dataloader.py:" in culprit
    assert culprit.endswith("from <module> (script.py:21)")
    assert process.startswith("    its process ")
    assert process.endswith(" is in never (script.py:16)")
    assert other.startswith("rank 0: gave up waiting: Timed out waiting 2000ms")
    assert failure["place"] == "script.py:16 in never"
    assert failure["meaning"] == "rank 0 waits for it"
    assert "started by rank 1, is in never (script.py:16)" in Path(failure["stacks"]).read_text()
    assert "✗ failed: Hang on rank 1" in err
    assert failure["stacks"] in err
    status = job.run.read_status()
    assert (status["state"], status["exit_code"], status["reason"]) == (
        "failed",
        124,
        "rank 1 has not answered in time",
    )
    assert job.alive() == []


def test_the_watch_goes_on_over_the_others_when_one_has_ended_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = Program("script", "script.py")
    watch = HangWatch(JobPlan(nodes=1, workers_per_node=3, program=program, run_dir=str(tmp_path)), 0)
    found = Findings((), 31.0)
    monkeypatch.setattr(HangWatch, "_look", lambda *_: found)
    left = [Watched(1, 1, os.getpid())]
    assert watch.find(left, [Exit(0, 0), Exit(2, STOPPED)], bool) is found
    assert watch.find(left, [Exit(0, 0), Exit(2, 1, type="ValueError", message="no")], bool) is None
    watch.close()


def test_on_two_nodes_one_that_works_speaks_for_all_and_all_ranks_are_in_one_verdict(make_job: MakeJob) -> None:
    job = make_job(
        TELLS
        + """
import datetime
import torch, torch.distributed as dist
attempt = int(os.environ["PACELINE_ATTEMPT"])
dist.init_process_group("gloo")
group = dist.new_group(timeout=datetime.timedelta(seconds=(60, 2)[attempt]))
def asleep():
    time.sleep(600)
if rank == 2 and attempt == 0:
    while time.process_time() < 5.5: pass
if rank == 2:
    asleep()
dist.all_reduce(torch.ones(1), group=group)
"""
    )
    process = job.start(f"cluster.hang_timeout={TIMEOUT_S}", "cluster.nodes=2", "cluster.max_restarts=1")
    code, _, err = job.finish(process)
    assert code == 124, err
    (event,) = [row for row in read_json_lines(job.run.events) if row["event"] == "attempt_failed"]
    assert (event["type"], event["rank"]) == ("Hang", 2)
    headline, culprit, others = event["message"].splitlines()
    assert "rank 2 hangs: no output and no work for" in headline
    assert "rank 2: is in asleep (script.py:15)" in culprit
    # The other node's, and the one beside it.
    assert others.startswith("ranks 0-1, 3: wait in all_reduce (")
    # In the second attempt ranks of both nodes give up waiting, whichever comes first.
    failure = job.failure
    assert (failure["type"], failure["rank"], failure["attempt"]) == ("Hang", 2, 1)
    assert failure["message"].startswith("rank 2 has not answered in time\nrank 2: is in asleep (script.py:15)")
    for attempt in (0, 1):
        text = job.run.log(attempt, 0).with_name("stacks.txt").read_text()
        assert text.count("asleep (") > 1
        assert "all_reduce" in text or "gave up waiting" in text
    assert failure["stacks"] == str(job.run.log(1, 0).with_name("stacks.txt"))
    assert job.alive() == []


OWN_DATA = """
import dataclasses, os, threading, time
from trainer.config import DataConfig
from trainer.data import datasets

class Slow:
    def __init__(self, split): self.split = split
    def __len__(self): return 36
    def __getitem__(self, index):
        time.sleep(0.3)
        return self.split[index]

class Locks:
    def __init__(self, split): self.split, self.taken = split, 0
    def __len__(self): return len(self.split)
    def __getitem__(self, index):
        self.taken += 1
        if (os.environ["PACELINE_ATTEMPT"], os.environ["RANK"]) == ("0", "1") and self.taken > 400:
            self.deadlock()
        return self.split[index]
    def deadlock(self):
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()

def data():
    splits = datasets.load(DataConfig(name="digits"))
    return dataclasses.replace(splits, train=Locks(splits.train), val=Slow(splits.val))
"""


def test_a_training_that_hangs_goes_on_from_its_checkpoint_and_ends_with_124_when_that_does_not_help(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine.py").write_text(OWN_DATA)
    run = RunDir(tmp_path / "runs" / "x")
    limits = [f"cluster.hang_timeout={TIMEOUT_S}", "cluster.max_restarts=1"]
    # Two batches a second of an evaluation that takes longer in all than what is granted.
    evaluation = ["evaluate.every=8", "evaluate.batch_size=2", "checkpoint.every=evaluation"]
    process = subprocess.Popen(
        [*PACELINE, *DIGITS, "run.name=x", "data._target_=mine.data", *limits, *evaluation],
        cwd=tmp_path,
        env={**environment(), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )

    def has_gone_on() -> bool:
        return len(starts(run)) == 2 and any(row["step"] > 8 for row in read_json_lines(run.metrics))

    until(has_gone_on, "the second attempt trains", process, deadline_s=DEADLINE_S)
    os.kill(workers_of(process.pid)[1], signal.SIGSTOP)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 124, err
    (event,) = [row for row in read_json_lines(run.events) if row["event"] == "attempt_failed"]
    assert (event["type"], event["rank"]) == ("Hang", 1)
    assert event["message"].startswith("rank 1 hangs: no step after step 1")
    assert "deadlock (" in event["message"].splitlines()[1]
    assert starts(run) == [0, 8]
    failure = read_json(run.failure)
    assert (failure["type"], failure["rank"], failure["exit_code"], failure["attempt"]) == ("Hang", 1, 124, 1)
    assert "rank 1: is stopped (SIGSTOP) in" in failure["message"]
    assert "rank 0 waits for it" in failure["meaning"]
    assert "another worker ended" not in err
    assert run.read_status()["state"] == "failed"
    assert Path(failure["stacks"]).exists()


def starts(run: RunDir) -> list[int]:
    """The steps at which attempts began."""
    return [row["step"] for row in read_json_lines(run.events) if row["event"] == "start"]


def workers_of(command: int) -> list[int]:
    """The pids of a job's workers by rank: forks of the agent, which looks like them."""
    (agent,) = children(command)
    return [pid for pid in sorted(children(agent)) if cmdline(pid) == cmdline(agent)]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cmdline(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()
