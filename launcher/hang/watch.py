"""The watch over this machine's workers: what they share with it, when it looks, and what it finds out of a hang."""

import faulthandler
import mmap
import os
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from launcher import verdict
from launcher.ending.postmortem import tail
from launcher.hang import blame, flights, stacks, waiting
from launcher.hang.activity import Activity
from launcher.hang.blame import Sighting
from launcher.hang.flights import FlightRecorder
from launcher.hang.stacks import Stacks
from launcher.hang.watchdog import IDLE_LIMIT_S, Clock, Sign, Silence, Watchdog
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
        self._flights = FlightRecorder(self._folder) if plan.device == "cuda" else None
        self._clock = Clock(time.monotonic())
        self._dog = Watchdog(plan.hang_timeout_s)
        self._examined_until = 0.0
        self._activity = Activity(plan.hang_timeout_s or IDLE_LIMIT_S, self._glance)

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
    ) -> Exit | None:
        """A hang of this job as the end of the rank that is its cause, if it has come to that.

        Where a rank has ended since it waited for another one in vain, this tells for which one, while that is there.

        Args:
            workers: that have not ended.
            ended: how those that have did, with their own word of it.
            all_silent: told whether these are silent for too long, it knows whether those of all machines are.
        """
        well = [exit.rank for exit in ended if exit.code == 0]
        if len(well) == len(ended):
            return self._look(workers, well, all_silent)
        silent = self._silent(ended)
        return self._gave_up(workers, silent, well) if silent else None

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

    def suspect(self, workers: Collection[Watched]) -> Exit | None:
        """Who might be the cause where workers of another machine have failed; counts if those only gave up waiting."""
        seen = self._see(workers)
        named = blame.culprits(seen)
        return replace(self._found(seen, None), is_vague=True) if named else None

    def _look(
        self, workers: Collection[Watched], ended: Collection[int], all_silent: Callable[[bool], bool]
    ) -> Exit | None:
        if self._plan.hang_timeout_s == 0 or not workers:
            return None
        silence, seen = self._silence(workers), []
        if silence is not None and self._clock.time >= self._examined_until:
            seen = self._see(workers)
            if self._is_excused(seen, silence):
                self._dog.excuse(self._clock.time)
                silence = None
            else:
                # Good reasons are looked for again after as much time as is granted at least.
                self._examined_until = self._clock.time + self._dog.least_s
        all_are = all_silent(silence is not None)
        if silence is None or not all_are:
            return None
        seen = seen or self._see(workers)
        # That took a moment, in which some may have gone on.
        silence = self._silence(workers)
        if silence is None or not all(one.stacks.state for one in seen):
            return None
        return self._found([*seen, *(Sighting(rank, Stacks(""), ended=True) for rank in ended)], silence)

    def _gave_up(self, workers: Collection[Watched], silent: Mapping[int, str], ended: Collection[int]) -> Exit | None:
        gone = [Sighting(rank, Stacks(""), gave_up=message) for rank, message in silent.items()]
        seen = [*self._see(workers), *gone, *(Sighting(rank, Stacks(""), ended=True) for rank in ended)]
        return self._found(seen, None) if blame.culprits(seen) and workers else None

    def _silence(self, workers: Collection[Watched]) -> Silence | None:
        now = self._clock.tick(time.monotonic())
        return self._dog.look(now, self._signs(now, workers))

    def _signs(self, now: float, workers: Collection[Watched]) -> dict[int, Sign]:
        phases = {one.rank: self._hearts[one.local_rank].phase if self._tells else None for one in workers}
        idle = {one.rank: one.pid for one in workers if phases[one.rank] in _IDLE_PHASES}
        logs = {rank: self._run.log(self._attempt, rank) for rank in idle}
        marks = self._activity.look(now, idle, logs) if idle else {}
        return {
            one.rank: Sign((self._hearts[one.local_rank].beats, marks.get(one.rank)), phases[one.rank])
            for one in workers
        }

    def _glance(self, pids: Collection[int]) -> dict[int, Stacks]:
        return stacks.take(pids, {}, native=False)

    def _see(self, workers: Collection[Watched]) -> list[Sighting]:
        written = {one.pid: self._written[one.local_rank] for one in workers}
        taken = stacks.take(written.keys(), written, native=True)
        return [
            Sighting(
                one.rank,
                taken[one.pid],
                beats=self._hearts[one.local_rank].beats if self._tells else None,
                step=self._hearts[one.local_rank].last_step if self._tells else None,
                busy=self._activity.is_busy(one.rank),
            )
            for one in workers
        ]

    def _is_excused(self, seen: Sequence[Sighting], silence: Silence) -> bool:
        """Whether there is a good reason for a silence."""
        # All of them, be it the only one: somebody has paused the job. Nobody hangs, and nobody waits in vain.
        return all(one.is_stopped for one in seen) or any(
            one.stacks.traced
            or (not one.is_stopped and waiting.excuse(one.frames, silence.seconds, self._data_timeout_s()))
            for one in seen
        )

    def _data_timeout_s(self) -> float | None:
        # Who sets a time for all means the data, too.
        if not self._tells or self._plan.hang_timeout_s is not None:
            return None
        from trainer.config import from_yaml

        return from_yaml(self._plan.config).data.timeout_s

    def _found(self, seen: list[Sighting], silence: Silence | None) -> Exit:
        records = self._flights.dump([one.rank for one in seen]) if self._flights is not None else {}
        behind, collectives = flights.compare(records)
        seen = sorted((replace(one, missing=one.rank in behind) for one in seen), key=lambda one: one.rank)
        file = self._folder / ("stacks.txt" if self._plan.nodes == 1 else f"stacks-node-{self._plan.node}.txt")
        # The verdict must be heard on a full disk, too.
        with suppress(OSError):
            file.write_text("\n".join(part for part in (collectives, blame.report(seen)) if part))
        host = socket.gethostname()
        return blame.judge(seen, silence, now=time.time(), host=host, stacks=str(file), collectives=collectives)

    @property
    def _folder(self) -> Path:
        return self._run.log(self._attempt, 0).parent
