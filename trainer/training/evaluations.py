"""When an evaluation is due, and what is written down of one."""

from trainer.evaluate import scorecard
from trainer.evaluate.metrics import Scores
from trainer.training.assembly import Parts
from trainer.training.recorder import Recorder
from trainer.training.state import Progress


def is_due(every: int | str, step: int, ends_epoch: bool, total_steps: int) -> bool:
    """Whether to evaluate after `step` steps; always after the last."""
    if step == total_steps:
        return True
    return ends_epoch if every == "epoch" else every != "end" and step % int(every) == 0


def record(recorder: Recorder, scores: Scores, parts: Parts, progress: Progress, *, epoch: int, best: bool) -> None:
    """Has an evaluation recorded: its row of metrics, and evaluation.json in full.

    Args:
        recorder: rank 0's.
        scores: of the weights that are judged.
        parts: what is trained.
        progress: has the evaluation's metrics and the best one's step already.
        epoch: the evaluation's, from 1.
        best: whether it is the best so far.
    """
    splits, run, weights = parts.splits, parts.run, parts.judge.weights
    # Written by another thread, when the progress has gone on.
    step, metrics, best_step = progress.step, progress.metrics, progress.best.step
    best_accuracy = progress.best.accuracy if progress.best.step else None
    skipped = len(splits.val) - scores.samples

    def write_details() -> None:
        found = scorecard.entry(
            scores, splits.classes, metrics=metrics, skipped=skipped, step=step, epoch=epoch, weights=weights
        )
        scorecard.write(run, found, best=best, best_step=best_step)

    recorder.evaluation(
        step=step,
        epoch=epoch,
        ends_epoch=step % parts.plan.steps_per_epoch == 0,
        samples=parts.plan.samples_before(step),
        metrics=metrics,
        best=best,
        best_accuracy=best_accuracy,
        write_details=write_details,
    )
