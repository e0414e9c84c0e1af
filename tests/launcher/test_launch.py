"""Jobs of two real workers, started by the command and ended in every way."""

import os
import signal
import socket
from collections.abc import Callable

import pytest

from launcher import runs
from tests.launcher.conftest import ENDS_BY_FORCE, TELLS, Job, parent_of
from tests.waiting import until
from trainer.run.rows import read_json_lines
from trainer.rundir import read_json, write_json

MakeJob = Callable[[str], Job]


def test_a_script_runs_unchanged_on_all_workers_and_leaves_a_complete_run_directory(
    make_job: MakeJob,
) -> None:
    job = make_job(
        """
import atexit, os, sys
import torch, torch.distributed as dist
import trainer
atexit.register(lambda: print("atexit of", os.environ["RANK"]))
dist.init_process_group("gloo")
total = torch.tensor([float(dist.get_rank() + 1)])
dist.all_reduce(total)
print("sum", total.item(), trainer.WHOSE, sys.argv, __name__, os.environ["OMP_NUM_THREADS"],
      len(os.environ["MY_API_KEY"]), os.environ["PACELINE_ATTEMPT"], flush=True)
if dist.get_rank() == 1:
    os._exit(0)
dist.destroy_process_group()
"""
    )
    (job.folder / "trainer.py").write_text("WHOSE = 'mine'\n")
    secret = "s3cret-value-of-mine"
    arguments = ("--lr", secret, "token=spelled-out-secret")
    code, out, err = job.go(arguments=arguments, MY_API_KEY=secret, OMP_NUM_THREADS="3")
    assert code == 0, err
    line = f"sum 3.0 mine {['script.py', *arguments]} __main__ 3 {len(secret)} 0\n"
    assert out == f"{line}atexit of 0\n"
    assert job.run.log(0, 1).read_text() == line
    assert secret not in err
    written = [path for path in job.run.path.rglob("*") if path.is_file() and path.suffix != ".log"]
    for word in (secret, "spelled-out-secret"):
        assert [path for path in written if word in path.read_text()] == []
    record = read_json(job.run.job)
    assert record["argv"][-4:] == ["script.py", "--lr", "$MY_API_KEY", "token=***"]
    assert record["world_size"] == 2
    assert [row["attempt"] for row in record["attempts"]] == [0]
    assert "torch" in record["packages"]
    assert job.run.config.exists()
    assert job.run.read_status()["state"] == "finished"


def test_one_exception_is_shown_once_restarts_are_attempts_and_the_echo_is_silent(make_job: MakeJob) -> None:
    job = make_job(
        """
import os
import torch, torch.distributed as dist
dist.init_process_group("gloo")
def work():
    if dist.get_rank() == 1:
        raise ValueError("broken on purpose")
    dist.all_reduce(torch.ones(1))
work()
"""
    )
    code, _, err = job.go("cluster.max_restarts=1")
    assert code == 1
    failure = job.failure
    assert (failure["rank"], failure["type"], failure["message"]) == (1, "ValueError", "broken on purpose")
    assert failure["host"] == socket.gethostname()
    assert failure["place"] == "script.py:7 in work"
    assert failure["attempt"] == 1
    assert failure["exit_code"] == 1
    assert failure["traceback"].startswith("Traceback")
    assert "launcher" not in failure["traceback"]
    assert "failed: ValueError on rank 1" in err
    assert "Traceback" not in err
    assert err.count("failed") == 2
    assert "✗ attempt 0 failed: ValueError on rank 1: broken on purpose" in err
    assert "restart 1 of 1: the workers are started again" in err
    (event,) = [row for row in read_json_lines(job.run.events) if row["event"] == "attempt_failed"]
    assert (event["attempt"], event["rank"], event["type"]) == (0, 1, "ValueError")
    for attempt in (0, 1):
        assert "ValueError: broken on purpose" in job.run.log(attempt, 1).read_text()
    assert job.run.read_status()["state"] == "failed"


def test_a_workers_exit_code_3_ends_the_job_at_once_with_3_and_is_not_tried_again(make_job: MakeJob) -> None:
    job = make_job(TELLS + "tell('up')\nif rank == 1: sys.exit(3)\nsignal.signal(15, signal.SIG_IGN)\ntime.sleep(600)")
    code, _, err = job.go("cluster.max_restarts=2")
    assert code == 3, err
    assert job.failure["rank"] == 1
    assert (job.failure["type"], job.failure["message"]) == ("SystemExit", "the script ended with exit code 3")
    assert job.failure["place"] == "script.py:9 in <module>"
    assert job.run.next_attempt() == 1
    assert job.alive() == []


@pytest.mark.parametrize("early", [0, 75])
def test_a_worker_that_ends_too_early_is_named_and_no_silent_success(make_job: MakeJob, early: int) -> None:
    job = make_job(
        """
import sys
import torch, torch.distributed as dist
dist.init_process_group("gloo")
for step in range(3 if dist.get_rank() == 1 else 100_000_000):
    dist.all_reduce(torch.ones(1))
sys.exit(int(sys.argv[1]))
"""
    )
    code, _, err = job.go(arguments=(str(early),))
    assert code == 1
    assert (job.failure["rank"], job.failure["type"]) == (1, "EarlyExit")
    assert f"rank 1 ended with exit code {early} while rank 0 still had work to share" in err


@pytest.mark.parametrize(
    ("error", "attempts", "why"),
    [
        ("ValueError('in the program')", 2, "the same error twice, without progress in between: it would come again"),
        ("OSError(5, 'of the machine')", 3, "3 failures in a row without progress: it is not tried again"),
    ],
)
def test_a_crash_loop_is_left_and_says_so(make_job: MakeJob, error: str, attempts: int, why: str) -> None:
    job = make_job(f"raise {error}")
    code, _, err = job.go("cluster.max_restarts=100", "cluster.gpus_per_node=1")
    assert code == 1
    assert job.run.next_attempt() == attempts
    assert why in err
    assert job.failure["attempt"] == attempts - 1
    assert [job.run.log(attempt, 0).exists() for attempt in range(attempts + 1)] == [True] * attempts + [False]


def test_a_killed_worker_is_named_and_gives_128_plus_9(make_job: MakeJob) -> None:
    job = make_job(TELLS + "tell('up')\ntime.sleep(600)")
    process = job.start()
    pids = job.hears("up")
    os.kill(pids[1], signal.SIGKILL)
    code, _, err = job.finish(process)
    assert code == 128 + 9
    assert "failed: killed by SIGKILL on rank 1" in err
    assert job.failure["type"] == "SIGKILL"
    assert job.failure["exit_code"] == 137
    assert job.alive() == []


def test_sigterm_reaches_each_worker_once_and_the_job_stops_with_75_and_goes_on_as_attempt_1(
    make_job: MakeJob,
) -> None:
    job = make_job(
        TELLS
        + """
if os.environ["PACELINE_ATTEMPT"] == "1":
    print("went on", flush=True)
    sys.exit(0)
asked, ask = os.pipe()
signal.signal(signal.SIGTERM, lambda *_: os.write(ask, b"."))
tell("up")
os.read(asked, 1)
again, _, _ = select.select([asked], [], [], 0.3)
print("asked", 1 + len(again), flush=True)
sys.exit(75)
"""
    )
    process = job.start()
    job.hears("up")
    process.send_signal(signal.SIGTERM)
    code, out, err = job.finish(process)
    assert code == 75
    assert out == "asked 1\n"
    assert job.run.log(0, 1).read_text() == "asked 1\n"
    assert "\nasked to stop (SIGTERM)\n" in err
    assert "paceline run cluster.gpus_per_node=2 device=cpu run.name=job -- script.py" in err
    assert job.run.read_status()["state"] == "stopped"
    assert not job.run.failure.exists()
    code, out, _ = job.go()
    assert (code, out) == (0, "went on\n")
    assert job.run.read_status()["state"] == "finished"


def test_a_second_ctrl_c_ends_workers_that_do_not_stop_at_once(make_job: MakeJob) -> None:
    job = make_job(ENDS_BY_FORCE)
    process = job.start()
    job.hears("up")
    process.send_signal(signal.SIGINT)
    job.hears("asked")
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    code, _, err = job.finish(process)
    assert code == 128 + signal.SIGINT
    assert "asked to stop (Ctrl-C); killed ranks 0, 1: Ctrl-C came again" in err
    assert "checkpoint" not in err
    assert job.alive() == []
    status = job.run.read_status()
    assert (status["state"], status["exit_code"]) == ("stopped", 130)
    assert "Ctrl-C came again" in status["reason"]


def test_a_script_that_ends_by_our_sigterm_has_stopped_and_the_others_keep_their_time(make_job: MakeJob) -> None:
    job = make_job(
        TELLS
        + """
if rank == 1:
    asked, ask = os.pipe()
    signal.signal(signal.SIGTERM, lambda *_: os.write(ask, b"."))
tell("up")
if rank == 0:
    time.sleep(600)
os.read(asked, 1)
# Longer than what is left to workers that survive a failure.
print("again", select.select([asked], [], [], 4.5)[0], flush=True)
"""
    )
    process = job.start()
    job.hears("up")
    process.send_signal(signal.SIGTERM)
    code, _, err = job.finish(process)
    assert code == 128 + signal.SIGTERM
    assert "asked to stop (SIGTERM)" in err
    assert "failed" not in err
    assert job.run.log(0, 1).read_text() == "again []\n"
    assert (job.run.read_status()["state"], job.run.read_status()["reason"]) == ("stopped", "asked to stop (SIGTERM)")
    assert not job.run.failure.exists()


def test_what_breaks_in_stopping_is_a_failure_and_who_does_not_stop_is_killed_with_the_reason(
    make_job: MakeJob,
) -> None:
    job = make_job(
        TELLS
        + """
def save(*_):
    raise OSError("cannot save")
signal.signal(signal.SIGTERM, signal.SIG_IGN if sys.argv[1:] == ["stubborn"] else save)
tell("up")
time.sleep(600)
"""
    )
    process = job.start()
    job.hears("up")
    process.send_signal(signal.SIGTERM)
    code, _, err = job.finish(process)
    assert (code, job.run.read_status()["state"], job.failure["message"]) == (1, "failed", "cannot save"), err
    process = job.start("cluster.grace_seconds=0.3", arguments=("stubborn",))
    job.hears("up")
    process.send_signal(signal.SIGTERM)
    code, _, err = job.finish(process)
    assert code == 128 + signal.SIGTERM
    why = "asked to stop (SIGTERM); killed ranks 0, 1: no end within cluster.grace_seconds=0.3"
    assert why in err
    assert (job.run.read_status()["state"], job.run.read_status()["reason"]) == ("stopped", why)


LEAVES_PROCESSES = (
    TELLS
    + """
import subprocess
stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
first = subprocess.Popen([sys.executable, "-c", stubborn], start_new_session=True)
subprocess.Popen(["sh", "-c", "sleep 600 & sleep 600 & setsid sleep 600 & exit"])
tell("up")
left = Path("left")
if sys.argv[1:] == ["end"]:
    sys.exit(0)
if os.environ["PACELINE_ATTEMPT"] == "1":
    sys.exit(0 if not Path(f"/proc/{left.read_text()}").exists() else 3)
if sys.argv[1:] == ["fail"] and rank == 0:
    time.sleep(600)
if sys.argv[1:] == ["fail"]:
    left.write_text(str(first.pid))
    sys.exit(7)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(600)
"""
)


@pytest.mark.parametrize(
    ("how", "expected"), [("end", 0), ("fail", 0), ("agent", 128 + 9), ("command", -9), ("stopped agent", 124)]
)
def test_nothing_that_workers_have_started_outlives_the_job(make_job: MakeJob, how: str, expected: int) -> None:
    job = make_job(LEAVES_PROCESSES)
    process = job.start("cluster.max_restarts=1", "cluster.hang_timeout=3", arguments=(how,))
    workers = job.hears("up")
    agent = parent_of(workers[0]) if expected else 0
    if how == "agent":
        os.kill(agent, signal.SIGKILL)
    elif how == "command":
        assert len(job.alive()) >= 9
        # That changes nothing.
        os.kill(agent, signal.SIGSTOP)
        process.kill()
    elif how == "stopped agent":
        os.kill(agent, signal.SIGSTOP)
    code, _, err = job.finish(process)
    assert code == expected, err
    # Only where the command itself was killed is there nobody left to wait for.
    job.check_gone(deadline_s=10 if how == "command" else 0.1)
    state = {"agent": "failed", "command": "running", "stopped agent": "failed"}.get(how, "finished")
    assert job.run.read_status()["state"] == state
    if how == "stopped agent":
        assert f"kill -CONT {agent} lets it go on, and it is killed when that has lasted 3 s" in err
        assert "was stopped (SIGSTOP) for 3 s" in job.failure["message"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_stop_before_the_workers_are_up_costs_nothing_and_is_75(make_job: MakeJob, number: signal.Signals) -> None:
    job = make_job("import time\ntime.sleep(600)")
    process = job.start()
    until(job.alive, "the agent is there", process)
    process.send_signal(number)
    code, _, err = job.finish(process)
    assert code == 75, err
    who = "Ctrl-C" if number == signal.SIGINT else number.name
    assert f"asked to stop ({who}) before the workers were up" in err
    assert "Traceback" not in err
    assert job.run.read_status()["state"] == "stopped"
    assert job.alive() == []


def test_a_stop_while_the_run_is_made_is_heard_when_there_is_one_and_not_lost(make_job: MakeJob) -> None:
    job = make_job("import time\ntime.sleep(600)")
    git = job.folder / "bin" / "git"
    git.parent.mkdir()
    git.write_text("#!/bin/sh\nkill -INT $PPID\nexit 1\n")
    git.chmod(0o755)
    code, _, err = job.go(PATH=f"{git.parent}:{os.environ['PATH']}")
    assert (code, "asked to stop (Ctrl-C) before the workers were up" in err) == (75, True), err
    assert job.run.read_status()["state"] == "stopped"


def test_a_launch_that_was_killed_before_it_said_anything_keeps_nobody_waiting(make_job: MakeJob) -> None:
    job = make_job("import time\ntime.sleep(600)")
    process = job.start()
    until(job.run.job.exists, "it is launched", process)
    assert runs.look(job.run).is_live
    process.kill()
    job.finish(process)
    job.check_gone(deadline_s=10)
    job.run.status.unlink(missing_ok=True)
    assert runs.look(job.run).state == "lost"
    # Of a run that has trained before, it is no news.
    write_json(job.run.status, {"state": "preempted", "attempt": 0, "time": job.run.launches()[-1]["time"] - 1})
    assert runs.look(job.run).state == "preempted"


def test_sigusr1_reaches_who_knows_it_as_itself_and_the_others_as_sigterm_and_sighup_nobody(
    make_job: MakeJob,
) -> None:
    job = make_job(
        TELLS
        + """
def end(number, frame):
    print(signal.Signals(number).name, flush=True)
    sys.exit(75 if rank == 0 else 0)
signal.signal(signal.SIGUSR1 if rank == 0 else signal.SIGTERM, end)
tell("up")
time.sleep(600)
"""
    )
    process = job.start()
    workers = job.hears("up")
    for pid in (process.pid, parent_of(workers[0]), *workers):
        os.kill(pid, signal.SIGHUP)
    process.send_signal(signal.SIGUSR1)
    code, out, err = job.finish(process)
    assert (code, out) == (75, "SIGUSR1\n"), err
    assert job.run.log(0, 1).read_text() == "SIGTERM\n"
    assert "asked to stop (SIGUSR1)" in err


MISBEHAVES = """
import ctypes, os, sys
import torch, torch.distributed as dist
way, rank = sys.argv[1], int(os.environ["RANK"])
if way == "import" and rank == 1:
    import no_such_module_here
dist.init_process_group("gloo")
dist.all_reduce(torch.ones(1))
if rank == 1:
    if way == "segfault":
        ctypes.string_at(0)
    if way == "exit":
        os._exit(7)
    if way == "heap":
        libc = ctypes.CDLL(None)
        libc.malloc.restype = ctypes.c_void_p
        place = ctypes.c_void_p(libc.malloc(24))
        libc.free(place)
        libc.free(place)
    if way == "memory":
        bytearray(1 << 60)
    if way == "loud":
        for _ in range(500_000):
            sys.stderr.write("x" * 99 + "\\n")
        raise ValueError("after all that")
dist.all_reduce(torch.ones(1))
"""


@pytest.mark.parametrize(
    ("way", "expected", "type_", "message", "means", "last_in_log"),
    [
        (
            "import",
            1,
            "ModuleNotFoundError",
            "No module named 'no_such_module_here'",
            "Python does not find no_such_module_here",
            "no_such_module_here'\n",
        ),
        ("segfault", 128 + 11, "SIGSEGV", "killed by SIGSEGV", "native code touched memory", ""),
        ("heap", 128 + 6, "SIGABRT", "killed by SIGABRT", "native code has damaged its own memory", ""),
        ("exit", 1, "exit code 7", "the script ended with exit code 7", "", ""),
        ("memory", 1, "MemoryError", "MemoryError", "memory (not the GPU's)", "MemoryError\n"),
        ("loud", 1, "ValueError", "after all that", "", "ValueError: after all that\n"),
    ],
)
def test_the_rank_that_misbehaves_is_named_with_its_own_error_and_what_it_means(
    make_job: MakeJob, way: str, expected: int, type_: str, message: str, means: str, last_in_log: str
) -> None:
    job = make_job(MISBEHAVES)
    code, out, err = job.go(arguments=(way,))
    assert (code, out) == (expected, ""), err
    assert job.run.log(0, 0).exists()
    failure = job.failure
    assert (failure["rank"], failure["type"], failure["message"], failure["exit_code"]) == (1, type_, message, code)
    assert len(err.splitlines()) < 12
    assert means in failure["meaning"]
    assert (failure["meaning"] in err, failure["meaning"] == "") == (True, means == "")
    # Before the first collective the other rank only waits, and is ended.
    assert "+ 1 more: 1x connection" in err or way == "import"
    log = job.run.log(0, 1).read_text()
    assert log.endswith(last_in_log)
    assert log.count("x" * 99 + "\n") == (500_000 if way == "loud" else 0)
    assert "Current thread" in log or way != "segfault"
    assert job.alive() == []
