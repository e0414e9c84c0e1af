"""Whether a job that was stopped goes back into Slurm's queue, and how."""

import os
import signal
import subprocess
import sys

from trainer.errors import STOPPED

MOST_REQUEUES = 100
"""A week's job on a partition that preempts every hour or two."""

_BY_SLURM = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_TIMEOUT_S = 60


def is_worth(code: int, asked: int | None, *, state: str, restarts: int, has_progress: bool) -> bool:
    """Whether the job is to run again. Pure.

    Args:
        code: its exit code.
        asked: the signal that asked it to stop; None where no signal did.
        state: Slurm's for the job; empty where it does not answer.
        restarts: how often Slurm has started it again already.
        has_progress: whether it has saved a new checkpoint meanwhile.
    """
    # Warned of its end, or in the grace of a preemption, it still runs; once it is cancelled, or its time is up, it is
    # COMPLETING: then either somebody wanted that, or Slurm queues it again by itself.
    return code == STOPPED and asked in _BY_SLURM and state == "RUNNING" and has_progress and restarts < MOST_REQUEUES


def job_state() -> str:
    """Slurm's state of this job; empty where it does not answer."""
    command = ["squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={os.environ.get('SLURM_JOB_ID', '')}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def requeue() -> None:
    """Has Slurm queue this job again; says so where it does not."""
    command = ["scontrol", "requeue", os.environ["SLURM_JOB_ID"]]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        problem = done.stderr.strip() if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem:
        print(f"warning: Slurm does not queue this job again: {problem}", file=sys.stderr)
