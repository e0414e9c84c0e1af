"""One job a run directory: on one host, between hosts, with locks and without; and a dead job holds nobody up.

Holders are processes of their own, without torch: they start in a tenth of a second. Other hosts
are told apart by name.
"""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.trainer_command import DIGITS, ROOT, environment
from trainer.run.lease import Lease, LeaseLost
from trainer.rundir import RELEASED, RunDir, read_json, write_json, write_json_once

PERIOD_S, SILENCE_S = 0.1, 0.6
NO_LOCKS = "import errno, fcntl\ndef flock(*_): raise OSError(errno.ENOLCK, 'no locks')\nfcntl.flock = flock\n"
LOCAL_LOCKS = "import fcntl\nfcntl.flock = lambda *_: None\n"

HOLDER = """
import sys, socket
import trainer.run.lease
from trainer.errors import InUseError
from trainer.run.lease import Lease, LeaseLost
from trainer.rundir import RunDir
def tell(text):
    sys.stdout.write(text + chr(10))
    sys.stdout.flush()
trainer.run.lease._PATIENCE_S = 0.4
run, host = RunDir(sys.argv[1]), sys.argv[2]
socket.gethostname = lambda: host
lease = Lease(run, say=lambda text: tell('says ' + text), on_loss=lambda text: tell('lost ' + text),
              period_s={period}, silence_s={silence})
try:
    lease.take()
except InUseError as error:
    tell('refused ' + error.problem)
    sys.exit(2)
tell('has it')
for line in sys.stdin:
    try:
        lease.check()
        tell('still has it')
    except LeaseLost as error:
        tell('fenced ' + error.strerror)
lease.release()
"""


class Holder:
    """A process that takes the lease of a run directory, as if on `host`."""

    def __init__(self, run: RunDir, host: str, faults: str = "") -> None:
        code = faults + textwrap.dedent(HOLDER).format(period=PERIOD_S, silence=SILENCE_S)
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(run.path), host],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def outcome(self) -> str:
        """What comes of taking the lease, after whatever is said about waiting."""
        said = self.says()
        while said.startswith("says"):
            assert "waiting for a sign of life" in said
            said = self.says()
        return said

    def ask(self) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.says()

    def ends(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(20)


Start = Callable[..., Holder]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    holders: list[Holder] = []

    def begin(host: str = "here", faults: str = "") -> Holder:
        holders.append(Holder(RunDir(tmp_path), host, faults))
        return holders[-1]

    yield begin
    for holder in holders:
        holder.process.kill()
        holder.process.wait()
        for stream in (holder.process.stdin, holder.process.stdout):
            assert stream is not None
            stream.close()


def test_a_second_job_on_the_host_is_refused_with_who_has_it(tmp_path: Path, start: Start) -> None:
    first = start()
    assert first.says() == "has it"
    second = start()
    said = second.says()
    assert said.startswith("refused run ")
    assert f"is being trained by another job: process {first.process.pid} on here, since 2" in said
    assert second.process.wait(20) == 2
    assert first.ask() == "still has it"
    assert first.ends() == 0
    assert RELEASED in read_json(RunDir(tmp_path).holder)
    assert start().says() == "has it"
    assert read_json(RunDir(tmp_path).holder)["fence"] == 2


@pytest.mark.parametrize("faults", ["", NO_LOCKS, LOCAL_LOCKS], ids=["locks", "no locks", "locks of one host only"])
def test_a_second_job_on_another_host_is_refused_while_the_first_gives_signs_of_life(start: Start, faults: str) -> None:
    first = start("here", faults)
    assert first.says() == "has it"
    said = start("there", faults).outcome()
    assert said.startswith("refused")
    assert "on here," in said
    assert first.ask() == "still has it"


@pytest.mark.parametrize("faults", ["", NO_LOCKS, LOCAL_LOCKS], ids=["locks", "no locks", "locks of one host only"])
@pytest.mark.parametrize("host", ["here", "there"])
def test_a_killed_holder_is_taken_over(start: Start, faults: str, host: str) -> None:
    first = start("here", faults)
    assert first.says() == "has it"
    first.process.kill()
    first.process.wait()
    started = time.monotonic()
    second = start(host, faults)
    assert second.outcome() == "has it"
    if host == "here" and not faults:
        assert time.monotonic() - started < SILENCE_S + 1


def test_data_loading_processes_of_a_killed_holder_do_not_keep_the_lock(tmp_path: Path, start: Start) -> None:
    forks = (
        "import os, threading, time\n"
        + "old = threading.Thread.start\n"
        + textwrap.dedent("""
        def start(self):
            old(self)
            if os.fork() == 0:
                time.sleep(10)
                os._exit(0)
        threading.Thread.start = start
    """)
    )
    first = start("here", forks)
    assert first.says() == "has it"
    first.process.kill()
    first.process.wait()
    assert start().says() == "has it"


def test_a_stopped_holder_that_wakes_up_after_it_was_taken_over_is_fenced(start: Start) -> None:
    first = start("here", NO_LOCKS)
    assert first.says() == "has it"
    first.process.send_signal(signal.SIGSTOP)
    second = start("there", NO_LOCKS)
    assert second.outcome() == "has it"
    first.process.send_signal(signal.SIGCONT)
    answers = {first.ask(), first.says()}
    named = f"process {second.process.pid} on there"
    assert {answer.split()[0] for answer in answers} == {"lost", "fenced"}
    assert all(named in answer for answer in answers)
    assert second.ask() == "still has it"


def test_a_stopped_holder_is_fenced_also_when_its_successor_has_come_and_gone(tmp_path: Path) -> None:
    run, lost = RunDir(tmp_path), threading.Event()
    first = Lease(run, say=print, on_loss=lambda by: lost.set(), period_s=0.2)
    first.take()
    # As it is when another host has taken over and ended while this one was stopped.
    write_json(run.holder, {"host": "there", "pid": 7, "since": 0.0, "token": "other", "fence": 2, RELEASED: 1.0})
    with pytest.raises(LeaseLost, match="process 7 on there"):
        first.check()
    assert lost.wait(10)
    run.holder.unlink()
    with pytest.raises(LeaseLost, match="is gone"):
        first.check()
    first.release()
    assert not run.holder.exists()


@pytest.mark.parametrize("left", [{}, {"host": "gone", "token": "old", RELEASED: 1.0}], ids=["new", "released"])
def test_of_two_that_begin_together_without_locks_one_gets_it(
    tmp_path: Path, start: Start, left: dict[str, Any]
) -> None:
    write_json(RunDir(tmp_path).holder, left)
    slow = NO_LOCKS + "import time, trainer.run.lease as lease\nnow = lease.write_json\n"
    slow += "lease.write_json = lambda *it: (time.sleep(0.1), now(*it))\n"
    several = [start(f"host-{number}", slow) for number in range(2)]
    with ThreadPoolExecutor() as pool:
        outcomes = list(pool.map(Holder.outcome, several))
    assert sorted(said.split()[0] for said in outcomes) == ["has", "refused"]


def test_of_several_that_find_a_dead_holder_one_gets_it(tmp_path: Path, start: Start) -> None:
    write_json(RunDir(tmp_path).holder, {"host": "gone", "pid": 1, "boot": "x", "since": 0.0, "token": "dead"})
    several = [start(f"host-{number}", NO_LOCKS) for number in range(4)]
    with ThreadPoolExecutor() as pool:
        outcomes = list(pool.map(Holder.outcome, several))
    assert sorted(said.split()[0] for said in outcomes) == ["has", "refused", "refused", "refused"]


def test_without_the_lease_no_status_is_published(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    lease = Lease(run, say=print, on_loss=print, period_s=60)
    lease.take()
    run.guard = lease.check
    run.update_status(state="running")
    write_json(run.holder, {"host": "there", "pid": 7, "boot": "x", "since": 0.0, "token": "other"})
    with pytest.raises(LeaseLost, match="process 7 on there"):
        run.update_status(state="failed")
    assert read_json(run.status)["state"] == "running"
    lease.release()
    assert read_json(run.holder)["token"] == "other"


def test_a_directory_that_cannot_be_written_is_an_oserror_of_taking(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Lease(RunDir(tmp_path / "missing"), say=print, on_loss=print).take()


def test_json_is_written_once_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*paths: object) -> None:
        raise PermissionError(1, "no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    path, barrier = tmp_path / "failure.json", threading.Barrier(8)

    def write(rank: int) -> bool:
        barrier.wait()
        return write_json_once(path, {"rank": rank})

    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(write, range(8)))
    assert written.count(True) == 1
    assert read_json(path)["rank"] == written.index(True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["failure.json"]


def test_a_training_that_loses_its_lease_stops_and_publishes_nothing_more(tmp_path: Path) -> None:
    driver = tmp_path / "driver.py"
    driver.write_text(
        "import runpy\n"
        "from trainer.run.lease import Lease\n"
        "Lease.__init__.__kwdefaults__['period_s'] = 0.2\n"
        "runpy.run_module('trainer', run_name='__main__')\n"
    )
    run = RunDir(tmp_path / "x")
    arguments = [*DIGITS, "epochs=4000", "checkpoint.every_steps=20", f"run.dir={tmp_path}", "run.name=x"]
    command = [sys.executable, str(driver), *arguments]
    with subprocess.Popen(command, env=environment(), cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while "latest" not in read_json(run.status):
            assert time.monotonic() < deadline
            assert process.poll() is None
        write_json(run.holder, {"host": "there", "pid": 7, "boot": "x", "since": 0.0, "token": "other"})
        before = {path.name for path in run.checkpoints.glob("step-*")}
        write_json(run.status, {"state": "running", "of": "the other job"})
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == 1, said
    assert "process 7 on there" in said
    assert "has taken this run over: stopping at one of the next steps" in said
    # One commit may have been past its last look at the lease.
    assert len({path.name for path in run.checkpoints.glob("step-*")} - before) <= 1
    assert read_json(run.status).get("of") == "the other job"
    assert not run.failure.exists()
    assert read_json(run.holder)["token"] == "other"


def test_a_damaged_record_is_told_by_the_thread_that_renews_it_and_holds_up_nobody(tmp_path: Path) -> None:
    run, lost = RunDir(tmp_path), threading.Event()
    lease = Lease(run, say=lambda text: None, on_loss=lambda text: lost.set(), period_s=0.02, silence_s=SILENCE_S)
    lease.take()
    run.holder.write_bytes(b'{"token": "\x93"}')
    assert lost.wait(10)
    with pytest.raises(LeaseLost, match="gone or damaged"):
        lease.check()
    lease.release()
    following = Lease(run, say=lambda text: None, on_loss=lambda text: None)
    following.take()
    following.release()
