"""What a run has saved by its own word: the checkpoints themselves may be gone, or their disk not mounted."""

import time
from pathlib import Path

from trainer.errors import ConfigError, UnfitError
from trainer.run.rows import append_json_line, read_json_lines
from trainer.run.runname import Naming, wrong_name
from trainer.rundir import RunDir, read_json

_STARTS_OVER = "starts_over"


def is_complete(run: RunDir) -> bool:
    """Whether a run has finished, and its summary and weights are there; those that are not can be made again."""
    summary = read_json(run.summary)
    names = ("last", "best") if summary.get("best/step") else ("last",)
    finished = run.read_status().get("state") == "finished"
    return finished and bool(summary) and all(run.weights(name).is_file() for name in names)


def last_checkpoint(run: RunDir) -> str | None:
    """The name of the checkpoint that a run has reported last; None where it never had one, or has started over."""
    if latest := run.read_status().get("latest"):
        return str(latest)
    # A damaged status.json, or none, does not make a run new.
    name = None
    for row in read_json_lines(run.events):
        if row.get("event") == "checkpoint" and isinstance(row.get("step"), int):
            name = run.checkpoint(row["step"]).name
        elif row.get("event") == _STARTS_OVER:
            name = None
    return name


def has_checkpoint(run: RunDir) -> bool:
    """Whether a run has saved anything, by its own word or by what lies there: then it is more than a new one."""
    return last_checkpoint(run) is not None or any(run.checkpoints.glob("step-*"))


def is_left_alone(run: RunDir, code: int | None) -> bool:
    """Whether a run stays as it was after an attempt that has ended before it changed anything.

    Whoever is refused has only asked; a finished run lacks nothing because its place cannot prolong it.

    Args:
        run: the run.
        code: the exit code of the attempt's first error.
    """
    is_finished = run.read_status().get("state") == "finished"
    return code == ConfigError.exit_code or (is_finished and code == UnfitError.exit_code)


def goes_on(choice: Naming) -> bool:
    """Whether the run that a configuration names has saved something, from which the job will go on."""
    if choice.name is None or choice.fresh or wrong_name(choice.name):
        return False
    return has_checkpoint(RunDir(Path(choice.dir).expanduser() / choice.name))


def start_over(run: RunDir, missing: str) -> None:
    """Takes back what a run has said about checkpoints, the last of which is `missing`: it begins anew without them.

    Raises:
        OSError: it cannot be written.
    """
    run.update_status(latest=None, best=None)
    append_json_line(run.events, {"time": time.time(), "event": _STARTS_OVER, "missing": missing})
