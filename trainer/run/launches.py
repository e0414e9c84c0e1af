"""job.json: what the first attempt was launched with, and a row for every launch. Standard library only.

Launchers that begin a run at the same moment may lose each other's row there. So each keeps its own with its attempt's
logs, too, and who then has the run sees to it that job.json has the row of the attempt that trains.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.rundir import RunDir, read_json, write_json


def note(run: RunDir, row: Mapping[str, Any]) -> None:
    """Keeps a launch's row with its attempt's logs, and makes it the last of job.json.

    Raises:
        OSError: it cannot be written.
    """
    write_json(run.attempt_job(row["attempt"]), row)
    _append(run, row)


def confirm(run: RunDir, attempt: int) -> None:
    """Makes the row that a launch has kept the last of job.json, if it is not; for the job that has the run.

    Raises:
        OSError: it cannot be written.
    """
    row = read_json(run.attempt_job(attempt))
    if row and row != {**row, **run.launches()[-1]}:
        _append(run, row)


def note_job(run: RunDir, attempt: int, job_id: str) -> None:
    """Adds a scheduler's number for a launch to its row.

    Raises:
        OSError: it cannot be written.
    """
    note(run, {**read_json(run.attempt_job(attempt)), "job_id": job_id})


def withdraw(run: RunDir, attempt: int) -> None:
    """Takes a launch out of job.json that was refused; what its attempt has left among the logs stays there.

    Raises:
        OSError: it cannot be written.
    """
    rows = run.launches()
    others = [row for row in rows if row.get("attempt") != attempt]
    if others and others != rows:
        write_json(run.job, {**read_json(run.job), "attempts": others})


def row_of(rows: Sequence[dict[str, Any]], attempt: int) -> dict[str, Any]:
    """The row of an attempt's launch: a restart by a launcher has a number, but no row of its own.

    Args:
        rows: of job.json; at least one.
        attempt: which.
    """
    return next((row for row in reversed(rows) if row.get("attempt", 0) <= attempt), rows[0])


def _append(run: RunDir, row: Mapping[str, Any]) -> None:
    head = {name: value for name, value in read_json(run.job).items() if name != "attempts"}
    others = [other for other in run.launches() if other.get("attempt") not in (None, row["attempt"])]
    if not head or row["attempt"] < min((other["attempt"] for other in others), default=1):
        head = {name: value for name, value in row.items() if name != "attempt"}
    short = {name: value for name, value in row.items() if name != "packages" or value != head.get("packages")}
    write_json(run.job, {**head, "attempts": [*others, short]})
