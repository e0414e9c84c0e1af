"""Runs a plan on this machine: prepares the run directory, starts the agent and hands signals on to it."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, BinaryIO

from launcher import ports
from launcher.conclusion import Account, in_use
from launcher.gpus import share
from launcher.plan import JobPlan, Program, again_command
from launcher.processes import adopt_orphans, descendants, end_descendants
from launcher.stop import STOP_SIGNALS, heard
from trainer.run import runname
from trainer.rundir import RunDir
from trainer.stop import asked_by

if TYPE_CHECKING:
    from trainer.config import Config

LEFTOVER_GRACE_S = 1.0
"""Seconds between SIGTERM and SIGKILL for what an agent that was killed has left behind."""

# The current directory must not shadow our packages: a user may well have a trainer.py.
_BOOT = "import sys; sys.path[0] = sys.argv.pop(1); from launcher.agent import main; main()"
_HERE = Path(__file__).resolve().parent.parent

Agent = subprocess.Popen[bytes]
"""The process of an agent."""


def prepare(plan: JobPlan, config: "Config", *, recipe: str, argv: list[str]) -> JobPlan:
    """Makes the run directory and writes config.yaml and job.json; returns the plan with its run and attempt.

    Args:
        plan: the job.
        config: the composed configuration; a copy with the run's final name is frozen.
        recipe: what an unnamed run is called after.
        argv: the command line, for job.json.

    Raises:
        InUseError: another job trains in it.
        UnfitError: the run directory cannot be made or written to, or the rendezvous port is taken.
    """
    from trainer.config import to_yaml
    from trainer.run.provenance import begin

    if plan.port:
        ports.listen(plan.endpoint).close()
    run = RunDir(runname.create(config.run, recipe).absolute())
    if run.is_held():
        raise in_use(run)
    # One that an earlier attempt has not seen any more is not meant for this one.
    with suppress(OSError):
        run.stop.unlink()
    try:
        attempt = _take_attempt(run)
    except OSError as error:
        raise runname.unwritable(run.path, error) from error
    try:
        begin(
            run,
            config,
            attempt=attempt,
            argv=argv,
            folder=_code_folder(plan.program),
            nodes=plan.nodes,
            world_size=plan.world_size,
        )
    except OSError as error:
        # What was not started is no attempt.
        shutil.rmtree(run.log(attempt, 0).parent, ignore_errors=True)
        raise runname.unwritable(run.path, error) from error
    return replace(
        plan,
        run_dir=str(run.path),
        config=to_yaml(replace(config, run=replace(config.run, name=run.name, fresh=False))),
        attempt=attempt,
        again=again_command(plan, run.name),
    )


def _take_attempt(run: RunDir) -> int:
    """Makes the folder of an attempt's logs, which makes its number this job's; returns the number.

    Raises:
        OSError: the directory cannot be made.
    """
    attempt = run.next_attempt()
    run.log(attempt, 0).parent.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            run.log(attempt, 0).parent.mkdir()
        except FileExistsError:
            # Another launcher was faster.
            attempt += 1
        else:
            break
    # Without locks a launch that has died is told by the clock alone.
    with suppress(OSError):
        # Held as long as this process lives, so that everybody sees whether there is somebody to wait for.
        fcntl.flock(os.open(run.log(attempt, 0).parent, os.O_RDONLY), fcntl.LOCK_EX)
    return attempt


def run(plan: JobPlan) -> int:
    """Starts the agent, hands it every signal, and returns the job's exit code (DESIGN's table)."""
    if plan.nodes > 1:
        from launcher import nodes

        return nodes.run(plan)
    account = Account(plan)
    adopt_orphans()
    before = descendants()
    with started([plan]) as (agents, received):
        code = agents[0].wait()
        # Nothing, unless the agent was killed: then its workers are gone, too, but not what they had started.
        end_descendants(before, grace_s=LEFTOVER_GRACE_S)
    if code >= 0:
        return code
    number = received[0] if received else -code
    return account.conclude_killed(number, asked_by(number) if received else "")


@contextmanager
def started(
    plans: Sequence[JobPlan], note: Callable[[int, FrameType | None], None] = lambda number, frame: None
) -> Generator[tuple[list[Agent], list[int]]]:
    """Starts an agent for each plan; gives them, and the requests to stop that come, which are handed on to them.

    Args:
        plans: a node's each.
        note: told of each request.
    """
    received: list[int] = []
    agents: list[Agent] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        note(number, frame)
        for agent in agents:
            if agent.poll() is None:
                # Who asks a third time finds that the agent itself does not answer; its workers die with it.
                agent.send_signal(signal.SIGKILL if received.count(signal.SIGINT) > 2 else number)

    # Held back until both sides have their handlers: a request is never a death.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    handlers = {}
    try:
        agents += map(_start, plans)
        handlers = {number: signal.signal(number, hand_on) for number in heard()}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        for agent, plan in zip(agents, plans, strict=True):
            assert agent.stdin is not None
            # If it has ended already, its exit code says how.
            with suppress(BrokenPipeError):
                agent.stdin.write(plan.to_json().encode())
                agent.stdin.close()
        yield agents, received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _start(plan: JobPlan) -> Agent:
    ours = {
        variable.name: variable.value for variable in plan.environment if variable.value and variable.source != "you"
    }
    environment = {
        **os.environ,
        **ours,
        "PACELINE_RUN_DIR": plan.run_dir,
        "PACELINE_ATTEMPT": str(plan.attempt),
        "PACELINE_STARTED": str(time.time()),
        "PACELINE_DEVICE": plan.device,
    }
    if plan.nodes > 1 and plan.device == "cuda":
        environment["CUDA_VISIBLE_DEVICES"] = share(
            os.environ.get("CUDA_VISIBLE_DEVICES"), number=plan.node, size=plan.workers_per_node
        )
    with _log_of(plan) as log:
        # A session of its own, so that Ctrl-C reaches the workers once, through us, and not by the terminal.
        return subprocess.Popen(
            [sys.executable, "-c", _BOOT, str(_HERE), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )


def _log_of(plan: JobPlan) -> AbstractContextManager[BinaryIO | None]:
    """Where an agent's own words go: the first node's to the terminal."""
    if plan.node == 0:
        return nullcontext()
    return RunDir(plan.run_dir).agent_log(plan.attempt, plan.node).open("ab")


def _code_folder(program: Program) -> Path:
    """Where the code that runs lies, for the question which commit it is."""
    if program.kind == "trainer":
        return _HERE / "trainer"
    if program.kind == "script":
        return Path(program.target).resolve().parent
    package = Path.cwd() / program.target.partition(".")[0]
    return package if package.is_dir() else Path.cwd()
