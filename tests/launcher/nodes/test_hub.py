"""The hub and its agents over real connections, in one process: agents are played by threads."""

import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from launcher import ports
from launcher.ending.conclusion import Account
from launcher.ending.outcome import Outcome
from launcher.hang.sighting import Findings, Sighting
from launcher.hang.stacks import Frame, Stacks, Thread
from launcher.nodes import hub
from launcher.nodes.channel import Channel, ChannelLost, new_secret
from launcher.nodes.company import JobOver, Member, Next
from launcher.nodes.conduct import Limits
from launcher.nodes.hub import Hub
from launcher.plan import JobPlan, Program
from launcher.stop import Stop
from launcher.verdict import HANG, Exit
from tests.waiting import until
from trainer.errors import UnfitError
from trainer.run import surroundings
from trainer.run.rows import read_json_lines
from trainer.rundir import RunDir, read_json

LIMITS = Limits(join_s=20, silence_s=1.0, end_s=5)
DEADLINE_S = 20.0


class Job:
    """A job of two nodes with one worker each, whose agents are the test's."""

    def __init__(self, folder: Path, *, max_restarts: int = 0) -> None:
        self.listener = ports.listen("127.0.0.1:0")
        self.plan = JobPlan(
            nodes=2,
            workers_per_node=1,
            program=Program("script", "script.py"),
            run_dir=str(folder),
            max_restarts=max_restarts,
            stop_grace_s=10,
            hub=ports.endpoint_of(self.listener),
            secret=new_secret(),
        )
        self.run = RunDir(folder)
        self.stop = Stop(10)
        account = Account(self.plan)
        account.begin()
        self.hub = Hub(
            self.plan,
            self.listener,
            self.plan.secret,
            account=account,
            stop=self.stop,
            gone=lambda: {},
            limits=LIMITS,
        )

    def channel(self) -> Channel:
        return Channel(socket.create_connection(self.listener.getsockname()), self.plan.secret, is_server=False)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def hear_to_the_end(channel: Channel) -> None:
    while select.select([channel], [], [], DEADLINE_S)[0]:
        channel.receive()


def play(
    job: Job,
    node: int,
    *,
    clock: float,
    may_end: int,
    error: str = "",
    after_s: float = 0.0,
    has_ended: Callable[[], object] = lambda: None,
    dies: bool = False,
) -> None:
    """An agent whose worker ends, with an error or well.

    Args:
        job: the job.
        node: its number.
        clock: by so many seconds its clock is ahead.
        may_end: a descriptor; when there is something to read, the worker may end.
        error: the type of its error.
        after_s: by so much it is later than this moment.
        has_ended: called when the hub has been told.
        dies: whether that is the last thing that it does.
    """
    channel = job.channel()
    waits_for: list[Any] = [channel]

    def say(kind: str, **values: Any) -> None:
        channel.send({"kind": kind, "time": time.time() + clock, **values})

    say("join", node=node, host=f"host-{node}")
    say("ready", endpoint="there:1")
    while True:
        ready, _, _ = select.select(waits_for, [], [], LIMITS.silence_s / 4)
        for message in channel.receive() if channel in ready else []:
            if message["kind"] == "go":
                waits_for.append(may_end)
            if message["kind"] == "end":
                channel.close()
                return
        say("beat")
        if may_end in ready:
            waits_for.remove(may_end)
            exit = Exit(
                node, int(bool(error)), f"host-{node}", time=time.time() + clock + after_s, type=error, message=error
            )
            if error:
                say("failing")
            say("ended", outcome=Outcome(0, exits=(exit,)).to_json())
            has_ended()
            if dies:
                channel.close()
                return


def test_the_first_failure_is_the_first_also_where_a_nodes_clock_is_wrong(job: Job) -> None:
    first, second = os.eventfd(1), os.eventfd(0)
    goes_on = partial(os.eventfd_write, second, 1)
    one = partial(play, job, 1, clock=3600.0, may_end=first, error="ValueError", has_ended=goes_on)
    agents = [
        threading.Thread(target=partial(play, job, 0, clock=0.0, may_end=second, error="KeyError", after_s=1.0)),
        threading.Thread(target=one),
    ]
    for agent in agents:
        agent.start()
    assert job.hub.run() == 1
    for agent in agents:
        agent.join(5)
    failure = read_json(job.run.failure)
    assert (failure["rank"], failure["type"], failure["host"]) == (1, "ValueError", "host-1")


@pytest.mark.parametrize("error", ["", "ValueError"])
def test_an_agent_that_dies_when_all_is_done_on_its_node_is_no_failure_of_the_others_but_forbids_restarts(
    tmp_path: Path, error: str, capfd: pytest.CaptureFixture[str]
) -> None:
    job = Job(tmp_path, max_restarts=3)
    first, second = os.eventfd(1), os.eventfd(0)
    agents = [
        threading.Thread(target=partial(play, job, 0, clock=0.0, may_end=second, error=error), daemon=True),
        threading.Thread(target=partial(play, job, 1, clock=0.0, may_end=first, dies=True), daemon=True),
    ]
    codes: list[int] = []
    conducting = threading.Thread(target=lambda: codes.append(job.hub.run()), daemon=True)
    for thread in (*agents, conducting):
        thread.start()
    until(lambda: job.hub.away == [1], "the hub misses it", deadline_s=5)
    os.eventfd_write(second, 1)
    conducting.join(10)
    assert codes == [int(bool(error))]
    assert read_json(job.run.failure).get("type", "") == error
    told = "no restart: node 1 (host-1) has gone: the connection to it broke\n"
    assert capfd.readouterr().err.count(told) == int(bool(error))


def hang(job: Job, node: int, frames: tuple[Frame, ...], *, ends: bool) -> None:
    """An agent whose worker hangs; if that cannot be ended, neither does the agent say anything more."""
    member = Member(replace(job.plan, node=node), Stop(10), LIMITS)
    member.agree("there:1")
    while not member.all_silent(True):
        member.look(failing=False)
    findings = Findings((Sighting(node, Stacks("D", threads=(Thread("MainThread", frames),)), f"h{node}"),), 31.0)
    member.tell(findings)
    while ends and member.decide(Outcome(0, findings=(findings,))) is Next.WAIT:
        member.look(failing=False)


def test_where_ranks_hang_is_known_also_of_a_node_that_cannot_end_them(job: Job) -> None:
    reduces = (Frame("all_reduce", "/v/site-packages/torch/distributed/distributed_c10d.py", 3000),)
    reads = (Frame("read", "/home/me/train.py", 80),)
    agents = [
        threading.Thread(target=partial(hang, job, 0, reduces, ends=True), daemon=True),
        threading.Thread(target=partial(hang, job, 1, reads, ends=False), daemon=True),
    ]
    for agent in agents:
        agent.start()
    assert job.hub.run() == HANG
    assert job.hub.away == [1]
    failure = read_json(job.run.failure)
    assert (failure["rank"], failure["host"], failure["place"]) == (1, "h1", "/home/me/train.py:80 in read")
    assert "rank 0: waits in all_reduce" in failure["message"]


def test_a_second_agent_of_a_node_and_one_of_no_node_are_refused_and_nobody_when_all_have_come(job: Job) -> None:
    done = os.eventfd(0)
    codes: list[int] = []
    conducting = threading.Thread(target=lambda: codes.append(job.hub.run()))
    players = [threading.Thread(target=partial(play, job, node, clock=0.0, may_end=done)) for node in (0, 1)]
    for thread in (conducting, players[0]):
        thread.start()
    until(lambda: len(job.hub._channels) == 1, "the first node is known", deadline_s=DEADLINE_S)
    for node in (0, 2, -1, "0", True, None):
        other = job.channel()
        other.send({"kind": "join", "time": time.time(), "node": node, "host": "x"})
        with pytest.raises(ChannelLost):
            hear_to_the_end(other)
    address = job.listener.getsockname()
    players[1].start()
    until(lambda: len(job.hub._channels) == 2, "both are known", deadline_s=DEADLINE_S)
    until(lambda: job.listener.fileno() < 0, "the door is closed", deadline_s=DEADLINE_S)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    os.eventfd_write(done, 1)
    for thread in (conducting, *players):
        thread.join(10)
    assert codes == [0]
    assert job.run.read_status()["state"] == "finished"


def stranger(job: Job, said: bytes) -> bytes:
    """What a stranger hears from the hub until it hangs up."""
    with socket.create_connection(job.listener.getsockname()) as connection:
        connection.settimeout(10)
        with suppress(ConnectionError):
            connection.sendall(said)
            return b"".join(iter(lambda: connection.recv(4096), b""))
    return b""


def overheard(job: Job) -> bytes:
    """What an agent of this job has said on another connection, word for word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    with ours:
        ours.sendall(b"0" * 32 + b"\n")
        agent = Channel(theirs, job.plan.secret, is_server=False)
        agent.send({"kind": "join", "time": time.time(), "node": 1, "host": "x"})
        agent.receive()
        agent.close()
        return b"".join(iter(lambda: ours.recv(4096), b""))


def test_strangers_are_hung_up_on_and_change_nothing(job: Job) -> None:
    codes: list[int] = []
    done = os.eventfd(1)
    conducting = threading.Thread(target=lambda: codes.append(job.hub.run()))
    conducting.start()
    silent = [socket.create_connection(job.listener.getsockname()) for _ in range(300)]
    join = b'\n{"kind": "join", "node": 1, "host": "x", "time": 0}\n'
    for said in (b"GET / HTTP/1.1\r\n\r\n", b"y" * 100_000, b"0" * 32 + join, overheard(job)):
        assert len(stranger(job, said)) <= 33
    assert job.hub._channels == {}
    players = [threading.Thread(target=partial(play, job, node, clock=0.0, may_end=done)) for node in (0, 1)]
    for player in players:
        player.start()
    for thread in (conducting, *players):
        thread.join(10)
    for connection in silent:
        connection.close()
    assert codes == [0]


FLOOD = """
import socket, sys
kept = []
print("flood", flush=True)
while True:
    stranger = socket.socket()
    stranger.setblocking(False)
    stranger.connect_ex(("127.0.0.1", int(sys.argv[1])))
    kept.append(stranger)
    if len(kept) > 500:
        kept.pop(0).close()
"""


def test_agents_find_their_way_through_a_flood_of_strangers(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    # So few that an agent is put out among them, too.
    monkeypatch.setattr(hub, "_MOST_STRANGERS", 4)
    codes: list[int] = []
    patient = replace(LIMITS, silence_s=20)
    port = str(job.listener.getsockname()[1])
    with subprocess.Popen([sys.executable, "-S", "-c", FLOOD, port], stdout=subprocess.PIPE) as flood:
        try:
            assert flood.stdout is not None
            assert flood.stdout.readline() == b"flood\n"
            conducting = threading.Thread(target=lambda: codes.append(job.hub.run()), daemon=True)
            conducting.start()
            until(lambda: len(job.hub._strangers) > 3, "the hub has its hands full", deadline_s=10)
            members = [Member(replace(job.plan, node=node), Stop(10), patient) for node in range(job.plan.nodes)]
            assert [member.why_lost for member in members] == ["", ""]
            members[1].leave(UnfitError("no torch there", "install it"))
            conducting.join(10)
        finally:
            flood.kill()
    assert codes == [members[1].code] == [UnfitError.exit_code]


def test_a_node_whose_imports_take_long_is_known_and_no_stranger_meanwhile(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_STRANGER_S", 0.5)
    codes: list[int] = []
    conducting = threading.Thread(target=lambda: codes.append(job.hub.run()), daemon=True)
    conducting.start()
    members = [Member(replace(job.plan, node=node), Stop(10), LIMITS) for node in range(job.plan.nodes)]
    # They are in their imports now.
    until(lambda: len(job.hub._channels) == len(members), "the hub knows them", deadline_s=5)
    members[1].leave(UnfitError("no torch there", "install it"))
    conducting.join(10)
    assert codes == [members[1].code] == [UnfitError.exit_code]


def test_nodes_that_differ_are_named_once_before_their_workers_start(
    job: Job, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    versions = iter(["2.14.1", "2.13.0"])

    def found() -> dict[str, Any]:
        return {"host": "h", "python": "3.11.2", "packages": {"torch": next(versions)}, "variables": {}}

    monkeypatch.setattr(surroundings, "found", found)
    codes: list[int] = []
    conducting = threading.Thread(target=lambda: codes.append(job.hub.run()), daemon=True)
    conducting.start()
    members = [Member(replace(job.plan, node=node), Stop(10), LIMITS) for node in range(job.plan.nodes)]
    for member in members:
        member.look(failing=False)
    until(lambda: len(job.hub._found) == len(members), "both have said what they found", deadline_s=5)
    members[1].leave(UnfitError("enough seen", "stop"))
    conducting.join(10)
    line = "node 1 (h) has torch 2.13.0, node 0 (h) has 2.14.1"
    assert capfd.readouterr().err.count(f"warning: {line}\n") == 1
    [event] = [row for row in read_json_lines(job.run.events) if row["event"] == "environments_differ"]
    assert event["differences"] == [line]


def test_an_agent_that_hears_nothing_any_more_ends_its_workers(job: Job, capfd: pytest.CaptureFixture[str]) -> None:
    """A hub that has stopped, or is cut off; nobody closes the connection."""
    member = Member(replace(job.plan, node=1), Stop(10), LIMITS)
    connection, _ = job.listener.accept()
    hub = Channel(connection, job.plan.secret, is_server=True)
    while not hub.receive():
        member.look(failing=False)
    hub.send({"kind": "go", "endpoint": "there:1", "attempt": 0})
    assert member.agree("") == "there:1"
    began = time.monotonic()
    until(lambda: member.look(failing=False) or member.must_end, "it misses the hub", deadline_s=DEADLINE_S)
    assert time.monotonic() - began > 0.9
    assert member.decide(Outcome(0)) is Next.END
    assert member.code is None
    assert "the first node is lost: it has given no sign of life for 1 s" in capfd.readouterr().err
    with pytest.raises(JobOver):
        member.agree("")
