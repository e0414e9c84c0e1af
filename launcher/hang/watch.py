"""The watch over this machine's workers: what they share with it, when it looks, and what it sees of a hang."""

import faulthandler
import mmap
import os
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from launcher import verdict
from launcher.ending.postmortem import tail
from launcher.hang import spinning, stacks, waiting
from launcher.hang.activity import Activity
from launcher.hang.flights import FlightRecorder
from launcher.hang.sighting import Below, Findings, Sighting, thinned
from launcher.hang.stacks import Stacks
from launcher.hang.watchdog import FIRST_LIMIT_S, IDLE_LIMIT_S, Clock, Sign, Watchdog
from launcher.plan import JobPlan
from launcher.verdict import Exit
from trainer import heartbeat
from trainer.heartbeat import Heartbeat, Phase
from trainer.rundir import RunDir
from trainer.trouble import peers

_IDLE_PHASES = (None, Phase.START, Phase.END)


@dataclass(frozen=True, slots=True)
class Watched:
    """A worker that has not ended.

    Attributes:
        rank: its global rank.
        local_rank: its rank on this machine.
        pid: its process.
    """

    rank: int
    local_rank: int
    pid: int


class HangWatch:
    """Looks after the workers of one attempt; made before they are forked, so that they share its memory.

    Args:
        plan: what they run.
        attempt: which attempt it is.
    """

    def __init__(self, plan: JobPlan, attempt: int) -> None:
        self._plan, self._run, self._attempt = plan, RunDir(plan.run_dir), attempt
        self._tells = plan.program.kind == "trainer"
        memory = memoryview(mmap.mmap(-1, heartbeat.NBYTES * plan.workers_per_node))
        self._words = [
            memory[local * heartbeat.NBYTES : (local + 1) * heartbeat.NBYTES].cast("q")
            for local in range(plan.workers_per_node)
        ]
        self._hearts = [Heartbeat(words) for words in self._words]
        self._written = [os.memfd_create("stacks") for _ in self._words]
        folder = self._run.log(attempt, 0).parent
        self._flights = FlightRecorder(folder) if plan.device == "cuda" else None
        self._clock = Clock(time.monotonic())
        self._dog = Watchdog(plan.hang_timeout_s)
        self._examined_until = 0.0
        self._activity = Activity(plan.hang_timeout_s or IDLE_LIMIT_S, self._glance, spinning.begin)

    def join(self, local_rank: int) -> None:
        """Makes this process one that is watched; called in the worker."""
        faulthandler.register(stacks.STACKS_SIGNAL, file=self._written[local_rank], all_threads=True)
        heartbeat.beat_in(self._words[local_rank])
        if self._flights is not None:
            self._flights.join()

    def close(self) -> None:
        """Lets go of what was shared with workers that have ended."""
        for descriptor in self._written:
            os.close(descriptor)
        self._written = []
        if self._flights is not None:
            self._flights.close()

    def find(
        self, workers: Collection[Watched], ended: Sequence[Exit], all_silent: Callable[[bool], bool]
    ) -> Findings | None:
        """What is seen of a hang of this job, if it has come to that.

        Where a rank has ended since it waited for another one in vain, this is where those are that are still there.

        Args:
            workers: that have not ended.
            ended: how those that have did, with their own word of it.
            all_silent: told whether these are silent for too long, it knows whether those of all machines are.
        """
        if not any(map(verdict.is_failure, ended)):
            return self._look(workers, all_silent)
        silent = self._silent(ended)
        return self._seen(workers, gave_up=silent) if silent else None

    def look_around(self, workers: Collection[Watched]) -> Findings:
        """Where workers are that must end since those of another machine have failed, perhaps for want of an answer."""
        return self._seen(workers)

    def _silent(self, ended: Sequence[Exit]) -> dict[int, str]:
        """Rank -> what it said, of workers that have ended because another one did not answer, if that is all."""
        first = verdict.first_failure(ended)
        if first is None or not (first.is_silence or first.is_echo):
            return {}
        said = {exit.rank: exit.message for exit in ended if exit.is_silence}
        for exit in ended:
            # NCCL's own watchdog aborts the process; why it did is in the log alone.
            lines = tail(self._run.log(self._attempt, exit.rank)).splitlines() if exit.is_echo else []
            if line := next(filter(peers.is_silent, reversed(lines)), ""):
                said[exit.rank] = line
        return said

    def _look(self, workers: Collection[Watched], all_silent: Callable[[bool], bool]) -> Findings | None:
        if self._plan.hang_timeout_s == 0 or not workers:
            return None
        silent_s, seen = self._silence(workers), None
        if silent_s is not None and self._clock.time >= self._examined_until:
            seen = self._seen(workers)
            if self._is_excused(seen.seen, silent_s):
                self._dog.excuse(self._clock.time)
                silent_s = None
            else:
                # Good reasons are looked for again after as much time as is granted at least.
                self._examined_until = self._clock.time + self._dog.least_s
        if not all_silent(silent_s is not None):
            return None
        seen = seen or self._seen(workers)
        if self._plan.nodes == 1:
            # That took a moment, in which some may have gone on. What all machines have agreed on stays so.
            silent_s = self._silence(workers)
            if silent_s is None or not all(one.stacks.state for one in seen.seen):
                return None
        return replace(seen, silent_s=silent_s or 0.0)

    def _silence(self, workers: Collection[Watched]) -> float | None:
        now = self._clock.tick(time.monotonic())
        return self._dog.look(now, self._signs(now, workers))

    def _signs(self, now: float, workers: Collection[Watched]) -> dict[int, Sign]:
        phases = {one.rank: self._hearts[one.local_rank].phase if self._tells else None for one in workers}
        idle = {one.rank: one.pid for one in workers if phases[one.rank] in _IDLE_PHASES}
        # Of the others it must be known in time whether they are only slow.
        suspects = self._dog.silent_s(now) > self._dog.least_s / 2
        looked_at = {one.rank: one.pid for one in workers} if suspects else idle
        logs = {rank: self._run.log(self._attempt, rank) for rank in looked_at}
        marks = self._activity.look(now, looked_at, logs) if looked_at else {}
        marks = {rank: mark for rank, mark in marks.items() if rank in idle}
        return {
            one.rank: Sign((self._hearts[one.local_rank].beats, marks.get(one.rank)), phases[one.rank])
            for one in workers
        }

    def _glance(self, pids: Collection[int]) -> dict[int, Stacks]:
        return stacks.take(pids, {}, native=False)

    def _seen(self, workers: Collection[Watched], gave_up: Mapping[int, str] | None = None) -> Findings:
        written = {one.pid: self._written[one.local_rank] for one in workers}
        taken = stacks.take(written.keys(), written, native=True)
        host = socket.gethostname()
        seen = [Sighting(rank, Stacks(""), host, gave_up=message) for rank, message in (gave_up or {}).items()]
        for one in workers:
            heart = self._hearts[one.local_rank]
            sighting = Sighting(one.rank, taken[one.pid], host, busy=self._activity.is_busy(one.rank))
            if self._tells:
                sighting = replace(sighting, phase=heart.phase, beats=heart.beats, step=heart.last_step)
            seen.append(sighting)
        pids = {one.rank: one.pid for one in workers}
        for number, one in enumerate(seen):
            if one.rank in pids and not (one.waits or one.is_stopped):
                found = stacks.below(pids[one.rank], written[pids[one.rank]])
                seen[number] = replace(one, below=tuple(Below(pid, where) for pid, where in found.items()))
        if self._flights is not None:
            self._flights.dump([one.rank for one in seen])
        return Findings(thinned(sorted(seen, key=lambda one: one.rank)), silent_s=None)

    def _is_excused(self, seen: Sequence[Sighting], silent_s: float) -> bool:
        """Whether there is a good reason for a silence."""
        if self._plan.hang_timeout_s is None and silent_s < FIRST_LIMIT_S and any(one.gets_on for one in seen):
            # What was learnt need not hold for ever: other data, a storage that stalls.
            return True
        # All of them, be it the only one: somebody has paused the job. Nobody hangs, and nobody waits in vain.
        return all(one.is_stopped for one in seen) or any(
            one.stacks.traced or (not one.is_stopped and waiting.excuse(one.frames, silent_s, self._data_timeout_s()))
            for one in seen
        )

    def _data_timeout_s(self) -> float | None:
        # Who sets a time for all means the data, too.
        if not self._tells or self._plan.hang_timeout_s is not None:
            return None
        from trainer.config import from_yaml

        return from_yaml(self._plan.config).data.timeout_s
