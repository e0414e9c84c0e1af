"""The processes of agents: how they are started, and how requests to stop are handed on to them."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from launcher.gpus import share
from launcher.hang.stacks import state_of
from launcher.hang.watchdog import Clock
from launcher.plan import JobPlan
from launcher.processes import descendants
from launcher.stop import STOP_SIGNALS
from trainer import wording
from trainer.rundir import RunDir

LEFTOVER_GRACE_S = 1.0
"""Seconds between SIGTERM and SIGKILL for what an agent that was killed has left behind."""

_LOOK_S = 1.0
_TELL_S = 20.0
"""A stopped agent that long is told; it may be looked at with a debugger, or moved."""

# The current directory must not shadow our packages: a user may well have a trainer.py.
_BOOT = "import sys; sys.path[0] = sys.argv.pop(1); from launcher.agent import main; main()"
_HERE = Path(__file__).resolve().parent.parent

Agent = subprocess.Popen[bytes]
"""The process of an agent."""


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
        handlers = {number: signal.signal(number, hand_on) for number in STOP_SIGNALS}
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


def attend(agent: Agent, limit_s: float) -> bool:
    """Waits for an agent's end, and kills one that was stopped for too long while its workers were not.

    Where all of them are stopped, somebody has suspended the job; nor does it count while this process is stopped.

    Args:
        agent: its process.
        limit_s: how long it may be stopped; 0: for ever.

    Returns:
        Whether it was killed.
    """
    clock, stopped_since, is_told = Clock(time.monotonic()), 0.0, False
    while True:
        with suppress(subprocess.TimeoutExpired):
            agent.wait(timeout=_LOOK_S)
            return False
        now = clock.tick(time.monotonic())
        if not _is_stopped_alone(agent.pid):
            stopped_since, is_told = now, False
        elif limit_s and now - stopped_since > limit_s:
            agent.kill()
            agent.wait()
            return True
        elif not is_told and now - stopped_since > min(_TELL_S, (limit_s or math.inf) / 2):
            is_told = True
            ended = f", and it is killed when that has lasted {wording.duration(limit_s)}" if limit_s else ""
            print(
                f"warning: somebody has stopped the agent (SIGSTOP); kill -CONT {agent.pid} lets it go on{ended}",
                file=sys.stderr,
            )


def _is_stopped_alone(pid: int) -> bool:
    if state_of(pid) != ("T", False):
        return False
    below = descendants(root=pid)
    return not below or any(state_of(one)[0] != "T" for one in below)


def environment(plan: JobPlan) -> dict[str, str]:
    """What an agent and its workers find in their environment besides the user's own."""
    ours = {
        variable.name: variable.value for variable in plan.environment if variable.value and variable.source != "you"
    }
    return {
        **ours,
        "PACELINE_RUN_DIR": plan.run_dir,
        "PACELINE_ATTEMPT": str(plan.attempt),
        "PACELINE_STARTED": str(time.time()),
        "PACELINE_DEVICE": plan.device,
    }


def _start(plan: JobPlan) -> Agent:
    variables = {**os.environ, **environment(plan)}
    if plan.nodes > 1 and plan.device == "cuda":
        variables["CUDA_VISIBLE_DEVICES"] = share(
            os.environ.get("CUDA_VISIBLE_DEVICES"), number=plan.node, size=plan.workers_per_node
        )
    with _log_of(plan) as log:
        # A session of its own, so that Ctrl-C reaches the workers once, through us, and not by the terminal.
        return subprocess.Popen(
            [sys.executable, "-c", _BOOT, str(_HERE), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=variables,
            start_new_session=True,
        )


def _log_of(plan: JobPlan) -> AbstractContextManager[BinaryIO | None]:
    """Where an agent's own words go: the first node's to the terminal."""
    if plan.node == 0:
        return nullcontext()
    return RunDir(plan.run_dir).agent_log(plan.attempt, plan.node).open("ab")
