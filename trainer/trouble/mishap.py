"""What a failure means, told once: in a few lines on the terminal, in failure.json, with its traceback in the log."""

import os
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.errors import PacelineError
from trainer.run import environment
from trainer.run.patience import saying_if_slow
from trainer.rundir import RunDir, read_json, write_json_once
from trainer.terminal.console import Console
from trainer.trouble import frames, peers

_OTHER_RANKS_S = 2.0


@dataclass(frozen=True, slots=True)
class Attempt:
    """Which attempt at which run an error belongs to.

    Attributes:
        run: the run directory.
        number: the attempt's, from 0.
        is_ours: whether the run is this job's already; else the error is told beside the attempt's logs alone.
    """

    run: RunDir
    number: int
    is_ours: bool


def report(error: Exception, attempt: Attempt | None, console: Console) -> int:
    """Tells an error in a few lines and keeps the rest in failure.json; returns the exit code."""
    rank = int(os.environ.get("RANK", "0"))
    code = error.exit_code if isinstance(error, PacelineError) else 1
    problem, fix = explain(error)
    if is_echo(error):
        # The collective's own words, in the traceback, name a socket and not a cause.
        problem, fix = "another worker ended, and this one cannot go on alone", "the first error is that worker's"
    is_told = False
    if attempt is not None:
        slow = f"{problem}; {attempt.run.path} does not answer, and the record of the error waits for its storage"
        with saying_if_slow(console.warn, slow):
            if attempt.run.path.exists():
                is_told, fix = _keep(error, attempt, rank=rank, code=code, meaning=problem, advice=fix)
    if is_told and not is_echo(error):
        return code
    console.close()
    console.error(problem, fix)
    return code


def is_known(attempt: Attempt, message: str | None) -> bool:
    """Whether another rank has told its error (this very one, if `message` is given); waits a little for it."""
    deadline = time.monotonic() + _OTHER_RANKS_S
    while time.monotonic() < deadline:
        told = read_json(attempt.run.attempt_failure(attempt.number))
        if told and message in (None, told.get("message")):
            return True
        time.sleep(0.05)
    return False


def is_echo(error: Exception) -> bool:
    """Whether an error only says that another worker is gone."""
    others = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return others and not isinstance(error, PacelineError) and peers.is_gone(str(error))


def explain(error: Exception) -> tuple[str, str]:
    """What an exception means, and what to try."""
    if isinstance(error, PacelineError):
        return error.problem, error.fix
    if isinstance(error, torch.OutOfMemoryError):
        return f"out of GPU memory: {str(error).splitlines()[0]}", (
            "a smaller micro_batch_size (same samples and weighting: accumulation follows from it)"
        )
    if "unused" in str(error) and "reduction" in str(error):
        return "parameters of the model took no part in the loss, so their gradients cannot be averaged", (
            "freeze them with requires_grad_(False), or use them; the traceback names them"
        )
    if peers.is_silent(str(error)):
        return "another worker has not answered for distributed.timeout_s: it hangs, or is much slower than the rest", (
            "look at the workers' logs; where one may take that long (a first step, a slow disk), a longer "
            "distributed.timeout_s"
        )
    outside = isinstance(error, IndexError) and str(error).startswith("Target ")
    if outside or "device-side assert" in str(error):
        # A GPU does not say which index; in a training there is hardly another one.
        said = str(error).splitlines()[0].rstrip(".")
        return f"a target of the data is none of its classes ({said})", (
            "targets count from 0 to the number of classes less one; device=cpu names the value and the place"
        )
    where = frames.innermost(traceback.extract_tb(error.__traceback__))
    at = f" ({Path(where.filename).name}:{where.lineno} in {where.name})" if where else ""
    return f"{type(error).__name__}: {error}{at}", ""


def describe(error: Exception, attempt: Attempt, *, rank: int, code: int, meaning: str, advice: str) -> dict[str, Any]:
    """The content of failure.json."""
    row: dict[str, Any] = {
        "rank": rank,
        "host": environment.host(),
        "attempt": attempt.number,
        "type": type(error).__name__,
        "message": str(error),
        "traceback": "".join(traceback.format_exception(error)),
        "meaning": meaning,
        "advice": advice,
        "exit_code": code,
        "time": time.time(),
    }
    if isinstance(error, PacelineError) and error.details:
        row["details"] = error.details
    return row


def _log(error: Exception, attempt: Attempt, rank: int) -> None:
    """Adds the traceback to the rank's own log, whoever tells the error."""
    with suppress(OSError):
        log = attempt.run.log(attempt.number, rank)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as stream:
            stream.write("".join(traceback.format_exception(error)))


def _keep(error: Exception, attempt: Attempt, *, rank: int, code: int, meaning: str, advice: str) -> tuple[bool, str]:
    """Writes failure.json unless another rank was first; whether one was, and the advice with where the traceback is.

    The state is rank 0's to write, as all of status.json: from another process it could undo a change that rank 0
    makes meanwhile. Where rank 0 does not come to it, a reader knows by the attempt's failure.json.
    """
    run, told = attempt.run, attempt.run.attempt_failure(attempt.number)
    if code == 1 and not isinstance(error, PacelineError):
        _log(error, attempt, rank)
    follows = rank > 0 or is_echo(error)
    is_told = follows and is_known(attempt, None if is_echo(error) else str(error))
    row = {} if is_told else describe(error, attempt, rank=rank, code=code, meaning=meaning, advice=advice)
    try:
        if row:
            told.parent.mkdir(parents=True, exist_ok=True)
            write_json_once(told, row)
        if attempt.is_ours:
            run.guard()
            write_json_once(run.failure, read_json(told) or row)
            if rank == 0:
                run.update_status(state="failed")
    except OSError as refused:
        return is_told, f"{advice}\n  {run.failure} could not be written: {refused.strerror}".strip()
    return is_told, f"{advice}\n  traceback: {run.failure}".strip() if code == 1 and row else advice
