"""How the workers of one node have ended, with all that is known of it while their processes can still be asked."""

import mmap
import socket
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, Worker

from launcher.ending import memory
from launcher.ending.postmortem import Evidence, examined
from launcher.plan import JobPlan
from launcher.processes import peak_memory
from launcher.verdict import Exit
from launcher.workers import error_file
from trainer.rundir import RunDir

Member = tuple[Worker, Any]
"""A worker and its process."""


class Ends:
    """The ends of one attempt's workers; made before they are forked, since they write here.

    Args:
        plan: what they run.
        attempt: which attempt it is.

    Attributes:
        good: shared with the workers, a byte for each local rank: the exit code (0 or 75) of one that ended well.
    """

    def __init__(self, plan: JobPlan, attempt: int) -> None:
        self._run, self._attempt = RunDir(plan.run_dir), attempt
        self._is_ours = plan.program.kind == "trainer"
        self._kills_before = memory.count_kills()
        self._peaks: dict[int, int] = {}
        self.good = mmap.mmap(-1, plan.workers_per_node)

    def log(self, rank: int) -> Path:
        """What a rank has printed."""
        return self._run.log(self._attempt, rank)

    def note_peaks(self, members: Sequence[Member]) -> None:
        """Asks for the memory of workers that have ended, before anything here waits for them."""
        for member, process in members:
            if peak := peak_memory(process.pid):
                self._peaks[member.global_rank] = peak

    def codes(self, members: Sequence[Member]) -> dict[int, int]:
        """Global rank -> exit status of each worker that has ended; negative: the signal that did it."""
        return {
            member.global_rank: process.exitcode or self.good[member.local_rank]
            for member, process in members
            if process.exitcode is not None
        }

    def exits(self, members: Sequence[Member], result: RunResult, own: Collection[int]) -> list[Exit]:
        """How the workers have ended; after a failure without those that were ended because of it.

        Args:
            members: all of them.
            result: what the engine says of them.
            own: the ranks that are known to have ended by themselves.
        """
        if result.return_values:
            host = socket.gethostname()
            return [Exit(rank, int(code or 0), host) for rank, code in sorted(result.return_values.items())]
        exits = [self.exit(rank, code) for rank, code in self.codes(members).items()]
        return [exit for exit in exits if exit.time is not None or exit.rank in own]

    def exit(self, rank: int, code: int) -> Exit:
        """How a rank has ended, by its own word, its log and what the kernel says."""
        evidence = Evidence(self.log(rank), self._kills_before, self._peaks.get(rank), self._is_ours)
        return examined(error_file.exit_of(self.log(rank), rank, code), evidence)
