"""evaluation.json: the last and the best evaluation in full, with a row for each class and the confusions."""

import fcntl
import json
import math
import os
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from trainer.evaluate.metrics import Scores
from trainer.rundir import RunDir, read_json, write_atomic

_PATIENCE_S = 10.0


def entry(
    scores: Scores, classes: list[str], *, metrics: Mapping[str, float], skipped: int, **labels: object
) -> dict[str, Any]:
    """One evaluation as plain values.

    Args:
        scores: of the weights whose classes are shown.
        classes: the classes' names.
        metrics: everything that was measured, by full names; what is not finite becomes null.
        skipped: images of the split that could not be read and count for nothing.
        labels: what was evaluated: step, epoch, weights.
    """
    confusion = scores.confusion
    return {
        **labels,
        "time": time.time(),
        "metrics": {name: value if math.isfinite(value) else None for name, value in metrics.items()},
        "skipped": skipped,
        "classes": scores.table(classes),
        "confusion": None
        if confusion is None
        else {"rows": "true", "columns": "predicted", "counts": confusion.tolist()},
    }


def write(run: RunDir, evaluation: Mapping[str, Any], *, best: bool, best_step: int) -> None:
    """Replaces the last evaluation, and the best one where this is it.

    Args:
        run: the run directory.
        evaluation: an `entry`.
        best: whether it is the best so far.
        best_step: the best one's step; what the file calls the best is dropped where it is of another, which a run
            that has since gone back to its last checkpoint has forgotten.

    Raises:
        OSError: disk full, not writable, ...; the file that was there is intact.
    """
    with _locked(run):
        before = read_json(run.evaluation)
        kept = before.get("best")
        if best:
            kept = evaluation
        elif kept is not None and kept.get("step") != best_step:
            kept = None
        _save(run, {**before, "last": evaluation, "best": kept})


def add(run: RunDir, evaluation: Mapping[str, Any]) -> None:
    """Puts an evaluation that somebody has asked for beside those of the training, which may be going on.

    Raises:
        OSError: disk full, not writable, ...; the file that was there is intact.
    """
    with _locked(run):
        _save(run, {**read_json(run.evaluation), "on_request": evaluation})


@contextmanager
def _locked(run: RunDir) -> Generator[None]:
    """Keeps other processes from changing evaluation.json meanwhile, where the file system has locks."""
    descriptor = os.open(run.evaluation_lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline = time.monotonic() + _PATIENCE_S
        while not _lock(descriptor) and time.monotonic() < deadline:
            # One that was stopped while it had the lock must not hold up a training for ever.
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # no locks here: the moment is short
    return True


def _save(run: RunDir, content: Mapping[str, Any]) -> None:
    # On one line, for a matrix of confusions has a million numbers at most.
    write_atomic(run.evaluation, (json.dumps(content, ensure_ascii=False) + "\n").encode())
