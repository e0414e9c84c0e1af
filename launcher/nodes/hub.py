"""Where the agents of several nodes meet: one process listens, hears them all, and tells each what to do next.

The decisions are `Conduct`'s. What came to pass is told by one `Account`, here, so that a job has one verdict.
"""

import selectors
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from launcher.ending.conclusion import Account
from launcher.ending.outcome import Outcome, by_our_clock, merged
from launcher.hang import inquest
from launcher.hang.sighting import Findings
from launcher.hang.watchdog import Clock
from launcher.nodes.channel import Channel, ChannelLost
from launcher.nodes.conduct import BEAT_S, Conduct, Limits, Phase, State
from launcher.plan import JobPlan
from launcher.stop import Stop
from launcher.verdict import Exit
from launcher.workers.output import say
from trainer.run.differences import in_words
from trainer.rundir import RunDir

_TICK_S = 0.1
_LAST_MOMENT_S = 0.5
_STRANGER_S = 10.0
_MOST_STRANGERS = 256


class Hub:
    """Conducts a job on several nodes.

    Args:
        plan: the job.
        listener: where the agents come to.
        secret: what they must know.
        account: tells of restarts and of the end.
        stop: the requests to stop, of this process and, through here, of every agent.
        gone: called all the time; the nodes whose agents are known to have ended, and how.
        limits: how long nodes are waited for.
    """

    def __init__(
        self,
        plan: JobPlan,
        listener: socket.socket,
        secret: str,
        *,
        account: Account,
        stop: Stop,
        gone: Callable[[], dict[int, str]],
        limits: Limits | None = None,
    ) -> None:
        self._plan = plan
        self._run = RunDir(plan.run_dir)
        self._secret = secret
        self._account = account
        self._stop = stop
        self._gone = gone
        self._conduct = Conduct(plan.nodes, attempt=plan.attempt, limits=limits or Limits(), now=0.0)
        self._clock = Clock(time.monotonic())
        self._channels: dict[int, Channel] = {}
        self._hosts: dict[int, str] = {}
        self._lost_at: dict[int, float] = {}
        self._clocks: dict[int, float] = {}
        self._outcomes: dict[int, Outcome] = {}
        self._seen: dict[int, Findings] = {}
        self._found: dict[int, dict[str, Any]] = {}
        self._strangers: deque[tuple[float, Channel]] = deque()
        self._told: tuple[Any, ...] = ()
        self._next_beat = 0.0
        self._selector = selectors.DefaultSelector()
        listener.setblocking(False)
        self._listener = listener
        self._selector.register(listener, selectors.EVENT_READ)

    def run(self) -> int:
        """Conducts the job to its end; returns its exit code when every agent has been told."""
        code = 1
        while self._conduct.phase is not Phase.OVER:
            self._listen()
            self._relay_stop()
            self._give_orders()
            if self._conduct.phase is Phase.COMPLETE:
                code = self._judge()
                self._give_orders()
        return code

    def serve(self) -> None:
        """Goes on after the end, for agents that come late; to be called until they have all gone."""
        self._listen()
        self._give_orders()

    @property
    def away(self) -> list[int]:
        """The nodes that do not answer any more."""
        return list(self._conduct.away)

    def _listen(self) -> None:
        ready = [key for key, _ in self._selector.select(_TICK_S)]
        for key in ready:
            if isinstance(key.data, int):
                self._hear(key.data)
            elif key.fileobj is not self._listener:
                self._meet(key.data)
        # Who has proved to be an agent was heard before others are let in and the oldest of them put out.
        if any(key.fileobj is self._listener for key in ready):
            self._accept()
        if len(self._hosts) == self._plan.nodes and self._listener.fileno() >= 0:
            self._close_door()
        while self._strangers and (
            len(self._strangers) > _MOST_STRANGERS or time.monotonic() - self._strangers[0][0] > _STRANGER_S
        ):
            self._refuse(self._strangers[0][1])
        for node, why in self._gone().items():
            self._lose(node, why)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            # Gone again, or we have no descriptors left: those that we need we have.
            return
        channel = Channel(connection, self._secret, is_server=True)
        self._strangers.append((time.monotonic(), channel))
        self._selector.register(channel, selectors.EVENT_READ, channel)

    def _close_door(self) -> None:
        """All have come, and nobody comes twice: from now on there is nothing that a stranger could reach."""
        self._selector.unregister(self._listener)
        self._listener.close()
        for _, channel in list(self._strangers):
            self._refuse(channel)

    def _meet(self, channel: Channel) -> None:
        """Hears somebody who has not shown yet that they know the secret."""
        try:
            messages = channel.receive()
        except (ChannelLost, ValueError):
            self._refuse(channel)
            return
        if not messages:
            return
        node = messages[0].get("node", -1)
        if messages[0].get("kind") != "join" or not self._is_expected(node):
            self._refuse(channel)
            return
        self._strangers = deque(entry for entry in self._strangers if entry[1] is not channel)
        self._selector.modify(channel, selectors.EVENT_READ, node)
        self._channels[node] = channel
        self._hosts[node] = str(messages[0]["host"])
        self._told = ()
        for message in messages:
            self._take(node, message)
        # The proof that it waits for.
        channel.send({"kind": "beat"})

    def _is_expected(self, node: object) -> bool:
        is_node = type(node) is int and 0 <= node < self._plan.nodes
        return is_node and node not in self._channels and self._conduct.state(node) is State.ABSENT

    def _refuse(self, channel: Channel) -> None:
        self._strangers = deque(entry for entry in self._strangers if entry[1] is not channel)
        self._selector.unregister(channel)
        channel.close()

    def _hear(self, node: int) -> None:
        try:
            messages = self._channels[node].receive()
        except (ChannelLost, ValueError):
            self._drop(node)
            # How its process ended says more than that its connection did, which a kill closes a moment before.
            deadline = time.monotonic() + _LAST_MOMENT_S
            while node not in (gone := self._gone()) and time.monotonic() < deadline:
                time.sleep(_LAST_MOMENT_S / 20)
            self._lose(node, gone.get(node, "the connection to it broke"))
            return
        for message in messages:
            self._take(node, message)

    def _take(self, node: int, message: dict[str, Any]) -> None:
        clock = time.time() - float(message["time"])
        self._clocks[node] = min(clock, self._clocks.get(node, clock))
        if message["kind"] == "stop":
            self._stop.hear(message["signal"], message["reason"], insisted=message["insisted"])
        if message["kind"] == "ended":
            self._outcomes[node] = by_our_clock(Outcome.from_json(message["outcome"]), self._clocks[node])
        if message["kind"] == "seen":
            self._seen[node] = Findings.from_json(message["findings"])
        if message["kind"] == "found":
            self._found[node] = message["found"]
            if len(self._found) == self._plan.nodes:
                self._account.tell_differences(in_words([found for _, found in sorted(self._found.items())]))
        self._conduct.hear(node, message["kind"], now=self._clock.time, endpoint=message.get("endpoint", ""))

    def _lose(self, node: int, why: str) -> None:
        if self._conduct.phase is not Phase.OVER:
            self._lost_at.setdefault(node, time.time())
            self._conduct.lose(node, why)

    def _drop(self, node: int) -> None:
        channel = self._channels.pop(node, None)
        if channel is not None:
            self._selector.unregister(channel)
            channel.close()

    def _relay_stop(self) -> None:
        stop = self._stop
        if stop.signal is None:
            return
        told = (int(stop.signal), stop.reason, stop.is_insisted_on)
        if told != self._told:
            self._told = told
            number, reason, insisted = told
            for channel in self._channels.values():
                channel.send({"kind": "stop", "signal": number, "reason": reason, "insisted": insisted})

    def _give_orders(self) -> None:
        now = self._clock.tick(time.monotonic())
        for node, message in self._conduct.orders(now):
            if node in self._channels:
                self._channels[node].send(message)
        for node in self._conduct.away:
            self._lost_at.setdefault(node, time.time())
            # Should it come back, it finds that it is on its own, and ends.
            self._drop(node)
        if now >= self._next_beat:
            self._next_beat = now + BEAT_S
            for channel in self._channels.values():
                channel.send({"kind": "beat"})

    def _judge(self) -> int:
        """Another attempt, or the end; returns the exit code, which counts only at the end."""
        outcome = merged([Outcome(self._conduct.attempt), *self._outcomes.values(), self._losses()])
        away, stopped = bool(self._conduct.away), self._stop.signal is not None
        outcome = inquest.concluded(outcome, self._run.log(outcome.attempt, 0).parent, asked=stopped)
        if away and not stopped and outcome.is_failed and self._plan.max_restarts:
            gone = (f"{self._name(node)} has gone: {why}" for node, why in self._conduct.away.items())
            say(f"no restart: {next(gone)}")
        if not away and not stopped and outcome.is_failed and self._account.is_worth(outcome):
            self._account.tell_restart(outcome)
            self._outcomes.clear()
            self._seen.clear()
            self._conduct.again()
            return 1
        if stopped and not outcome.exits and not outcome.killed:
            code = self._account.conclude_early(self._stop)
        else:
            code = self._account.conclude(outcome, self._stop)
        self._conduct.finish(code)
        return code

    def _name(self, node: int) -> str:
        host = self._hosts.get(node, "")
        return f"node {node} ({host})" if host else f"node {node}"

    def _losses(self) -> Outcome:
        """What the loss of nodes adds to an attempt's outcome."""
        outcome, size = Outcome(self._conduct.attempt), self._plan.workers_per_node
        for node, why in self._conduct.lost.items():
            ranks = range(node * size, (node + 1) * size)
            if self._stop.is_insisted_on:
                # Who asks a third time has the agents killed.
                outcome = replace(outcome, killed=(*outcome.killed, *ranks))
                continue
            exit = Exit(
                ranks[0],
                1,
                host=self._hosts.get(node, ""),
                time=self._lost_at[node],
                type="NodeLost",
                message=f"{self._name(node)} is lost: {why}",
                meaning="the machine, its network or the agent on it has gone",
                advice=f"{self._run.agent_log(self._plan.attempt, node)} may say more" if node else "",
            )
            # What it saw before is part of a hang's picture.
            seen = (self._seen[node],) if node in self._seen else ()
            outcome = replace(outcome, exits=(*outcome.exits, exit), findings=(*outcome.findings, *seen))
        return outcome
