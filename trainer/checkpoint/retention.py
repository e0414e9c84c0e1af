"""Which checkpoints are deleted: a pure decision, and the deed."""

from collections.abc import Iterable

from trainer import commit
from trainer.checkpoint.files import steps
from trainer.rundir import RunDir


def superfluous(found: Iterable[int], keep: int, *, best: int) -> list[int]:
    """The steps, of those `found`, whose checkpoints are neither among the newest `keep` nor that of step `best`."""
    return [step for step in sorted(found)[:-keep] if step != best]


def delete_old(run: RunDir, keep: int, *, best: int) -> None:
    """Deletes all but the newest `keep` checkpoints and that of step `best`.

    Raises:
        OSError: one could not be deleted.
    """
    for step in superfluous(steps(run), keep, best=best):
        commit.delete_folder(run.checkpoint(step))
