"""What is written of a job's end, and that none of it lands in a run that another job has taken meanwhile."""

import fcntl
import io
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.ending.conclusion import Account
from launcher.ending.outcome import Outcome
from launcher.plan import JobPlan, Program
from launcher.stop import Stop
from launcher.verdict import Exit
from tests.waiting import until
from trainer.errors import InUseError, UnfitError
from trainer.run.rows import read_json_lines
from trainer.rundir import RunDir, error_beside, read_json, write_json

ATTEMPT = 3


def fail(account: Account) -> int:
    return account.conclude(Outcome(ATTEMPT + 1, exits=(Exit(0, 1, type="ValueError", message="no"),)), Stop(1.0))


def stop_early(account: Account) -> int:
    stop = Stop(1.0)
    stop.ask("asked to stop (by hand)")
    return account.conclude_early(stop)


def refuse(account: Account) -> int:
    return account.conclude_refused(UnfitError("the port is taken", "another one"))


def kill(account: Account) -> int:
    return account.conclude_killed(9, "")


ENDS = pytest.mark.parametrize(
    ("end", "code", "state"),
    [(fail, 1, "failed"), (stop_early, 75, "stopped"), (refuse, 3, "failed"), (kill, 137, "failed")],
)


def begun(folder: Path, before: str = "running") -> tuple[RunDir, Account]:
    run = RunDir(folder / "x")
    run.path.mkdir()
    run.update_status(state=before, attempt=2)
    program = Program("trainer", "trainer")
    plan = JobPlan(nodes=1, workers_per_node=1, program=program, run_dir=str(run.path), attempt=ATTEMPT, max_restarts=1)
    return run, Account(plan)


@ENDS
@pytest.mark.parametrize("before", ["running", "preempted"])
def test_the_end_of_a_job_that_has_the_run_is_written_also_when_it_never_came_to_train(
    tmp_path: Path, end: Callable[[Account], int], code: int, state: str, before: str
) -> None:
    run, account = begun(tmp_path, before)
    assert end(account) == code
    assert (run.read_status()["state"], run.read_status()["attempt"]) == (state, ATTEMPT)
    told = read_json(run.failure)
    assert told.get("exit_code") == (None if end is stop_early else code)
    assert not told or {"rank", "host", "type", "message", "traceback", "meaning", "advice"} <= told.keys()
    run.update_status(state="running", attempt=ATTEMPT)
    end(account)
    assert run.read_status()["state"] == state
    run.update_status(state="preempted", attempt=ATTEMPT)
    end(account)
    assert run.read_status()["state"] == "preempted"


@ENDS
@pytest.mark.parametrize("others", ["taken", "running", "finished", "failed"])
def test_the_end_of_a_job_that_was_overtaken_leaves_the_other_ones_run_alone(
    tmp_path: Path, end: Callable[[Account], int], code: int, state: str, others: str
) -> None:
    run, account = begun(tmp_path)
    if others != "taken":
        run.update_status(state=others, attempt=2 if others == "finished" else ATTEMPT + 2)
    if others == "failed":
        write_json(run.failure, {"attempt": ATTEMPT + 2})
    before = run.status.read_bytes(), read_json(run.failure)
    with run.lock.open("w") as lock:
        if others in ("taken", "running"):
            fcntl.flock(lock, fcntl.LOCK_EX)
        account.begin()
        account.tell_restart(Outcome(ATTEMPT, exits=(Exit(0, 1, type="ValueError", message="no"),)))
        assert end(account) == code
    assert not run.events.exists()
    assert (run.status.read_bytes(), read_json(run.failure)) == before


class Stopped(io.StringIO):
    """A terminal after Ctrl-S, until `goes_on` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = threading.Event()

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.goes_on.wait(10)
        return super().write(text)


@ENDS
def test_a_terminal_that_takes_nothing_holds_up_neither_a_restart_nor_the_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: Callable[[Account], int], code: int, state: str
) -> None:
    run, account = begun(tmp_path)
    terminal = Stopped()
    monkeypatch.setattr(sys, "stderr", terminal)
    account.tell_restart(Outcome(ATTEMPT + 1, exits=(Exit(0, 1, type="ValueError", message="no"),)))
    assert not terminal.getvalue(), "the restart has waited for the terminal"
    assert [row["event"] for row in read_json_lines(run.events)] == ["attempt_failed"]
    codes: list[int] = []
    ending = threading.Thread(target=lambda: codes.append(end(account)), daemon=True)
    ending.start()
    until(lambda: run.read_status()["state"] == state, "the end is written", deadline_s=5)
    until(lambda: run.failure.exists() == (end is not stop_early), "the failure is, too", deadline_s=10)
    assert ending.is_alive()
    terminal.goes_on.set()
    ending.join()
    assert codes == [code]
    until(lambda: "the workers are started again" in terminal.getvalue(), "all is said", deadline_s=10)


@pytest.mark.parametrize(
    ("message", "is_told"), [("no", False), ("[pair.cc:547] Connection closed by peer [10.0.0.2]:4", True)]
)
def test_rank_zeros_own_error_stands_above_already_and_what_it_heard_of_others_is_told_here(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], message: str, is_told: bool
) -> None:
    run, account = begun(tmp_path)
    write_json(error_beside(run.log(ATTEMPT, 0)), {"type": "RuntimeError"})
    exit = Exit(0, 1, "node-0", time=1.0, type="RuntimeError", message=message)
    assert account.conclude(Outcome(ATTEMPT, exits=(exit,)), Stop(1.0)) == 1
    assert ("✗ failed: RuntimeError on rank 0, node-0" in capfd.readouterr().err) is is_told


def test_who_looks_whether_a_run_is_held_keeps_nobody_from_taking_it(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "x")
    run.path.mkdir()
    plan = JobPlan(nodes=1, workers_per_node=1, program=Program("script", "x.py"), run_dir=str(run.path))
    with run.lock.open("w") as look:
        fcntl.flock(look, fcntl.LOCK_SH)
        threading.Timer(0.1, fcntl.flock, (look, fcntl.LOCK_UN)).start()
        Account(plan).begin()
    assert run.is_held()
    with pytest.raises(InUseError):
        Account(plan).begin()
