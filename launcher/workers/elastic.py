"""torchrun's own agent, told to end a failed job in seconds and to turn signals into requests."""

import os
import signal
import sys
import time
from contextlib import suppress
from functools import partial
from typing import Any

from torch.distributed import Store
from torch.distributed.elastic.agent.server.api import RunResult, Worker, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.api import MultiprocessContext
from torch.distributed.elastic.rendezvous import RendezvousHandler

from launcher import verdict
from launcher.ending.outcome import Outcome
from launcher.hang import blame, inquest
from launcher.hang.sighting import Findings
from launcher.hang.watch import HangWatch, Watched
from launcher.nodes.company import Company, Next
from launcher.nodes.rendezvous import ranks_of
from launcher.plan import JobPlan
from launcher.processes import bury_adopted, end_descendants, end_with_parent
from launcher.stop import STOP_SIGNALS, Stop, StopFiles, hand_on
from launcher.verdict import Exit
from launcher.workers import error_file, worker
from launcher.workers.ends import Ends, Member
from launcher.workers.output import Output
from trainer.errors import STOPPED
from trainer.rundir import RunDir, error_beside, read_json

FAILURE_GRACE_S = 2
"""Seconds between a worker's failure and SIGTERM for the others, and between that and SIGKILL."""

_LOOK_S = 1.0
"""Seconds before SIGTERM in which workers are looked at that have not ended although others have, elsewhere."""

LEFTOVER_GRACE_S = 2.0
"""Seconds between SIGTERM and SIGKILL for what workers have started and left behind."""


class Agent(LocalElasticAgent):
    """Runs a plan's workers on this node.

    Args:
        plan: what to run.
        rendezvous: where the agents meet.
        stop: the requests to stop; the workers are asked once, and killed at its deadline.
        company: the job's other agents, who have a say in what this one does.

    Attributes:
        killed: global ranks of workers that had not ended when their time to stop was over.
        ended: exit codes by global rank before the engine saw any failure, and ended the others because of it.
    """

    def __init__(
        self,
        plan: JobPlan,
        rendezvous: RendezvousHandler,
        stop: Stop,
        company: Company,
    ) -> None:
        spec = WorkerSpec(
            role="trainer",
            local_world_size=plan.workers_per_node,
            entrypoint=worker.run,
            rdzv_handler=rendezvous,
            max_restarts=plan.max_restarts,
            monitor_interval=0.05,
            local_addr="127.0.0.1",
        )
        super().__init__(spec, DefaultLogsSpecs(log_dir=os.devnull), start_method="fork")
        self._stop = stop
        self._asked = False
        self.killed: list[int] = []
        self._findings: Findings | None = None
        self._watch: HangWatch | None = None
        self.ended: dict[int, int] = {}
        self._company = company
        self._started = time.monotonic()
        self._is_shut_down = False
        self._end_at: float | None = None
        self._result = RunResult(WorkerState.HEALTHY)
        self._outcome: Outcome | None = None
        # One agent does for all of them.
        ours, looks = plan.program.kind == "trainer", plan.node == 0
        self._stop_files = StopFiles(RunDir(plan.run_dir), ours=ours) if looks else None
        self._plan = plan
        self._ends = Ends(plan, plan.attempt)
        self._output: Output | None = None

    @property
    def restarts(self) -> int:
        """How often the workers were started anew."""
        return self._worker_group.spec.max_restarts - self._remaining_restarts

    @property
    def attempt(self) -> int:
        """The attempt that runs."""
        return self._plan.attempt + self.restarts

    def outcome(self, result: RunResult) -> Outcome:
        """How the attempt has ended that runs."""
        workers = self._worker_group.workers
        returned = {workers[rank].global_rank: code for rank, code in self._context()._return_values.items()}
        good = [rank for rank, code in (returned | self.ended).items() if code in (0, STOPPED)]
        exits = tuple(
            exit
            for exit in self._ends.exits(self._members(), result, [*result.failures, *self.ended])
            if not (self._hangs and verdict.is_failure(exit))
        )
        findings = (self._findings,) if self._findings is not None else ()
        outcome = Outcome(
            self.attempt, time.monotonic() - self._started, exits, tuple(good), tuple(self.killed), findings
        )
        # Of several nodes the hub judges what all have seen.
        return outcome if self._plan.hub else inquest.concluded(outcome, self._ends.log(0).parent, asked=self._asked)

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        # The last attempt's store ends with what refers to it, and its port is free.
        self._store = worker_group.store = None
        super()._rendezvous(worker_group)

    def _assign_worker_ranks(
        self, store: Store, group_rank: int, group_world_size: int, spec: WorkerSpec
    ) -> list[Worker]:
        """In the order of the nodes; the engine would ask the store, which would wait for who is not there."""
        return ranks_of(group_rank, nodes=group_world_size, size=spec.local_world_size)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self._stop.check()
        # SIGKILL was right for as long as there was nobody below to be ended first.
        end_with_parent()
        self._started, self._is_shut_down = time.monotonic(), False
        self._end_at, self._result, self._outcome = None, RunResult(WorkerState.HEALTHY), None
        self._ends = Ends(self._plan, self.attempt)
        # The job's first worker alone has the terminal.
        self._output = output = Output(self._ends.log(0)) if self._plan.node == 0 else None
        self._findings, self._watch = None, HangWatch(self._plan, self.attempt)
        worker_group.spec.args = (self._plan, output, self._ends.good, self._watch)
        # The engine would turn these into a shutdown; SIGQUIT remains for that.
        os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"
        # A worker takes a signal only once it has its own handlers.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            pids = super()._start_workers(worker_group)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
            if output:
                output.close()
        group: Any = self._context()._pc
        # The engine calls it without a grace period, which then is 30 s.
        group.join = partial(group.join, grace_period=FAILURE_GRACE_S)
        return pids

    def _shutdown(self, *arguments: Any, **options: Any) -> None:
        # Called at the end of every attempt, however it ended; by the engine, too, when we have done it already.
        if self._is_shut_down:
            return
        self._is_shut_down = True
        # They have ended, if they can: one that waits in the kernel does not within the engine's 30 s either.
        super()._shutdown(*arguments, **(options if arguments else {"timeout": FAILURE_GRACE_S}))
        output, self._output = self._output, None
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        left = end_descendants([output.pid] if output else [], grace_s=LEFTOVER_GRACE_S)
        if output:
            output.drain()
            # On a full disk the record may still have found room.
            with suppress(OSError):
                error_file.append_traceback(output.log, read_json(error_beside(output.log)))
        if left:
            print(f"warning: cannot be ended: process {', '.join(map(str, left))}", file=sys.stderr)

    def _exit_barrier(self) -> None:
        """None: the company has decided that this agent ends."""

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        self._ends.note_peaks(self._members())
        bury_adopted([process.pid for process in self._processes()] + ([self._output.pid] if self._output else []))
        if self._stop_files:
            self._stop_files.look(self._stop)
        self._pass_on_stop()
        if self._outcome is None:
            self._result = self._look_at_workers(worker_group)
            if self._result.state is WorkerState.HEALTHY:
                return self._result
            # Who judges shall find everything ended, and everything printed.
            self._shutdown()
            self._outcome = self.outcome(self._result)
        self._company.look(failing=False)
        decision = self._company.decide(self._outcome)
        if decision is Next.WAIT:
            return RunResult(WorkerState.HEALTHY)
        if decision is Next.END:
            self._end_restarts()
            return self._result
        return RunResult(WorkerState.FAILED)

    def _look_at_workers(self, worker_group: WorkerGroup) -> RunResult:
        """How the workers are; when one has failed, or the company demands it, all of them are ended."""
        self._count_good_ends()
        self.ended = self._ends.codes(self._members())
        bad = any(code not in (0, STOPPED) for code in self.ended.values())
        failing = bad and not self._is_stopping_in_order()
        self._company.look(failing=failing)
        self._look_for_hang()
        if self._company.must_end or self._hangs:
            # Also if one does not end, since it waits in the kernel: nobody waits for that one.
            return self._end_workers()
        if not failing and self._alive():
            # Not the engine's to see yet: it would take the end of one that has nothing to save for a failure, and
            # end the others, which may still be saving.
            return RunResult(WorkerState.HEALTHY)
        return super()._monitor_workers(worker_group)

    def _end_workers(self) -> RunResult:
        """Ends workers who are at a loss without another node's; they have a moment to say what they know of it."""
        now = time.monotonic()
        self._end_at = self._end_at or now + FAILURE_GRACE_S
        if now < self._end_at and self._alive():
            return RunResult(WorkerState.HEALTHY)
        self._context().close(signal.SIGTERM, FAILURE_GRACE_S)
        return RunResult(WorkerState.FAILED)

    def _end_restarts(self) -> None:
        self._worker_group.spec.max_restarts = self.restarts
        self._remaining_restarts = 0

    def _look_for_hang(self) -> None:
        if self._watch is None or self._asked or self._findings is not None:
            return
        here = [Watched(member.global_rank, member.local_rank, process.pid) for member, process in self._alive()]
        if self._company.must_end:
            # Not before: most find out by themselves, and one that is just ending is no suspect.
            if here and self._end_at is not None and time.monotonic() > self._end_at - _LOOK_S:
                self._findings = self._watch.look_around(here)
                self._company.tell(self._findings)
            return
        self._findings = self._watch.find(here, self._ended_exits(), self._company.all_silent)
        if self._findings is None:
            return
        self._company.tell(self._findings)
        if self._hangs or blame.culprits(self._findings.seen):
            # At once: what one that waits would say of the others' end is no news.
            for one in here:
                os.kill(one.pid, signal.SIGKILL)

    @property
    def _hangs(self) -> bool:
        """Whether the job was found to hang, and its workers have been killed for that."""
        return self._findings is not None and self._findings.silent_s is not None

    def _pass_on_stop(self) -> None:
        if self._stop.signal is None:
            return
        if not self._asked:
            self._asked = True
            # What comes now is the end that was asked for, not a failure to recover from.
            self._end_restarts()
            pids = [process.pid for _, process in self._alive()]
            hand_on(self._stop.signal, pids, ours=self._plan.program.kind == "trainer")
        elif self._stop.is_over and not self.killed:
            for member, process in self._alive():
                self.killed.append(member.global_rank)
                os.kill(process.pid, signal.SIGKILL)

    def _is_stopping_in_order(self) -> bool:
        """Whether workers were asked to stop and have their time, and all that have ended did so as asked."""
        if not self._asked or self._stop.is_over:
            return False
        if self._plan.program.kind == "trainer":
            return all(code in (0, STOPPED) for code in self.ended.values())
        return not verdict.not_asked_for(self._ended_exits())

    def _ended_exits(self) -> list[Exit]:
        return [self._ends.exit(rank, code) for rank, code in self.ended.items()]

    def _count_good_ends(self) -> None:
        """Gives the engine the results of workers that have ended; it would await them for ever."""
        for local_rank, process in enumerate(self._processes()):
            if process.exitcode == 0:
                self._context()._return_values.setdefault(local_rank, self._ends.good[local_rank])

    def _alive(self) -> list[Member]:
        """The workers here that have not ended."""
        return [(member, process) for member, process in self._members() if process.is_alive()]

    def _members(self) -> list[Member]:
        return list(zip(self._worker_group.workers, self._processes(), strict=True))

    def _processes(self) -> list[Any]:
        context = self._context()
        return list(context._pc.processes) if context._pc is not None else []

    def _context(self) -> MultiprocessContext:
        assert isinstance(self._pcontext, MultiprocessContext)
        return self._pcontext
