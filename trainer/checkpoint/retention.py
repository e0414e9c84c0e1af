"""Which checkpoints are deleted: a pure decision, and the deed."""

from collections.abc import Iterable

from trainer import commit
from trainer.checkpoint.files import steps
from trainer.rundir import RunDir


def superfluous(found: Iterable[int], *, verified: int, keep: int, keep_every: int | None, best: int) -> list[int]:
    """The steps whose checkpoints are not worth their space any more.

    Kept are the newest `keep`, that of step `best`, and for good the first one at or after every multiple of
    `keep_every` steps. Nothing at or after step `verified` is superfluous, so a good one always remains.

    Args:
        found: the steps that have a checkpoint, good or not.
        verified: the step of a checkpoint that is known to be whole.
        keep: at least 1.
        keep_every: steps; None: none is kept for good.
        best: the step of the best evaluation; 0: there was none.
    """
    known = sorted(step for step in found if step <= verified)
    kept = {best, verified, *known[-keep:]}
    if keep_every is not None:
        firsts: dict[int, int] = {}
        for step in known:
            firsts.setdefault(step // keep_every, step)
        kept.update(first for window, first in firsts.items() if window)
    return [step for step in known if step not in kept]


def delete_old(run: RunDir, *, verified: int, keep: int, keep_every: int | None, best: int) -> None:
    """Deletes what is `superfluous`.

    Raises:
        OSError: a checkpoint could not be deleted.
    """
    for step in superfluous(steps(run), verified=verified, keep=keep, keep_every=keep_every, best=best):
        commit.delete_folder(run.checkpoint(step))
