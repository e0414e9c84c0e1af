"""What an agent does not decide by itself: when its workers start, whether they are started again, when it ends."""

import select
import socket
import sys
import time
from dataclasses import asdict
from enum import Enum, auto
from typing import Any, Protocol

from launcher.ending.conclusion import Account
from launcher.ending.outcome import Outcome
from launcher.hang.sighting import Findings
from launcher.hang.watchdog import Clock
from launcher.nodes.channel import Channel, ChannelLost
from launcher.nodes.conduct import BEAT_S, Limits
from launcher.plan import JobPlan
from launcher.stop import Stop, StoppedEarly
from launcher.verdict import Exit
from trainer.errors import PacelineError, UnfitError
from trainer.run import surroundings

_POLL_S = 0.05
_LEAVE_S = 5.0


class Next(Enum):
    """What an agent does when its workers have ended."""

    WAIT = auto()
    AGAIN = auto()
    END = auto()


class JobOver(Exception):
    """The job has ended before this node's workers were started; no error of this node's."""


class Company(Protocol):
    """The agents of a job, as one of them sees the others.

    Attributes:
        must_end: whether the workers must end, since the job goes on without them or not at all.
    """

    must_end: bool

    def agree(self, endpoint: str) -> str:
        """Waits until all nodes are ready to start workers; returns where those will find one another.

        Args:
            endpoint: that place, on the first node; empty on the others.

        Raises:
            JobOver: it has ended meanwhile.
            StoppedEarly: somebody asked it to.
        """
        ...

    def look(self, *, failing: bool) -> None:
        """To be called all the time while there are workers.

        Args:
            failing: whether one has failed, and the others here are being ended.
        """

    def all_silent(self, silent: bool) -> bool:
        """Whether the workers of all nodes are silent for too long; a hang of the job, not of one node.

        Args:
            silent: whether those of this one are.
        """
        ...

    def tell(self, findings: Findings) -> None:
        """Tells at once what was seen of a hang here: the end of who hangs may take longer than this agent is heard.

        Args:
            findings: what the outcome will have, too, if it comes to that.
        """

    def decide(self, outcome: Outcome) -> Next:
        """To be called again and again when the workers have ended, until it is decided."""
        ...


class Alone:
    """The only agent of its job.

    Args:
        account: judges failed attempts, and tells of restarts.
        stop: the requests to stop.
    """

    def __init__(self, account: Account, stop: Stop) -> None:
        self._account = account
        self._stop = stop
        self.must_end = False

    def agree(self, endpoint: str) -> str:
        """See `Company`."""
        return endpoint

    def look(self, *, failing: bool) -> None:
        """See `Company`."""

    def all_silent(self, silent: bool) -> bool:
        """See `Company`."""
        return silent

    def tell(self, findings: Findings) -> None:
        """See `Company`."""

    def decide(self, outcome: Outcome) -> Next:
        """See `Company`."""
        if self._stop.signal is not None or not outcome.is_failed or not self._account.is_worth(outcome):
            return Next.END
        self._account.tell_restart(outcome)
        return Next.AGAIN


class Member:
    """One agent of several; what to do it is told by the hub.

    Args:
        plan: the job, this node's number and where the hub is.
        stop: the requests to stop that this process gets, and those that it hears of.
        limits: how long the hub is waited for.

    Attributes:
        must_end: see `Company`.
        code: the job's exit code, when it is known.
        why_lost: why the hub is lost; empty while it is not.

    Raises:
        UnfitError: the hub cannot be reached.
        StoppedEarly: somebody asked to stop, and it cannot be told of that.
    """

    def __init__(self, plan: JobPlan, stop: Stop, limits: Limits | None = None) -> None:
        self._plan = plan
        self._stop = stop
        self._limits = limits or Limits()
        self._attempt = plan.attempt
        self._endpoint = ""
        self._decision = Next.WAIT
        self._has_failed = self._has_ended = False
        self._is_silent = self._are_all_silent = False
        self._told: tuple[Any, ...] = ()
        self._next_beat = 0.0
        self.must_end = False
        self.code: int | None = None
        self.why_lost = ""
        self._clock = Clock(time.monotonic())
        self._heard = 0.0
        self._join()
        if plan.program.kind != "trainer":
            # Our trainer's workers compare themselves.
            self._say("found", found={**surroundings.found(), "node": plan.node})

    def agree(self, endpoint: str) -> str:
        """See `Company`."""
        self._endpoint = ""
        self.must_end = self._has_failed = self._has_ended = False
        self._is_silent = self._are_all_silent = False
        self._say("ready", endpoint=endpoint)
        while not self._endpoint:
            self._exchange()
            self._stop.check()
            if self.code is not None or self.why_lost:
                raise JobOver
            self._wait()
        return self._endpoint

    def look(self, *, failing: bool) -> None:
        """See `Company`."""
        self._exchange()
        if failing and not self._has_failed:
            self._has_failed = True
            self._say("failing")

    def all_silent(self, silent: bool) -> bool:
        """See `Company`."""
        if silent != self._is_silent:
            self._is_silent = silent
            self._say("silent" if silent else "lively")
        return self._are_all_silent

    def tell(self, findings: Findings) -> None:
        """See `Company`."""
        self._say("seen", findings=asdict(findings))

    def decide(self, outcome: Outcome) -> Next:
        """See `Company`."""
        if self.why_lost:
            return Next.END
        if not self._has_ended:
            self._has_ended = True
            self._say("ended", outcome=outcome.to_json())
        decision, self._decision = self._decision, Next.WAIT
        if decision is Next.AGAIN:
            self._attempt += 1
        return decision

    def leave(self, error: PacelineError | None = None) -> None:
        """Ends this node's part, which has no workers, asked to or for an error, and waits to hear of it."""
        exits: tuple[Exit, ...] = ()
        if error is not None:
            rank = self._plan.node * self._plan.workers_per_node
            told = {"type": type(error).__name__, "message": error.problem, "advice": error.fix}
            exits = (Exit(rank, error.exit_code, host=socket.gethostname(), time=time.time(), **told),)
        self._exchange()
        if error is not None:
            # Others may have workers already, which wait for those of this node.
            self._say("failing")
        self._say("ended", outcome=Outcome(self._attempt, exits=exits).to_json())
        deadline = time.monotonic() + _LEAVE_S
        while self.code is None and not self.why_lost and time.monotonic() < deadline:
            self._wait()
            self._exchange()

    def _join(self) -> None:
        """Makes itself known now: who stays a stranger for long, as in slow imports, is hung up on.

        Where many strangers come at once an agent may be put out among them, and comes again.
        """
        deadline = time.monotonic() + self._limits.silence_s
        while True:
            self._channel = Channel(self._connect(), self._plan.secret, is_server=False)
            self._say("join", node=self._plan.node, host=socket.gethostname())
            try:
                while not (self._channel.is_proven or self._stop.signal) and time.monotonic() < deadline:
                    self._wait()
                    for message in self._channel.receive():
                        self._take(message)
                return
            except (ChannelLost, ValueError) as error:
                if time.monotonic() > deadline:
                    self._lose(str(error))
                    return
                self._channel.close()
                time.sleep(_POLL_S)

    def _connect(self) -> socket.socket:
        host, _, port = self._plan.hub.rpartition(":")
        began = time.monotonic()
        while True:
            try:
                return socket.create_connection((host, int(port)), timeout=self._limits.silence_s)
            except OSError as error:
                waited = time.monotonic() - began
                if self._stop.signal is not None and waited > _LEAVE_S:
                    raise StoppedEarly from error
                if waited > self._limits.join_s:
                    raise UnfitError(
                        f"cannot reach the first node's agent at {self._plan.hub}: {error.strerror or error}",
                        "is there a firewall between the nodes?",
                    ) from error
                time.sleep(_POLL_S)

    def _exchange(self) -> None:
        """Hears the hub, and shows it that this agent is there."""
        if self.why_lost:
            return
        now = self._clock.tick(time.monotonic())
        try:
            for message in self._channel.receive():
                self._heard = now
                self._take(message)
        except (ChannelLost, ValueError) as error:
            self._lose(str(error))
            return
        if now - self._heard > self._limits.silence_s and self._channel.is_proven:
            self._lose(f"it has given no sign of life for {self._limits.silence_s:g} s")
            return
        if now >= self._next_beat:
            self._next_beat = now + BEAT_S
            self._say("beat")
        stop = self._stop
        told = (stop.signal, stop.is_insisted_on)
        if stop.signal is not None and told != self._told:
            self._told = told
            self._say("stop", signal=int(stop.signal), reason=stop.reason, insisted=stop.is_insisted_on)

    def _take(self, message: dict[str, Any]) -> None:
        kind = message["kind"]
        if kind == "stop":
            self._stop.hear(message["signal"], message["reason"], insisted=message["insisted"])
        elif kind == "go":
            self._endpoint = message["endpoint"]
        elif kind == "hang":
            self._are_all_silent = True
        elif kind == "down":
            self.must_end = True
        elif kind == "again":
            self._decision = Next.AGAIN
        elif kind == "end":
            self.code, self._decision, self.must_end = message["code"], Next.END, True

    def _lose(self, why: str) -> None:
        print(f"the first node is lost: {why}", file=sys.stderr, flush=True)
        self.why_lost, self.must_end, self._decision = why, True, Next.END
        self._channel.close()

    def _say(self, kind: str, **values: Any) -> None:
        if not self.why_lost:
            self._channel.send({"kind": kind, "time": time.time(), **values})

    def _wait(self) -> None:
        if not self.why_lost:
            select.select([self._channel], [], [], _POLL_S)
