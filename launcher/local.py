"""Runs a plan on this machine: prepares the run directory, starts the agent and hands signals on to it."""

import errno
import fcntl
import os
import shutil
import socket
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from launcher import ports
from launcher.agents import LEFTOVER_GRACE_S, attend, started
from launcher.ending.conclusion import Account
from launcher.hang.watchdog import IDLE_LIMIT_S
from launcher.plan import JobPlan, Program, again_command
from launcher.processes import adopt_orphans, descendants, end_descendants
from trainer.errors import InUseError
from trainer.run import launches, runname
from trainer.run.lease import in_use
from trainer.rundir import RunDir, write_json
from trainer.stop import asked_by

if TYPE_CHECKING:
    from trainer.config import Config

_LEAVE_S = 5.0
"""A launcher may still be there for a moment when its workers have ended, and the run is free."""

_LOOK_S = 0.05
_HERE = Path(__file__).resolve().parent.parent


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
    _await_others(run, time.monotonic() + _LEAVE_S)
    for request in (run.stop, run.stop_now):
        # One that an earlier attempt has not seen any more is not meant for this one.
        with suppress(OSError):
            request.unlink()
    try:
        attempt = take_attempt(run, plan.max_restarts)
    except OSError as error:
        raise runname.unwritable(run.path, error) from error
    try:
        # One that has come at the same moment: the first has the run.
        _await_others(run, 0.0, before=attempt)
        begin(
            run,
            config,
            attempt=attempt,
            argv=argv,
            folder=_code_folder(plan.program),
            nodes=plan.nodes,
            world_size=plan.world_size,
        )
    except InUseError:
        shutil.rmtree(run.log(attempt, 0).parent, ignore_errors=True)
        raise
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


def _await_others(run: RunDir, deadline: float, *, before: int | None = None) -> None:
    """Returns when no other job has the run: neither workers that train, nor a launcher that still starts or leaves.

    Args:
        run: the run.
        deadline: `time.monotonic()` until which a launcher may leave.
        before: launchers of earlier attempts alone count.

    Raises:
        InUseError: another job has it.
    """
    while True:
        if run.is_held():
            raise in_use(run)
        if not [attempt for attempt in run.launched() if before is None or attempt < before]:
            return
        if time.monotonic() > deadline:
            raise in_use(run)
        time.sleep(_LOOK_S)


def take_attempt(run: RunDir, restarts: int) -> int:
    """Makes the folder of an attempt's logs, which makes its number this job's; returns the number.

    Those that follow are this job's, too, as long as it lives: as many as it may need for restarts.

    Raises:
        OSError: the directory cannot be made.
    """
    logs = run.log(0, 0).parent.parent
    made = logs / f".attempt-{socket.gethostname()}-{os.getpid()}"
    made.mkdir(parents=True, exist_ok=True)
    _hold(made)
    try:
        # Before it has its name: who comes next must see at once which numbers are taken.
        write_json(made / run.attempt_restarts(0).name, {"restarts": restarts})
        while True:
            attempt = run.next_attempt()
            try:
                made.rename(run.log(attempt, 0).parent)
            except OSError as error:
                # Another launcher was faster.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            else:
                return attempt
    except OSError:
        shutil.rmtree(made, ignore_errors=True)
        raise


def hold_attempt(run: RunDir, attempt: int) -> None:
    """Shows everybody, as long as this process lives, that there is somebody to wait for."""
    _hold(run.log(attempt, 0).parent)


def _hold(folder: Path) -> None:
    # Without locks a launch that has died is told by the clock alone.
    with suppress(OSError):
        fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX)


def note_restart(run: RunDir, attempt: int) -> None:
    """Writes down an attempt that a scheduler has begun, with what the one before was launched with.

    Raises:
        OSError: it cannot be written.
    """
    last = run.launches()[-1]
    here = {"time": time.time(), "host": socket.gethostname(), "job_id": os.environ.get("SLURM_JOB_ID")}
    launches.note(run, {**last, "attempt": attempt, **here})


def run(plan: JobPlan) -> int:
    """Starts the agent, hands it every signal, and returns the job's exit code (DESIGN's table)."""
    if plan.nodes > 1:
        from launcher.nodes import loopback

        return loopback.run(plan)
    account = Account(plan)
    adopt_orphans()
    before = descendants()
    with started([plan]) as (agents, received):
        limit_s = IDLE_LIMIT_S if plan.hang_timeout_s is None else plan.hang_timeout_s
        hung = attend(agents[0], limit_s)
        # Nothing, unless the agent was killed: then its workers are gone, too, but not what they had started.
        end_descendants(before, grace_s=LEFTOVER_GRACE_S)
    code = agents[0].returncode
    if hung:
        return account.conclude_stopped(limit_s)
    if code >= 0:
        return code
    number = received[0] if received else -code
    return account.conclude_killed(number, asked_by(number) if received else "")


def _code_folder(program: Program) -> Path:
    """Where the code that runs lies, for the question which commit it is."""
    if program.kind == "trainer":
        return _HERE / "trainer"
    if program.kind == "script":
        return Path(program.target).resolve().parent
    package = Path.cwd() / program.target.partition(".")[0]
    return package if package.is_dir() else Path.cwd()
