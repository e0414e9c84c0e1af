"""A worker's side of the launch: from the fork to the first line of the user's program, and its end."""

import atexit
import faulthandler
import mmap
import multiprocessing
import os
import runpy
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from launcher.plan import JobPlan, Program
from launcher.processes import die_with_parent
from launcher.stop import STOP_SIGNALS
from launcher.streams import give_back
from launcher.workers import error_file
from launcher.workers.output import Output
from trainer.cores import from_list
from trainer.errors import STOPPED, PacelineError
from trainer.rundir import RunDir

if TYPE_CHECKING:
    from launcher.hang.watch import HangWatch

_FINISH_LIMIT_S = 2.0


def run(plan: JobPlan, output: Output | None, good_ends: mmap.mmap, watch: "HangWatch") -> NoReturn:
    """Runs the plan's program in a forked worker of torchrun's agent.

    Args:
        plan: the job.
        output: where the job's first worker writes; the others' output goes to their logs only. None on the other
            nodes.
        good_ends: shared with the agent, a byte for each local rank: the exit code (0 or 75) of one that ended well.
            The process itself then ends with 0, since for the engine anything else is a failure. Returning to
            the engine would keep the process until all have ended, and with it the connections in which a worker
            that goes on waits for this one.
        watch: of the agent, over hangs.
    """
    attempt = _enter(plan, output)
    watch.join(int(os.environ["LOCAL_RANK"]))
    log = RunDir(plan.run_dir).log(attempt, int(os.environ["RANK"]))
    try:
        code, error = _run_program(plan), None
    except SystemExit as end:
        code, error = _exit_status(end), end
    except BaseException as end:
        code, error = end.exit_code if isinstance(end, PacelineError) else 1, end
    if code in (0, STOPPED):
        _finish(plan.program)
        good_ends[int(os.environ["LOCAL_RANK"])] = code
        os._exit(0)
    error_file.record(error, log, show=plan.debug)
    _finish_soon(plan.program, code)
    # Python's teardown would only delay the news, and can hang in a collective's thread.
    os._exit(code)


def _enter(plan: JobPlan, output: Output | None) -> int:
    """Makes the forked process a worker; returns the attempt, which counts the agent's restarts."""
    agent = multiprocessing.parent_process()
    assert agent is not None
    assert agent.pid is not None
    die_with_parent(agent.pid)
    # Whoever ends its own process group means its children, not the agent and the other workers.
    os.setsid()
    for number in (*STOP_SIGNALS, signal.SIGQUIT, signal.SIGCONT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    attempt = plan.attempt + int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    os.environ["PACELINE_ATTEMPT"] = str(attempt)
    if output and int(os.environ["RANK"]) == 0:
        output.become()
    else:
        if output:
            output.close()
        _redirect(RunDir(plan.run_dir).log(attempt, int(os.environ["RANK"])))
    give_back()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # TextIOWrapper outside of tests
    faulthandler.enable()
    if plan.cores:
        _bind(plan.cores[int(os.environ["LOCAL_RANK"])])
    if "numpy" in sys.modules:
        # Without the fork each would have a seed of its own; Python's random does this by itself.
        sys.modules["numpy"].random.seed()
    if plan.program.kind != "trainer":
        # The agent blocked them over the fork, so that none meets its handlers here; our trainer lets them in itself.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    return attempt


def _bind(cores: str) -> None:
    """Keeps this process on some cores, with all that it starts; before any thread of it is there."""
    try:
        os.sched_setaffinity(0, from_list(cores))
    except OSError as error:
        # Somebody has changed the cpuset since the plan was made.
        print(f"warning: cannot be bound to cores {cores}: {error.strerror}", file=sys.stderr)


def _redirect(log: Path) -> None:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError as error:
        # As with the first worker's: a job goes on without its logs.
        sys.stderr.write(f"warning: {log} cannot be written and is given up: {error.strerror}\n")
        descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _run_program(plan: JobPlan) -> int:
    program = plan.program
    if program.kind == "trainer":
        from trainer.__main__ import main

        sys.argv = [program.target]
        # As with `python -m trainer`: models and data sets of one's own lie in the current directory.
        sys.path.insert(0, str(Path.cwd()))
        return main(plan.config)
    # A user's script may have modules of these names beside it, and must get its own.
    for name in [name for name in sys.modules if name.partition(".")[0] in ("launcher", "trainer")]:
        del sys.modules[name]
    sys.argv = [program.target, *program.arguments]
    if program.kind == "script":
        sys.path.insert(0, str(Path(program.target).resolve().parent))
        runpy.run_path(program.target, run_name="__main__")
    else:
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module(program.target, run_name="__main__", alter_sys=True)
    return 0


def _finish(program: Program) -> None:
    """What a forked process leaves out at its end: waits for the program's threads, calls its atexit's."""
    if program.kind != "trainer":
        for thread in threading.enumerate():
            if thread is not threading.main_thread() and not thread.daemon:
                thread.join()
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        # As at Python's own end: one that the program has closed, or put something else in place of, is its affair.
        with suppress(AttributeError, ValueError):
            stream.flush()


def _finish_soon(program: Program, code: int) -> None:
    """The same after a failure, which must reach the other workers within seconds."""
    limit = threading.Timer(_FINISH_LIMIT_S, os._exit, (code,))
    limit.daemon = True
    limit.start()
    _finish(program)


def _exit_status(exit: SystemExit) -> int:
    if exit.code is None:
        return 0
    if isinstance(exit.code, int):
        return exit.code & 0xFF
    print(exit.code, file=sys.stderr)
    return 1
