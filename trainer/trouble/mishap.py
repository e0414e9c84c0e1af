"""What a failure means, told once: in a few lines on the terminal, in failure.json, with its traceback in the log."""

import os
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import PacelineError
from trainer.run import launches, saved, surroundings
from trainer.run.patience import saying_if_slow
from trainer.rundir import RunDir, error_beside, read_json, write_json, write_json_once
from trainer.terminal.console import Console
from trainer.trouble import frames, meaning, peers, words

_OTHER_RANKS_S = 2.0


@dataclass(frozen=True, slots=True)
class Attempt:
    """Which attempt at which run an error belongs to.

    Attributes:
        run: the run directory.
        number: the attempt's, from 0.
        is_ours: whether the run is this job's already; else the error is told beside the attempt's logs alone.
        has_begun: whether it goes on with the run; one that is refused before that leaves the run as it was.
    """

    run: RunDir
    number: int
    is_ours: bool
    has_begun: bool = True


def report(error: Exception, attempt: Attempt | None, console: Console, *, micro_batch: int | None = None) -> int:
    """Tells an error in a few lines and keeps the rest in failure.json; returns the exit code.

    Args:
        error: what ended the training.
        attempt: what it belongs to; None where that is not known yet.
        console: where it is told.
        micro_batch: samples that this worker takes at once.
    """
    rank = int(os.environ.get("RANK", "0"))
    code = error.exit_code if isinstance(error, PacelineError) else 1
    problem, fix = explain(error, micro_batch)
    if is_echo(error):
        # The collective's own words, in the traceback, name a socket and not a cause.
        problem, fix = "another worker ended, and this one cannot go on alone", "the first error is that worker's"
    is_told = False
    if attempt is not None:
        slow = f"{problem}; {attempt.run.path} does not answer, and the record of the error waits for its storage"
        with saying_if_slow(console.warn, slow):
            if attempt.run.path.exists():
                is_told, fix = _keep(error, attempt, rank=rank, code=code, problem=problem, advice=fix)
    # A launcher shows the first error, with those that followed from it.
    if is_told or (is_echo(error) and "PACELINE_RUN_DIR" in os.environ):
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
    return others and not isinstance(error, PacelineError) and peers.is_gone(words.message_of(error))


def explain(error: Exception, micro_batch: int | None = None) -> tuple[str, str]:
    """What an exception means, and what to try."""
    if isinstance(error, PacelineError):
        return error.problem, error.fix
    where = frames.innermost(traceback.extract_tb(error.__traceback__))
    at = f" ({Path(where.filename).name}:{where.lineno} in {where.name})" if where else ""
    message = words.message_of(error)
    known = meaning.of_error(type(error).__name__, message, ours=True, micro_batch=micro_batch)
    if known is None:
        return f"{type(error).__name__}: {message}{at}", ""
    return f"{known.meaning}{at}", known.advice


def describe(error: Exception, attempt: Attempt, *, rank: int, code: int, problem: str, advice: str) -> dict[str, Any]:
    """The content of failure.json."""
    where = frames.innermost(traceback.extract_tb(error.__traceback__))
    row: dict[str, Any] = {
        "rank": rank,
        "host": surroundings.host(),
        "attempt": attempt.number,
        "type": type(error).__name__,
        "message": words.message_of(error),
        "place": f"{where.filename}:{where.lineno} in {where.name}" if where else "",
        "traceback": words.traceback_of(error, error.__traceback__),
        "meaning": problem,
        "advice": advice,
        "exit_code": code,
        "time": time.time(),
    }
    if isinstance(error, PacelineError) and error.details:
        row["details"] = error.details
    if isinstance(error, PacelineError) and error.added:
        row["override"] = error.added
    return row


def _log(error: Exception, attempt: Attempt, rank: int) -> None:
    """Adds the traceback to the rank's own log, whoever tells the error."""
    with suppress(OSError):
        log = attempt.run.log(attempt.number, rank)
        log.parent.mkdir(parents=True, exist_ok=True)
        # Names of files may be no UTF-8.
        with log.open("a", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(words.traceback_of(error, error.__traceback__))


def _leave_word(error: Exception, row: dict[str, Any], attempt: Attempt) -> None:
    """Keeps a rank's own error beside its log, for the launcher, which looks for the first of all ranks'."""
    own = {key: row[key] for key in ("host", "time", "type", "message", "place", "traceback", "meaning", "advice")}
    if isinstance(error, PacelineError):
        own |= {"message": error.problem, "advice": error.fix, "override": error.added}
    with suppress(OSError):
        write_json(error_beside(attempt.run.log(attempt.number, row["rank"])), {**own, "is_in_log": True})


def _keep(error: Exception, attempt: Attempt, *, rank: int, code: int, problem: str, advice: str) -> tuple[bool, str]:
    """Writes failure.json unless another rank was first; whether one was, and the advice with where the traceback is.

    The state is rank 0's to write, as all of status.json: from another process it could undo a change that rank 0
    makes meanwhile. Where rank 0 does not come to it, a reader knows by the attempt's failure.json.
    """
    run, told = attempt.run, attempt.run.attempt_failure(attempt.number)
    if code == 1 and not isinstance(error, PacelineError):
        _log(error, attempt, rank)
    described = describe(error, attempt, rank=rank, code=code, problem=problem, advice=advice)
    _leave_word(error, described, attempt)
    if is_echo(error) and "PACELINE_RUN_DIR" in os.environ:
        # The launcher hears the first error from its own rank, and nobody need wait for that; it tells the end, too.
        return True, advice
    follows = rank > 0 or is_echo(error)
    is_told = follows and is_known(attempt, None if is_echo(error) else words.message_of(error))
    row = {} if is_told else described
    try:
        if row:
            told.parent.mkdir(parents=True, exist_ok=True)
            write_json_once(told, row)
        if attempt.is_ours:
            run.guard()
            # Another rank alone may have found why the run cannot go on.
            if not attempt.has_begun and saved.is_left_alone(run, (read_json(told) or row).get("exit_code")):
                if rank == 0:
                    launches.withdraw(run, attempt.number)
                return is_told, f"{advice}\n  run {run.name} is left as it was"
            if read_json(run.failure).get("attempt") != attempt.number:
                run.failure.unlink(missing_ok=True)
            write_json_once(run.failure, read_json(told) or row)
            if rank == 0:
                run.update_status(state="failed", attempt=attempt.number)
    except OSError as refused:
        return is_told, f"{advice}\n  {run.failure} could not be written: {refused.strerror}".strip()
    return is_told, f"{advice}\n  traceback: {run.failure}".strip() if code == 1 and row else advice
