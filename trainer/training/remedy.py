"""What is done about numbers that are not finite: on_nonfinite=stop, skip or rollback."""

import inspect
from typing import Any

import torch

from trainer.agreement import Asked
from trainer.checkpoint import Checkpoint
from trainer.config import OptimConfig
from trainer.errors import TrainingError
from trainer.training import nonfinite
from trainer.training.assembly import Parts
from trainer.training.job import Job
from trainer.training.nonfinite import Trouble
from trainer.training.recorder import Recorder
from trainer.training.state import Progress, find_newest, put_back, snapshot
from trainer.wording import span

_MOST_IN_A_ROW = 50
MOST_ROLLBACKS = 3
"""How often a run is taken back; the next trouble ends it."""
_WINDOW = 10


class Remedy:
    """Decides, on all ranks alike, what becomes of a run with numbers that are not finite.

    Args:
        parts: what is trained.
        job: the surroundings.
        progress: where the run stands; taken back by `roll_back`.
        recorder: who is told; rank 0's, None on the others.
    """

    def __init__(self, parts: Parts, job: Job, progress: Progress, recorder: Recorder | None) -> None:
        self._parts, self._job, self._progress, self._recorder = parts, job, progress, recorder
        self._policy = parts.config.on_nonfinite
        self._last, self._in_a_row, self._skipped = 0, 0, 0
        # For as long as there is no checkpoint; no bigger than the weights, since the optimizer has no state yet.
        self._start: Checkpoint | None = None
        if self._policy == "rollback" and progress.step == 0:
            start = snapshot(parts, progress)
            self._start = Checkpoint({n: t.detach().cpu().clone() for n, t in start.tensors.items()}, start.state)

    def judge(self, asked: Asked, *, weights: bool) -> Trouble | None:
        """Looks at figures that all ranks have agreed on.

        Args:
            asked: has them.
            weights: look at the weights as well, which must be those of the last step; waits for the device.

        Returns:
            What the run must be rolled back for.

        Raises:
            TrainingError: the run must end.
        """
        troubles = nonfinite.find(asked, self._job.world)
        if weights and not troubles and not nonfinite.are_finite(self._parts.model, self._job.world):
            troubles = [Trouble("weights", self._progress.step)]
        for trouble in troubles:
            details = trouble.details(self._parts)
            if self._recorder is not None:
                self._recorder.event(event="nonfinite", policy=self._policy, **details)
            if self._policy == "rollback" and self._progress.rollbacks < MOST_ROLLBACKS:
                return trouble
            # fp16's loss scaling leaves such a step out whatever was asked for.
            if self._policy != "skip" or not trouble.left_out:
                raise self._error(details)
            self._skip(trouble, details)
        return None

    def roll_back(self, trouble: Trouble) -> None:
        """Takes the run back to its last checkpoint, and has the steps up to the trouble passed over."""
        rank_zero, progress, parts = self._recorder is not None, self._progress, self._parts
        saved = find_newest(parts, warn=self._job.console.warn) or self._start
        if saved is None:
            raise self._error(trouble.details(parts))
        back = put_back(parts, saved)
        first = max(back.step, trouble.step - _WINDOW) + 1
        back.rollbacks = progress.rollbacks + 1
        back.left_out = [*progress.left_out, [first, trouble.step]]
        back.seconds = progress.seconds
        for name in Progress.__slots__:
            setattr(progress, name, getattr(back, name))
        if rank_zero:
            assert self._recorder is not None
            self._recorder.supersede(back.step, evaluates_again=back.pending_evaluation > 0)
            self._recorder.event(
                event="rollback", step=trouble.step, to_step=back.step, left_out=[first, trouble.step],
                rollbacks=back.rollbacks,
            )  # fmt: skip
        self._job.console.warn(
            f"{nonfinite.described(trouble.details(parts), self._job.world.world_size)}; back to step {back.step:,}, "
            f"without {span(first, trouble.step)} (rollback {back.rollbacks} of {MOST_ROLLBACKS})"
        )

    def _skip(self, trouble: Trouble, details: dict[str, Any]) -> None:
        self._in_a_row = self._in_a_row + 1 if trouble.step == self._last + 1 else 1
        self._last = trouble.step
        self._skipped += 1
        if not self._parts.stepper.scaler.enabled:  # which counts what it leaves out
            self._progress.skipped_steps += 1
        if self._in_a_row == _MOST_IN_A_ROW:
            raise self._error(details)
        # The first ones, and ever fewer of many.
        if self._skipped & (self._skipped - 1) == 0 and self._recorder is not None:
            self._job.console.warn(
                f"{nonfinite.described(details, self._job.world.world_size)}; its update was left out, "
                f"{self._skipped:,} in this attempt"
            )

    def _error(self, details: dict[str, Any]) -> TrainingError:
        problem = nonfinite.described(details, self._job.world.world_size)
        if self._policy == "skip" and self._in_a_row == _MOST_IN_A_ROW:
            problem += f"; so it was in {_MOST_IN_A_ROW} steps in a row, whose updates were left out"
        if self._policy == "rollback":
            problem += f", after {self._progress.rollbacks} rollbacks"
        rate = milder_rate(self._parts.config.optim.lr, self._parts.stepper.optimizer)
        ways = [f"a lower rate, optim.lr={rate:g}", "clipping, optim.clip_norm=1"]
        if self._parts.precision.name != "fp32":
            ways.append("precision=fp32")
        fix = f"{', '.join(ways[:-1])}, or {ways[-1]}"
        if self._policy == "stop":
            fix += "; on_nonfinite=skip leaves out such a step, and on_nonfinite=rollback those before it as well"
        return TrainingError(problem, fix, details=details)


def milder_rate(lr: float, optimizer: torch.optim.Optimizer) -> float:
    """A learning rate to try where `lr` made numbers that are not finite: a tenth, and no more than is usual.

    Usual is the schema's default for SGD (torch's own is cautious), and for the others torch's.
    """
    usual = OptimConfig().lr
    if not isinstance(optimizer, torch.optim.SGD):
        usual = inspect.signature(type(optimizer)).parameters["lr"].default
    return min(lr / 10, float(usual))
