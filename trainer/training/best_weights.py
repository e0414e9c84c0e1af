"""The file of the best weights says of which step they are, and does not outlive what the run knows of that step."""

from pathlib import Path

from safetensors import SafetensorError, safe_open

from trainer import checkpoint, commit
from trainer.checkpoint import Damaged, Image, sealed
from trainer.evaluate.judge import AVERAGED, Standing
from trainer.rundir import RunDir
from trainer.training.assembly import Parts
from trainer.training.state import Progress, weights_in

_STEP = "step"


def labelled(step: int) -> dict[str, str]:
    """The metadata of the best weights' file; a plain state dict is read without it."""
    return {_STEP: str(step)}


def reconcile(parts: Parts, progress: Progress) -> None:
    """Makes the file agree with a progress that was put back; all ranks must call it.

    The run may have found better weights after its last checkpoint, and has forgotten them. The file then becomes
    that of the best step which it knows, from the checkpoint of that step; where there is none, the file goes, and the
    next evaluation counts as the best. Where the run is judged by another metric now, the file of the best by the one
    before stays until then.
    """
    best = progress.best
    if not parts.world.on_rank_zero(lambda: put_right(parts, best.step, former=best.former)):
        progress.best = Standing(metric=best.metric, improved=best.improved, waited=best.waited)


def put_right(parts: Parts, best_step: int, *, former: int = 0) -> bool:
    """Makes the file that of a step (0: of none), or else removes it; rank 0's. Whether it is that step's.

    Args:
        parts: what is trained.
        best_step: the step.
        former: without a best step, a file of this one stays; 0: none does.
    """
    run = parts.run
    path = run.weights("best")
    if former and not best_step and _step_in(path) == former:
        return True
    if best_step and (_step_in(path) == best_step or _rebuild(run, best_step, ema=parts.judge.kind == AVERAGED)):
        return True
    path.unlink(missing_ok=True)
    return not best_step


def _rebuild(run: RunDir, step: int, *, ema: bool) -> bool:
    """Writes the file from the checkpoint of a step; whether that could be done."""
    try:
        tensors = checkpoint.load(run.checkpoint(step)).tensors
        image = Image(tensors)
        image.fill(tensors)
        pieces = image.part(weights_in(tensors, ema=ema), labelled(step))
        commit.replace_file(run.weights("best"), pieces, guard=run.guard)
    except (Damaged, OSError):
        return False
    return True


def _step_in(path: Path) -> int | None:
    try:
        sealed.check(path)
        with safe_open(path, framework="pt") as file:
            return int((file.metadata() or {})[_STEP])
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
