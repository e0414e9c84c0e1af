"""Jobs on two nodes of two workers each, on this machine: an agent for each node, gloo between the workers."""

import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.launcher.conftest import ENDS_BY_FORCE, TELLS, Job, parent_of
from tests.trainer_command import DIGITS, PACELINE, succeed
from trainer.run.rows import read_json_lines
from trainer.rundir import RunDir, read_json

MakeJob = Callable[[str], Job]

WORKS = (
    TELLS
    + """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
dist.all_reduce(torch.ones(1))
tell("up")
while True:
    dist.all_reduce(torch.ones(1))
"""
)
SOON_S = 5.0
"""Within this a failure anywhere has ended the job everywhere."""


def agents_of(process: "subprocess.Popen[str]", pids: list[int]) -> list[int]:
    """The nodes' agents by the pids of four workers, which must be in the nodes' order."""
    agents = [parent_of(pid) for pid in pids]
    assert agents[0] == agents[1] != agents[2] == agents[3]
    assert [parent_of(agent) for agent in agents] == [process.pid] * 4
    return [agents[0], agents[2]]


def test_ranks_follow_the_nodes_and_nothing_listens_or_tells_more_than_it_must(
    make_job: MakeJob,
) -> None:
    job = make_job(
        TELLS
        + """
import torch, torch.distributed as dist
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGRTMIN})
dist.init_process_group("gloo")
total = torch.tensor([float(rank)])
dist.all_reduce(total)
tell("up")
signal.sigwait({signal.SIGRTMIN})
dist.all_reduce(total)
names = ["LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "OMP_NUM_THREADS"]
print(rank, total.item(), *(os.environ[name] for name in names), flush=True)
"""
    )
    process = job.start("cluster.nodes=2", OMP_NUM_THREADS="1")
    pids = job.hears("up", workers=4)
    ours = [process.pid, *agents_of(process, pids)]
    listening = [
        connection.laddr
        for pid in ours
        for connection in psutil.Process(pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    # That of torch's store; where the agents have met nobody listens any more.
    assert [address.ip for address in listening] == ["127.0.0.1"]
    for pid in pids:
        os.kill(pid, signal.SIGRTMIN)
    code, out, err = job.finish(process)
    assert (code, out) == (0, "0 24.0 0 0 4 2 2 1\n"), err
    assert [line for line in err.splitlines() if "file system" not in line] == [
        "2 nodes on this machine, 4 workers, run directory runs/job"
    ]
    logs = [job.run.log(0, rank).read_text() for rank in range(4)]
    assert logs == [f"{rank} 24.0 {rank % 2} {rank // 2} 4 2 2 1\n" for rank in range(4)]
    assert job.run.agent_log(0, 1).read_text() == ""
    assert job.run.read_status()["state"] == "finished"
    # The secret is 64 hexadecimal digits.
    told = [
        path for path in job.run.path.rglob("*") if path.is_file() and re.search(rb"[0-9a-f]{64}", path.read_bytes())
    ]
    assert told == []


@pytest.mark.parametrize(
    ("who", "expected", "rank"), [("agent 1", 1, 2), ("agent 0", 1, 0), ("command", -signal.SIGKILL, None)]
)
def test_the_end_of_an_agent_or_of_the_command_ends_all_within_seconds_and_a_lost_node_is_named(
    make_job: MakeJob, who: str, expected: int, rank: int | None
) -> None:
    job = make_job(WORKS)
    process = job.start("cluster.nodes=2")
    agents = agents_of(process, job.hears("up", workers=4))
    began = time.monotonic()
    os.kill({"agent 0": agents[0], "agent 1": agents[1], "command": process.pid}[who], signal.SIGKILL)
    code, out, err = job.finish(process)
    # Where the command itself was killed there is nobody left to wait for.
    job.check_gone(deadline_s=5 if who == "command" else 0.1)
    assert time.monotonic() - began < SOON_S
    assert (code, out) == (expected, ""), err
    assert err.count("✗") == (0 if who == "command" else 1)
    if rank is None:
        return
    assert "is lost: its agent was killed by SIGKILL" in err
    failure = job.failure
    assert (failure["rank"], failure["host"], failure["exit_code"]) == (rank, socket.gethostname(), expected)
    assert job.run.read_status()["state"] == "failed"


FAILS = """
import os, signal, time
import torch, torch.distributed as dist
def fail(how):
    open(f"at-{attempt}", "w").write(str(time.time()))
    if how == "raise":
        raise ValueError("broken on purpose")
    if how == "end":
        os._exit(0)
    if how == "abort":
        os.abort()
    os.kill(os.getpid(), signal.SIGKILL)
dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
attempt, rank = int(os.environ["PACELINE_ATTEMPT"]), dist.get_rank()
print(attempt, rank, total.item(), flush=True)
dist.barrier()
hows = {(0, 3): "end", (1, 2): "abort", (2, 1): "kill", (3, 3): "raise"}
if how := hows.get((attempt, rank)):
    fail(how)
dist.all_reduce(total)
"""


def test_whichever_way_a_worker_fails_on_whichever_node_all_end_at_once_and_start_again_as_one_attempt(
    make_job: MakeJob,
) -> None:
    job = make_job(FAILS)
    code, out, err = job.go("cluster.nodes=2", "cluster.max_restarts=3")
    assert (code, out) == (1, "".join(f"{attempt} 0 4.0\n" for attempt in range(4))), err
    events = [row for row in read_json_lines(job.run.events) if row["event"] == "attempt_failed"]
    told = [(row["attempt"], row["rank"], row["type"]) for row in events]
    assert told == [(0, 3, "EarlyExit"), (1, 2, "killed by SIGABRT"), (2, 1, "killed by SIGKILL")]
    assert "rank 3 ended with exit code 0 while rank " in events[0]["message"]
    ends = [*(row["time"] for row in events), job.run.failure.stat().st_mtime]
    for attempt, end in enumerate(ends):
        assert end - float((job.folder / f"at-{attempt}").read_text()) < SOON_S
    assert err.count("✗") == 4
    assert "restart 3 of 3" in err
    assert "✗ failed: ValueError on rank 3" in err
    assert "+ 3 more: " in err
    failure = job.failure
    assert (failure["rank"], failure["host"], failure["attempt"]) == (3, socket.gethostname(), 3)
    assert (failure["message"], failure["place"]) == ("broken on purpose", "script.py:7 in fail")
    # What the others say of it is in their logs, and nowhere else.
    assert "Error" in job.run.log(3, 0).read_text()
    assert job.run.log(3, 2).read_text().startswith("3 2 4.0\n")
    assert job.alive() == []


STOPS = (
    TELLS
    + """
asked, ask = os.pipe()
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, _: os.write(ask, bytes([number])))
tell("up")
got = os.read(asked, 1)
# The last node takes longer to save than what is left to workers that survive a failure.
again, _, _ = select.select([asked], [], [], 4.5 if sys.argv[1:] == ["slow"] and rank < 2 else 0.2)
print(signal.Signals(got[0]).name, again, flush=True)
sys.exit(75)
"""
)


@pytest.mark.parametrize(
    ("number", "arguments", "passed_on"), [(signal.SIGUSR1, ("slow",), "SIGUSR1"), (None, (), "SIGTERM")]
)
def test_a_request_to_an_agent_or_by_a_file_reaches_all_workers_once(
    make_job: MakeJob, number: signal.Signals | None, arguments: tuple[str, ...], passed_on: str
) -> None:
    job = make_job(STOPS)
    process = job.start("cluster.nodes=2", arguments=arguments)
    agents = agents_of(process, job.hears("up", workers=4))
    if number is None:
        job.run.stop.touch()
    else:
        os.kill(agents[1], number)
    code, out, err = job.finish(process)
    assert (code, out) == (75, f"{passed_on} []\n"), err
    assert [job.run.log(0, rank).read_text() for rank in range(4)] == [f"{passed_on} []\n"] * 4
    who = number.name if number else "stop in the run directory"
    assert f"\nasked to stop ({who})\n" in err
    status = job.run.read_status()
    assert (status["state"], status["exit_code"]) == ("stopped", 75)
    assert job.alive() == []


def test_a_request_to_the_command_reaches_all_and_who_insists_at_one_agent_ends_the_workers_of_all(
    make_job: MakeJob,
) -> None:
    job = make_job(ENDS_BY_FORCE)
    process = job.start("cluster.nodes=2")
    agent = agents_of(process, job.hears("up", workers=4))[1]
    process.send_signal(signal.SIGINT)
    job.hears("asked", workers=4)
    os.kill(agent, signal.SIGINT)
    code, _, err = job.finish(process)
    assert code == 128 + signal.SIGINT
    assert "asked to stop (Ctrl-C); killed ranks 0, 1, 2, 3: Ctrl-C came again" in err
    assert job.alive() == []


TAKEN = """
import sys
from types import SimpleNamespace
from launcher import local
# The port was free when it was looked at.
local.ports = SimpleNamespace(listen=lambda endpoint: SimpleNamespace(close=lambda: None))
from launcher.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_what_one_agent_cannot_begin_ends_all_with_its_reason(make_job: MakeJob) -> None:
    job = make_job("raise ValueError")
    job.command = [sys.executable, "-c", TAKEN]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = job.go("cluster.nodes=2", f"cluster.port={port}", "cluster.max_restarts=3")
    assert code == 3, err
    assert f"cluster.port={port} is in use by another program" in err
    assert "cluster.port=null takes a free one" in err
    assert job.failure["type"] == "UnfitError"
    assert job.run.next_attempt() == 1
    assert job.alive() == []


STARVED = """
import sys
from launcher import agents
start, boot = agents._start, agents._BOOT
starve = "import resource, multiprocessing.popen_fork as fork; launch = fork.Popen._launch; "
starve += "fork.Popen._launch = lambda *a: (resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3)), launch(*a)); "
def start_there(plan):
    agents._BOOT = boot.replace("from launcher.agent", f"{starve}from launcher.agent") if plan.node else boot
    return start(plan)
agents._start = start_there
from launcher.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""The command, but the second node's agent has no file descriptors left when it forks its workers."""


def test_an_agent_that_has_no_descriptors_left_says_so_and_the_other_nodes_workers_do_not_wait(
    make_job: MakeJob,
) -> None:
    job = make_job("import torch.distributed as dist\ndist.init_process_group('gloo')")
    job.command = [sys.executable, "-c", STARVED]
    code, _, err = job.go("cluster.nodes=2", "cluster.max_restarts=3")
    assert code == 3, err
    assert (job.failure["rank"], job.failure["type"]) == (2, "UnfitError")
    assert f"cannot run workers on {socket.gethostname()}: this process may not open more files" in err
    assert "ulimit -n 65536" in err
    assert "Traceback" not in err
    assert job.alive() == []


def test_a_request_to_one_agent_before_the_workers_are_up_is_75_for_all(make_job: MakeJob) -> None:
    job = make_job("import time\ntime.sleep(600)")
    process = job.start("cluster.nodes=2")
    while len(psutil.Process(process.pid).children()) < 2:
        assert process.poll() is None
    psutil.Process(process.pid).children()[1].send_signal(signal.SIGTERM)
    code, _, err = job.finish(process)
    assert code == 75, err
    assert "asked to stop (SIGTERM) before the workers were up" in err
    assert job.run.read_status()["state"] == "stopped"
    assert job.alive() == []


SOON = """
import os, sys
from dataclasses import replace
from launcher import agents
from launcher.nodes import conduct, loopback
soon = "conduct.Limits.__init__.__defaults__ = (60.0, 3.0, 20.0)"
exec(soon)
known = "from launcher.agent"
agents._BOOT = agents._BOOT.replace(known, f"from launcher.nodes import conduct; {soon}; {known}")
host, other = os.environ.get("HOST"), os.environ.get("OTHER_PYTHON")
run, start, python = loopback.run, agents._start, sys.executable
if host:
    loopback.run = lambda plan: run(replace(plan, endpoint=host + ":0"))
def start_there(plan):
    sys.executable = other if other and plan.node else python
    return start(plan)
agents._start = start_there
from launcher.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""The command, but a node is lost after 3 s. With HOST it listens there; OTHER_PYTHON is the second node's."""


def test_a_node_that_has_stopped_is_noticed_and_named_but_not_a_job_that_was_suspended(
    make_job: MakeJob,
) -> None:
    job = make_job(WORKS)
    job.command = [sys.executable, "-c", SOON]
    process = job.start("cluster.nodes=2")
    pids = job.hears("up", workers=4)
    agents = agents_of(process, pids)
    ends = os.pidfd_open(process.pid)
    # All of them: a machine, or a job, that is suspended.
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in (process.pid, *agents, *pids):
            os.kill(pid, number)
        assert not select.select([ends], [], [], 4 if number == signal.SIGSTOP else 0.5)[0]
    os.close(ends)
    for pid in (agents[1], *pids[2:]):
        os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    code, _, err = job.finish(process)
    assert 2 < time.monotonic() - began < 3 + 5
    assert code == 1
    assert f"node 1 ({socket.gethostname()}) is lost: it has given no sign of life for 3 s" in err
    assert (job.failure["type"], job.failure["rank"]) == ("NodeLost", 2)
    job.check_gone(deadline_s=0.1)


@pytest.fixture
def other_network() -> Generator[tuple[str, str]]:
    """A network namespace and a link to it, the same name at both ends; to make one takes root."""
    name, link = f"pace-{os.getpid()}", f"pl{os.getpid()}"
    commands = f"""
        ip netns add {name}
        ip link add {link} type veth peer name {link}x
        ip link set {link}x netns {name}
        ip -n {name} link set {link}x name {link}
        ip addr add 10.213.77.1/30 dev {link}
        ip -n {name} addr add 10.213.77.2/30 dev {link}
        ip link set {link} up
        ip -n {name} link set {link} up
        ip -n {name} link set lo up"""
    try:
        try:
            for command in commands.strip().splitlines():
                subprocess.run(command.split(), check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("making a network is not allowed here")
        yield name, link
    finally:
        for command in (f"ip link del {link}", f"ip netns del {name}"):
            with suppress(OSError):
                subprocess.run(command.split(), check=False, capture_output=True)


@pytest.mark.parametrize(
    "cut",
    [
        "ip link set {link} down",
        # What the node sends goes to a card that there is not.
        "ip -n {name} neigh replace 10.213.77.1 lladdr 02:00:00:00:00:09 dev {link} nud permanent",
    ],
    ids=["both ways", "one way"],
)
def test_a_node_that_is_cut_off_is_named_and_both_sides_end(
    make_job: MakeJob, other_network: tuple[str, str], tmp_path: Path, cut: str
) -> None:
    name, link = other_network
    other = tmp_path / "python"
    other.write_text(f'#!/bin/sh\nexec ip netns exec {name} {sys.executable} "$@"\n')
    other.chmod(0o755)
    job = make_job(WORKS)
    job.command = [sys.executable, "-c", SOON]
    places = {"HOST": "10.213.77.1", "OTHER_PYTHON": str(other), "GLOO_SOCKET_IFNAME": link}
    process = job.start("cluster.nodes=2", **places)
    agents_of(process, job.hears("up", workers=4))
    began = time.monotonic()
    subprocess.run(cut.format(name=name, link=link).split(), check=True)
    code, _, err = job.finish(process)
    assert time.monotonic() - began < 3 + 5
    assert code == 1, err
    assert f"node 1 ({socket.gethostname()}) is lost: it has given no sign of life for 3 s" in err
    if cut.endswith("down"):
        # The side that is cut off has noticed by itself; else it hears the others, and that they end.
        assert "the first node is lost: it has given no sign of life for 3 s" in job.run.agent_log(0, 1).read_text()
    job.check_gone(deadline_s=0.1)


def test_our_trainer_computes_the_same_on_two_nodes_as_on_one(tmp_path: Path) -> None:
    same = [*DIGITS, f"run.dir={tmp_path}", "max_steps=6", "monitor.period_s=0.2"]
    succeed(PACELINE, *same, "run.name=one", "cluster.gpus_per_node=2")
    succeed(PACELINE, *same, "run.name=two", "cluster.nodes=2", "cluster.gpus_per_node=1")
    one, two = RunDir(tmp_path / "one"), RunDir(tmp_path / "two")
    assert one.weights("last").read_bytes() == two.weights("last").read_bytes()
    losses = [[row["train/loss"] for row in read_json_lines(run.metrics) if "train/loss" in row] for run in (one, two)]
    assert losses[0] == losses[1] != []
    workers = read_json(two.environment)["workers"]
    assert [(worker["rank"], worker["node"]) for worker in workers] == [(0, 0), (1, 1)]
    assert {row["node"] for row in read_json_lines(two.monitor)} == {0, 1}
