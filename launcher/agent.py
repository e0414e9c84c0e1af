"""One per node: torchrun's elastic agent with warm workers, plus signals, a true verdict and no orphans.

It reads its plan from standard input, imports torch once and forks the workers from there. Nothing here may
touch CUDA, or torch's thread pools, before the fork; torch's `LaunchConfig` does, hence the agent is put
together by hand.
"""

import errno
import fcntl
import gc
import importlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from launcher import memory, verdict, worker
from launcher.output import tidy_terminal
from launcher.plan import JobPlan
from launcher.processes import adopt_orphans, die_with_parent
from launcher.restarts import CRASH_LOOP, Failed, is_crash_loop
from launcher.stop import Stop, StoppedEarly
from launcher.verdict import Exit
from trainer.errors import STOPPED, InUseError, PacelineError, UnfitError
from trainer.run.rows import append_json_line
from trainer.rundir import RunDir, write_json

if TYPE_CHECKING:
    from torch.distributed.elastic.agent.server.api import RunResult
    from torch.distributed.elastic.rendezvous import RendezvousHandler

    from launcher.elastic import Agent

_JOIN_TIMEOUT_S = 600


def main() -> NoReturn:
    """Runs the plan on standard input and ends with the job's exit code."""
    code = run_plan()
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is said; the teardown of torch and of the rendezvous' threads takes a second.
    os._exit(code)


def run_plan() -> int:
    """Runs the plan on standard input; returns the job's exit code."""
    die_with_parent(int(sys.argv[1]))
    adopt_orphans()
    plan = JobPlan.from_json(sys.stdin.read())
    stop = Stop(plan.stop_grace_s)
    stop.listen()
    try:
        with stop.raising():
            _preload(plan)
        return _run(plan, stop)
    except StoppedEarly:
        # Nothing was begun, hence nothing was lost: running it again goes on where the last attempt stopped.
        reason = f"{stop.reason} before the workers were up"
        print(f"{reason}\n  again   {plan.again}", file=sys.stderr)
        _settle(RunDir(plan.run_dir), plan, STOPPED, reason)
        return STOPPED
    except PacelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _run(plan: JobPlan, stop: Stop) -> int:
    from torch.distributed.elastic.multiprocessing import SignalException

    from launcher.elastic import Agent

    run = RunDir(plan.run_dir)
    if plan.program.kind != "trainer":
        _hold(run)
    with _telling_of("status.json"):
        if plan.program.kind != "trainer":
            run.failure.unlink(missing_ok=True)
            run.update_status(state="running", attempt=plan.attempt)
        elif not run.is_held():
            run.failure.unlink(missing_ok=True)
    history: list[Failed] = []

    def is_worth(agent: Agent, result: "RunResult") -> bool:
        failure = verdict.first_failure(_judge(run, plan.attempt + agent.restarts, agent, result))
        cause = (failure.what, failure.message, failure.place) if failure else ("", "", "")
        checkpoint = run.read_status().get("latest") if plan.program.kind == "trainer" else None
        history.append(Failed(cause, checkpoint, agent.seconds))
        return not is_crash_loop(history)

    def on_restart(agent: Agent, result: "RunResult") -> None:
        attempt = plan.attempt + agent.restarts - 1
        _say_restart(plan, run, verdict.first_failure(_judge(run, attempt, agent, result)), attempt)

    agent = Agent(plan, _rendezvous(plan), stop, is_worth=is_worth, on_restart=on_restart)
    try:
        result = agent.run()
    except SignalException as error:
        return 128 + error.sigval
    attempt = plan.attempt + agent.restarts
    exits, reason = _judge(run, attempt, agent, result), ""
    if stop.signal is not None:
        own = verdict.not_asked_for(_exits(run, attempt, agent, result), agent.killed)
        reason = "" if own else _how_it_stopped(stop, agent, plan)
        exits = own or exits
    code = verdict.exit_code(exits, stop.signal if reason else None)
    failure = verdict.first_failure(exits)
    # If it is held although our workers have ended, another job trains here, and what lies here is its own.
    ours = plan.program.kind != "trainer" or not run.is_held()
    if reason:
        _say_stopped(plan, code, reason)
    elif code == STOPPED:
        # The trainer's own reasons, such as max_time.
        print(f"  again   {plan.again}", file=sys.stderr)
    elif failure is not None:
        _say_failed(replace(plan, attempt=attempt), run, failure, code, keep=ours)
        if is_crash_loop(history):
            print(f"  {CRASH_LOOP} failures in a row without progress: it is not tried again", file=sys.stderr)
    if ours:
        _settle(run, plan, code, reason)
    return code


def _hold(run: RunDir) -> None:
    """Takes the run for a program that knows nothing of it, until the last of its processes has ended.

    Raises:
        InUseError: another job has it.
    """
    descriptor = os.open(run.lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise in_use(run) from error
    except OSError as error:
        # A file system without locks; `paceline doctor --storage` says what that means.
        print(f"warning: {run.lock} cannot be locked: {error.strerror}", file=sys.stderr)


def in_use(run: RunDir) -> InUseError:
    """The error for a run that another job trains."""
    return InUseError(
        f"run {run.name} is being trained by another job",
        "another run.name, run.fresh=true beside it, or wait until it has ended",
    )


def _rendezvous(plan: JobPlan) -> "RendezvousHandler":
    """The rendezvous, whose store this agent hosts.

    Raises:
        UnfitError: the port is taken.
    """
    from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousParameters
    from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

    parameters = RendezvousParameters(
        backend="c10d",
        endpoint=plan.endpoint,
        run_id=RunDir(plan.run_dir).name,
        min_nodes=plan.nodes,
        max_nodes=plan.nodes,
        local_addr="127.0.0.1",
        is_host=True,
        timeout=_JOIN_TIMEOUT_S,
        read_timeout=_JOIN_TIMEOUT_S,
    )
    try:
        return get_rendezvous_handler(parameters)
    except RendezvousConnectionError as error:
        if "EADDRINUSE" in str(error.__cause__) or os.strerror(errno.EADDRINUSE) in str(error.__cause__):
            raise busy_port(plan.port) from error
        raise


def busy_port(port: int) -> UnfitError:
    """The error for a rendezvous port that another program listens on."""
    return UnfitError(
        f"cluster.port={port} is in use by another program on {socket.gethostname()}",
        "cluster.port=null takes a free one",
    )


def _preload(plan: JobPlan) -> None:
    """Imports once what every worker would import, most of it lazily."""
    names = ["torch", "torch._dynamo"]
    if plan.program.kind == "trainer":
        names += ["torchvision", "trainer.worker"]
    # As in the trainer's own entry: no search for garbage among what stays; frozen, the forks share it.
    gc.disable()
    for name in names:
        importlib.import_module(name)
    import torch.distributed.elastic.agent.server.local_elastic_agent  # noqa: F401  # makes the loggers below

    if not plan.debug:
        for name in list(logging.root.manager.loggerDict):
            if name.startswith("torch.distributed.elastic") or name == "torch.multiprocessing.spawn":
                # It shows every rank's end, echoes included; the verdict shows the first.
                logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    gc.freeze()
    gc.enable()


def _judge(run: RunDir, attempt: int, agent: "Agent", result: "RunResult") -> list[Exit]:
    """How the workers ended, and who ended too early for the others."""
    return verdict.with_early_end(_exits(run, attempt, agent, result), agent.early_ends())


def _exits(run: RunDir, attempt: int, agent: "Agent", result: "RunResult") -> list[Exit]:
    """How the workers ended, with all that is known of it; after a failure without those ended because of it."""
    if result.return_values:
        host = socket.gethostname()
        return [Exit(rank, int(code or 0), host) for rank, code in sorted(result.return_values.items())]
    exits = []
    for rank, code in agent.exit_codes().items():
        exit = worker.exit_of(run.log(attempt, rank), rank, code)
        if exit.time is not None or rank in result.failures or rank in agent.ended:
            exits.append(exit)
    if any(exit.code == -signal.SIGKILL for exit in exits):
        meaning = memory.meaning(agent.kills_before, memory.count_kills(), memory.memory_limit())
        exits = [replace(exit, meaning=meaning) if exit.code == -signal.SIGKILL else exit for exit in exits]
    if told := run.read_failure(attempt):
        exits = verdict.with_the_trainers_word(exits, told)
    return exits


def _say_restart(plan: JobPlan, run: RunDir, failure: Exit | None, attempt: int) -> None:
    """Shows in a line or two why the workers are started anew, and keeps it among the run's events."""
    if failure is None:
        return
    count = f"restart {attempt - plan.attempt + 1} of {plan.max_restarts}"
    message = failure.message.strip().splitlines()
    print(
        f"✗ attempt {attempt} failed: {failure.what} on rank {failure.rank}{': ' + message[0] if message else ''}\n"
        f"  log     {run.log(attempt, failure.rank)}\n  {count}: the workers are started again",
        file=sys.stderr,
    )
    row = {"event": "attempt_failed", "attempt": attempt, "rank": failure.rank, "type": failure.what}
    with _telling_of("events.jsonl"):
        append_json_line(run.events, {**row, "message": failure.message, "time": time.time()})


def _how_it_stopped(stop: Stop, agent: "Agent", plan: JobPlan) -> str:
    """Who asked, and whether the workers did as they were asked, in words."""
    if not agent.killed:
        return stop.reason
    ranks = f"rank{'s' if len(agent.killed) > 1 else ''} {', '.join(map(str, agent.killed))}"
    late = f"within cluster.grace_seconds={plan.stop_grace_s:g}"
    return f"{stop.reason}; killed {ranks}: {'Ctrl-C came again' if stop.is_insisted_on else f'no end {late}'}"


def _say_stopped(plan: JobPlan, code: int, reason: str) -> None:
    if code == 0:
        return
    tidy_terminal()
    if plan.program.kind != "trainer":
        print(reason, file=sys.stderr)
    elif code != STOPPED:
        print(f"{reason}; no checkpoint of this moment", file=sys.stderr)
    print(f"  again   {plan.again}", file=sys.stderr)


def _say_failed(plan: JobPlan, run: RunDir, failure: Exit, code: int, *, keep: bool) -> None:
    """Shows the first failure and, with `keep`, leaves it in failure.json; what the trainer wrote of it there stays."""
    tidy_terminal()
    row = run.read_failure(plan.attempt)
    log = str(run.log(plan.attempt, failure.rank))
    if row.get("rank") == failure.rank:
        row.setdefault("log", log)
    else:
        row = verdict.failure_row(failure, attempt=plan.attempt, code=code, log=log)
    if keep:
        with _telling_of("failure.json"):
            write_json(run.failure, row)
    if plan.program.kind == "trainer" and failure.rank == 0 and failure.code > 0:
        # Rank 0 has the terminal and has said it.
        told = {"log": row["log"], **verdict.next_step(code, plan.again, ours=True)}
        print("\n".join(f"  {label:<7} {text}" for label, text in told.items()), file=sys.stderr)
    else:
        print(verdict.panel(row, again=plan.again, ours=plan.program.kind == "trainer"), file=sys.stderr)


def _settle(run: RunDir, plan: JobPlan, code: int, reason: str = "") -> None:
    """Leaves no run that claims to be running; a state that the trainer wrote at its end stays.

    Args:
        run: the run.
        plan: the job.
        code: its exit code.
        reason: who asked it to stop and how it did, if that is how it ended.
    """
    state = run.read_status().get("state", "pending")
    if state in ("running", "pending"):
        end = "finished" if code == 0 else "stopped" if code == STOPPED or reason else "failed"
        with _telling_of("status.json"):
            run.update_status(state=end, attempt=plan.attempt, exit_code=code, reason=reason)


@contextmanager
def _telling_of(name: str) -> Generator[None]:
    """Says that a file could not be written, and goes on: the verdict must be heard on a full disk too."""
    try:
        yield
    except OSError as error:
        print(f"warning: cannot write {name}: {error.strerror or error}", file=sys.stderr)


if __name__ == "__main__":
    main()
