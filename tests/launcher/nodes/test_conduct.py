"""Which node does what next: thousands of histories of agents that fail, die, fall silent and are slow."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from launcher.nodes.conduct import Conduct, Limits, Phase, State

LIMITS = Limits(join_s=60, silence_s=20, end_s=20)
NODES = st.integers(0, 3)


class Agent:
    """What an agent does: it obeys, one thing after the other; all it says and hears takes its time."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.state = "importing"
        self.attempt = 5
        self.ends_well = False
        self.code: int | None = None
        self.said: list[dict[str, Any]] = [self.words("join")]
        self.told: list[dict[str, Any]] = []

    def words(self, kind: str) -> dict[str, Any]:
        return {"kind": kind, "endpoint": "first:1" if self.number == 0 else ""}

    def obey(self, message: dict[str, Any]) -> None:
        kind = message["kind"]
        if kind == "go":
            assert self.state == "ready"
            assert message["attempt"] == self.attempt
            assert message["endpoint"] == "first:1"
            self.state = "working"
        elif kind == "down" and self.state == "working":
            self.state = "ending"
        elif kind == "again":
            assert self.state == "waiting"
            self.state, self.attempt, self.ends_well = "importing", self.attempt + 1, False
        elif kind == "end":
            assert self.state in ("waiting", "ready", "importing")
            self.state, self.code = "gone", message["code"]


class Histories(RuleBasedStateMachine):
    """Agents and their hub, in any order that is possible."""

    @initialize(count=st.integers(1, 4), restarts=st.integers(0, 2), works=st.booleans())
    def begin(self, count: int, restarts: int, works: bool) -> None:
        self.now, self.restarts = 0.0, restarts
        self.agents = [Agent(number) for number in range(count)]
        self.mute: set[int] = set()
        self.conduct = Conduct(count, attempt=5, limits=LIMITS, now=0.0)
        self.goes: dict[int, int] = {}
        self.accounted: set[int] = set()
        self.told_of_failure = False
        self.deliver_orders()
        if works:
            for number in range(count):
                self.an_agent_gets_on(number, fails=False)
            for number in [*range(count)] * 2:
                self.the_hub_hears(number)
            for number in range(count):
                self.an_agent_hears(number)
            assert {agent.state for agent in self.agents} == {"working"}

    def one(self, number: int) -> Agent:
        return self.agents[number % len(self.agents)]

    @rule(number=NODES)
    def the_hub_hears(self, number: int) -> None:
        agent = self.one(number)
        if agent.said and agent.number not in self.mute:
            message = agent.said.pop(0)
            if self.conduct.phase is not Phase.OVER and agent.number not in self.conduct.away:
                self.told_of_failure |= message["kind"] == "failing"
                self.accounted |= {agent.number} if message["kind"] == "ended" else set()
            self.conduct.hear(
                agent.number,
                message["kind"],
                now=self.now,
                endpoint=message["endpoint"],
            )
        self.deliver_orders()

    @rule(number=NODES)
    def an_agent_hears(self, number: int) -> None:
        agent = self.one(number)
        if agent.told and agent.state != "gone":
            agent.obey(agent.told.pop(0))

    @rule(number=NODES, fails=st.booleans())
    def an_agent_gets_on(self, number: int, fails: bool) -> None:
        agent = self.one(number)
        if agent.state == "importing":
            agent.state = "ready"
            agent.said.append(agent.words("ready"))
        elif agent.state == "working" and fails:
            agent.state = "ending"
            agent.said.append(agent.words("failing"))
        elif agent.state in ("working", "ending"):
            agent.ends_well = agent.state == "working"
            agent.state = "waiting"
            agent.said.append(agent.words("ended"))
        else:
            agent.said.append(agent.words("beat"))

    @rule(number=NODES)
    def an_agent_dies(self, number: int) -> None:
        agent = self.one(number)
        if agent.state != "gone":
            agent.state = "gone"
            self.conduct.lose(agent.number, "killed")
            self.deliver_orders()

    @rule(number=NODES)
    def an_agent_falls_silent(self, number: int) -> None:
        self.mute.add(self.one(number).number)

    @rule(seconds=st.sampled_from([1.0, 15.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        # Who is alive beats.
        for agent in self.agents:
            if agent.number not in self.mute and agent.state != "gone":
                self.conduct.hear(agent.number, "beat", now=self.now)
        self.deliver_orders()

    def deliver_orders(self) -> None:
        for number, message in self.conduct.orders(self.now):
            assert self.conduct.state(number) not in (State.LOST, State.GONE, State.ABSENT)
            if message["kind"] == "down":
                assert self.told_of_failure or self.conduct.lost
            if message["kind"] == "go":
                assert self.goes.get(number, 4) == message["attempt"] - 1
                self.goes[number] = message["attempt"]
            self.agents[number].told.append(message)
        if self.conduct.phase is Phase.COMPLETE:
            self.judge()

    def judge(self) -> None:
        lost, away = self.conduct.lost, self.conduct.away
        there = [agent for agent in self.agents if agent.number not in away]
        # Nobody who is still listened to has workers.
        assert not [agent for agent in there if agent.state in ("working", "ending")]
        well = not lost and all(agent.ends_well for agent in self.agents)
        if not away and not well and self.restarts:
            self.restarts -= 1
            self.accounted, self.told_of_failure = set(), False
            self.conduct.again()
        else:
            self.conduct.finish(0 if well else 1)
        self.deliver_orders()

    @invariant()
    def success_is_true(self) -> None:
        for agent in getattr(self, "agents", []):
            if agent.code == 0:
                assert all(other.ends_well for other in self.agents)

    @invariant()
    def a_node_that_has_told_of_its_end_is_not_lost(self) -> None:
        assert not getattr(self, "accounted", set()) & set(self.conduct.lost if hasattr(self, "conduct") else ())

    def teardown(self) -> None:
        """Whatever has happened, the job ends in bounded time once those who are left do their part."""
        for _ in range(200):
            if self.conduct.phase is Phase.OVER:
                break
            for agent in self.agents:
                for _ in range(4):
                    self.the_hub_hears(agent.number)
                    self.an_agent_hears(agent.number)
                # Workers whose peers have gone in the midst of work wait for them for ever.
                at_a_loss = agent.state == "working" and any(
                    (other.state == "gone" or other.number in self.mute) and other.number not in self.accounted
                    for other in self.agents
                )
                if agent.state in ("importing", "working", "ending") and not at_a_loss:
                    self.an_agent_gets_on(agent.number, fails=False)
            self.time_passes(1.0)
        assert self.conduct.phase is Phase.OVER
        # One that comes late is told, too; one that nobody has heard of cannot be.
        out_of_reach = self.mute | set(self.conduct.away)
        present = [agent for agent in self.agents if agent.number not in out_of_reach]
        for agent in present:
            for _ in range(50):
                self.the_hub_hears(agent.number)
                self.an_agent_hears(agent.number)
        assert all(agent.state == "gone" for agent in present)


Histories.TestCase.settings = settings(max_examples=400, stateful_step_count=40, deadline=None)
TestHistories = Histories.TestCase


def working(count: int) -> Conduct:
    conduct = Conduct(count, attempt=0, limits=LIMITS, now=0.0)
    for number in range(count):
        conduct.hear(number, "join", now=0.0)
        conduct.hear(number, "ready", now=0.0)
    assert [order[1]["kind"] for order in conduct.orders(0.0)] == ["go"] * count
    return conduct


def test_a_silent_node_is_lost_after_20_seconds_and_named_and_does_not_come_back() -> None:
    conduct = working(3)
    for now in (10.0, 20.0):
        for number in (0, 2):
            conduct.hear(number, "beat", now=now)
        assert conduct.orders(now) == []
    assert [(number, order["kind"]) for number, order in conduct.orders(20.1)] == [(0, "down"), (2, "down")]
    assert conduct.lost == {1: "it has given no sign of life for 20 s"}
    conduct.hear(1, "ended", now=20.2)
    assert conduct.state(1) is State.LOST


def test_a_node_that_goes_after_its_workers_have_ended_leaves_the_others_their_time_and_is_no_loss() -> None:
    conduct = working(2)
    conduct.hear(1, "ended", now=1.0)
    conduct.lose(1, "killed")
    for now in range(2, 60, 5):
        conduct.hear(0, "beat", now=now)
        assert conduct.orders(now) == []
    conduct.hear(0, "ended", now=60.0)
    assert conduct.orders(60.0) == []
    assert conduct.phase is Phase.COMPLETE
    assert (conduct.lost, conduct.away) == ({}, {1: "killed"})
    conduct.finish(0)
    assert [(number, order["kind"]) for number, order in conduct.orders(60.0)] == [(0, "end")]


@pytest.mark.parametrize("present", [True, False])
def test_a_node_that_does_not_come_ends_the_wait_of_the_others(present: bool) -> None:
    conduct = Conduct(2, attempt=0, limits=LIMITS, now=0.0)
    conduct.hear(0, "join", now=0.0)
    conduct.hear(0, "ready", now=0.0)
    if present:
        conduct.hear(1, "join", now=1.0)
    for now in range(5, 80, 5):
        conduct.hear(0, "beat", now=now)
        conduct.orders(now)
    assert conduct.phase is Phase.COMPLETE
    assert conduct.lost == {1: f"it {'was not ready' if present else 'has not come'} within 60 s"}


def test_the_defaults_notice_a_lost_node_and_end_the_others_within_the_promised_30_seconds() -> None:
    # After the silence: 2 s for last words, 2 s from SIGTERM to SIGKILL, and a second to notice.
    assert Limits().silence_s + 2 + 2 + 1 <= 30


def test_a_job_hangs_when_all_nodes_that_have_workers_are_silent_and_not_before() -> None:
    conduct = Conduct(3, attempt=0, limits=LIMITS, now=0.0)
    for number in range(3):
        conduct.hear(number, "join", now=0.0)
        conduct.hear(number, "ready", now=0.0, endpoint="first:1")
    assert [message["kind"] for _, message in conduct.orders(0.0)] == ["go"] * 3
    for number, kind in [(0, "silent"), (1, "silent"), (1, "lively"), (2, "silent")]:
        conduct.hear(number, kind, now=1.0)
        assert conduct.orders(1.0) == []
    conduct.hear(1, "ended", now=1.0)
    assert conduct.orders(1.0) == []
    # Whoever waited for the one that has ended has had time to go on.
    for number in range(3):
        conduct.hear(number, "beat", now=31.0)
    assert [(node, message["kind"]) for node, message in conduct.orders(31.0)] == [(0, "hang"), (2, "hang")]
    assert conduct.orders(31.0) == []
