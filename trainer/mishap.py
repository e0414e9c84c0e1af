"""What a failure means, told once: in a few lines on the terminal, in failure.json, with its traceback in the log."""

import os
import sysconfig
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from trainer import environment
from trainer.console import Console
from trainer.errors import PacelineError
from trainer.rundir import RunDir, read_json, write_json_once

_OTHER_RANKS_S = 2.0
_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
_SILENT = ("Timed out waiting", "wait timeout after", "Watchdog caught collective operation timeout")
_NOT_THEIRS = (Path(__file__).parent, Path(sysconfig.get_path("stdlib")))


def report(error: Exception, run: RunDir | None, console: Console) -> int:
    """Tells an error in a few lines and keeps the rest in failure.json; returns the exit code."""
    rank = int(os.environ.get("RANK", "0"))
    code = error.exit_code if isinstance(error, PacelineError) else 1
    problem, fix = explain(error)
    if is_echo(error):
        # The collective's own words, in the traceback, name a socket and not a cause.
        problem, fix = "another worker ended, and this one cannot go on alone", "the first error is that worker's"
    if run is not None and run.path.exists():
        follows = rank > 0 or is_echo(error)
        if follows and is_known(run, None if is_echo(error) else str(error)):
            if not is_echo(error):
                return code
        else:
            fix = keep_failure(run, error, rank=rank, code=code, meaning=problem, advice=fix)
    console.close()
    console.error(problem, fix)
    return code


def is_known(run: RunDir, message: str | None) -> bool:
    """Whether another rank has told its error (this very one, if `message` is given); waits a little for it."""
    deadline = time.monotonic() + _OTHER_RANKS_S
    while time.monotonic() < deadline:
        told = read_json(run.failure)
        if told and message in (None, told.get("message")):
            return True
        time.sleep(0.05)
    return False


def is_echo(error: Exception) -> bool:
    """Whether an error only says that another worker is gone."""
    others = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return others and not isinstance(error, PacelineError) and any(sign in str(error) for sign in _GONE)


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
    if any(sign in str(error) for sign in _SILENT):
        return "another worker has not answered for distributed.timeout_s: it hangs, or is much slower than the rest", (
            "look at the workers' logs; where one may take that long (a first step, a slow disk), a longer "
            "distributed.timeout_s"
        )
    if isinstance(error, IndexError) and str(error).startswith("Target "):
        return f"the data has more classes than the model gives logits ({error})", (
            "a model of yours is given num_classes: its last layer must have as many outputs"
        )
    where = place(error)
    return f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno} in {where.name})", ""


def place(error: Exception) -> traceback.FrameSummary:
    """Where an error was raised: the innermost place in the user's own code, if it came by there."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if _is_theirs(Path(frame.filename))]
    return (theirs or frames)[-1]


def _is_theirs(file: Path) -> bool:
    installed = {"site-packages", "dist-packages"} & set(file.parts)
    return file.is_absolute() and not installed and not any(file.is_relative_to(folder) for folder in _NOT_THEIRS)


def keep_failure(run: RunDir, error: Exception, *, rank: int, code: int, meaning: str, advice: str) -> str:
    """Writes failure.json unless another rank was first; returns the advice, with where the traceback is."""
    attempt = int(os.environ.get("PACELINE_ATTEMPT") or run.read_status().get("attempt", 0))
    row: dict[str, Any] = {
        "rank": rank,
        "host": environment.host(),
        "attempt": attempt,
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
    if code == 1 and not isinstance(error, PacelineError):
        with suppress(OSError):
            log = run.log(attempt, rank)
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a") as stream:
                stream.write(row["traceback"])
    try:
        run.guard()
        if read_json(run.failure).get("attempt", attempt) != attempt:
            # An earlier attempt's, which this one did not come as far as to take away.
            run.failure.unlink(missing_ok=True)
        write_json_once(run.failure, row)
        run.update_status(state="failed")
    except OSError as refused:
        return f"{advice}\n  {run.failure} could not be written: {refused.strerror}".strip()
    return f"{advice}\n  traceback: {run.failure}".strip() if code == 1 else advice
