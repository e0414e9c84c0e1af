"""evaluation.json: the last and the best evaluation in full, with a row for each class and the confusions."""

import json
import math
import time
from collections.abc import Mapping
from typing import Any

from trainer.metrics import Scores
from trainer.rundir import RunDir, read_json, write_atomic


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
    before = read_json(run.evaluation)
    kept = before.get("best")
    if best:
        kept = evaluation
    elif kept is not None and kept.get("step") != best_step:
        kept = None
    save(run, {**before, "last": evaluation, "best": kept})


def save(run: RunDir, content: Mapping[str, Any]) -> None:
    """Writes evaluation.json atomically; on one line, for a matrix of confusions has a million numbers at most."""
    write_atomic(run.evaluation, (json.dumps(content, ensure_ascii=False) + "\n").encode())
