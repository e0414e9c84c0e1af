"""Which of several nodes does what next: who has failed, who is lost, when workers start and end. Pure.

An attempt's life: the nodes meet until all are ready, work until all have ended or one fails or is lost, and then end.
What has ended is judged by the caller, who says whether there is another attempt.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

BEAT_S = 1.0
"""Seconds between two signs of life, both ways."""

_END_GRACE_S = 30.0

Order = tuple[int, dict[str, Any]]
"""A node's number, and what it is told."""


class Phase(Enum):
    """Where the job is."""

    MEETING = auto()
    WORKING = auto()
    ENDING = auto()
    COMPLETE = auto()
    OVER = auto()


class State(Enum):
    """Where a node is."""

    ABSENT = auto()
    JOINED = auto()
    READY = auto()
    WORKING = auto()
    ENDED = auto()
    GONE = auto()
    """After its workers had ended, of which it has told: there is no other attempt, and nothing else follows."""
    LOST = auto()


_AWAY = (State.GONE, State.LOST)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long nodes are waited for, in seconds.

    Attributes:
        join_s: for one to come, and to be ready for the first time.
        silence_s: for a sign of life from one that was ready once.
        end_s: for the end of its workers after a failure elsewhere.
    """

    join_s: float = 600.0
    silence_s: float = 20.0
    end_s: float = 20.0


@dataclass(slots=True)
class _Node:
    state: State
    heard: float
    has_been_ready: bool = False
    fails: bool = False
    silent: bool = False
    endpoint: str = ""
    why: str = ""


class Conduct:
    """The state of a job on several nodes.

    Args:
        nodes: how many.
        attempt: the first attempt's number.
        limits: how long nodes are waited for.
        now: any clock's seconds that never go back; the same clock's for all that follows.

    Attributes:
        attempt: the attempt that runs, or that the nodes meet for.
        phase: where the job is.
    """

    def __init__(self, nodes: int, *, attempt: int, limits: Limits, now: float) -> None:
        self._nodes = [_Node(State.ABSENT, now) for _ in range(nodes)]
        self._limits = limits
        self._ending_since = self._ended_at = now
        self._orders: list[Order] = []
        self._code = 1
        self.attempt = attempt
        self.phase = Phase.MEETING

    def state(self, node: int) -> State:
        """Where a node is."""
        return self._nodes[node].state

    @property
    def lost(self) -> dict[int, str]:
        """The nodes that were lost before they told how their workers ended, and why."""
        return {number: node.why for number, node in enumerate(self._nodes) if node.state is State.LOST}

    @property
    def away(self) -> dict[int, str]:
        """The nodes that do not come back, lost or gone, and why."""
        return {number: node.why for number, node in enumerate(self._nodes) if node.state in _AWAY}

    def hear(self, number: int, kind: str, *, now: float, endpoint: str = "") -> None:
        """A node says something; one that does not come back is not listened to any more.

        Args:
            number: the node.
            kind: `join`; `ready` to start workers; `failing`: a worker has failed, the others are being ended;
                `silent`: they give no sign of life for too long; `lively`: they do again; `ended`: all have ended;
                `beat` and anything else: it is there.
            now: the time.
            endpoint: with `ready`, from the first node: where the workers will find one another.
        """
        node = self._nodes[number]
        if node.state in _AWAY:
            return
        node.heard = now
        if kind == "join" and node.state is State.ABSENT:
            node.state = State.JOINED
            if self.phase is Phase.OVER:
                self.finish(self._code)
        elif kind == "ready" and node.state is State.JOINED:
            node.state, node.has_been_ready, node.endpoint = State.READY, True, endpoint
        elif kind == "failing" and node.state is State.WORKING:
            node.fails = True
        elif kind in ("silent", "lively") and node.state is State.WORKING:
            node.silent = kind == "silent"
        elif kind == "ended" and self.phase is not Phase.OVER:
            node.state, self._ended_at = State.ENDED, now

    def lose(self, number: int, why: str) -> None:
        """A node has gone; it does not come back."""
        node = self._nodes[number]
        if node.state not in _AWAY:
            node.state, node.why = State.GONE if node.state is State.ENDED else State.LOST, why

    def orders(self, now: float) -> list[Order]:
        """What the nodes are to be told now, after all that was heard."""
        if self.phase not in (Phase.COMPLETE, Phase.OVER):
            self._lose_the_silent(now)
        states = {node.state for node in self._nodes}
        if self.phase is Phase.MEETING:
            if states & {State.ENDED, *_AWAY}:
                # Nobody has a worker yet.
                self.phase = Phase.COMPLETE
            elif states == {State.READY}:
                self.phase = Phase.WORKING
                for node in self._nodes:
                    node.state = State.WORKING
                self._tell({"kind": "go", "endpoint": self._nodes[0].endpoint}, self._in(State.WORKING))
        elif self.phase is Phase.WORKING and (State.LOST in states or any(node.fails for node in self._nodes)):
            self.phase, self._ending_since = Phase.ENDING, now
            self._tell({"kind": "down"}, self._in(State.WORKING))
        elif self.phase is Phase.WORKING and (working := self._in(State.WORKING)) and self._are_silent(working, now):
            # Every agent looks where its workers are, and ends them.
            self.phase, self._ending_since = Phase.ENDING, now
            self._tell({"kind": "hang"}, working)
        if self.phase in (Phase.WORKING, Phase.ENDING) and states <= {State.ENDED, *_AWAY}:
            self.phase = Phase.COMPLETE
        orders, self._orders = self._orders, []
        return orders

    def again(self) -> None:
        """There is another attempt; only after a complete one, with all nodes there."""
        assert self.phase is Phase.COMPLETE
        assert not self.away
        self._tell({"kind": "again"}, range(len(self._nodes)))
        self.attempt += 1
        self.phase = Phase.MEETING
        for node in self._nodes:
            node.state, node.fails, node.silent = State.JOINED, False, False

    def finish(self, code: int) -> None:
        """The job is over, with this exit code for all."""
        self.phase, self._code = Phase.OVER, code
        present = (number for number, node in enumerate(self._nodes) if node.state not in (*_AWAY, State.ABSENT))
        self._tell({"kind": "end", "code": code}, present)

    def _lose_the_silent(self, now: float) -> None:
        limits = self._limits
        for number, node in enumerate(self._nodes):
            silent = now - node.heard
            if node.has_been_ready and silent > limits.silence_s:
                self.lose(number, f"it has given no sign of life for {limits.silence_s:g} s")
            elif not node.has_been_ready and silent > limits.join_s:
                what = "has not come" if node.state is State.ABSENT else "was not ready"
                self.lose(number, f"it {what} within {limits.join_s:g} s")
            elif self.phase is Phase.ENDING and node.state is State.WORKING and now - self._ending_since > limits.end_s:
                self.lose(number, f"its workers have not ended within {limits.end_s:g} s")

    def _are_silent(self, nodes: Iterable[int], now: float) -> bool:
        # When workers have ended elsewhere, what these waited for may just have come.
        just_ended = self._in(State.ENDED, State.GONE) and now - self._ended_at < _END_GRACE_S
        return not just_ended and all(self._nodes[number].silent for number in nodes)

    def _in(self, *states: State) -> list[int]:
        return [number for number, node in enumerate(self._nodes) if node.state in states]

    def _tell(self, message: dict[str, Any], numbers: Iterable[int]) -> None:
        self._orders += [(number, {**message, "attempt": self.attempt}) for number in numbers]
