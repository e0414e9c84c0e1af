"""What any rank asks of all ranks: gathered about once a second beside the computation, acted upon at one step."""

import time
from dataclasses import dataclass

import torch

from trainer.distributed import World
from trainer.exchange import Exchange

_PERIOD_S = 1.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What the ranks asked for, and the interval's sums over them.

    Attributes:
        stop: some rank must stop.
        by_request: somebody asked for that; else max_time is near.
        save: rank 0 finds that a checkpoint is due.
        loss_sum: sum of the losses of the interval so far, over all ranks.
        steps: first and last step that loss_sum covers.
    """

    stop: bool = False
    by_request: bool = False
    save: bool = False
    loss_sum: float = 0.0
    steps: tuple[int, int] = (0, 0)


class Agreement:
    """Exchanges wishes at steps that every rank knows, and reads them at the next such step.

    The distance of these steps follows from rank 0's pace, which is exchanged as well, so that ranks never differ.

    Args:
        world: the workers.
        step: the steps taken so far.
        most_steps: the largest distance.
    """

    def __init__(self, world: World, *, step: int, most_steps: int) -> None:
        self._world = world
        self._most_steps = most_steps
        self._due = step + 1
        self._last = (step, time.perf_counter())
        self._pending: Exchange | None = None
        self._steps = (0, 0)
        self.step_s = 0.0

    def is_due(self, step: int) -> bool:
        """Whether the ranks exchange their wishes after `step` steps."""
        return step >= self._due

    def exchange(
        self, sums: torch.Tensor, *, first: int, step: int, asked: bool, late: bool, save: bool
    ) -> tuple[Asked, Exchange]:
        """Starts an exchange, and reads the one before.

        Args:
            sums: float64 [2] on the device: this rank's sum of losses and counted samples of the interval.
            first: the first step that they cover.
            step: steps taken.
            asked: this rank was asked to stop.
            late: this rank must stop, for max_time is near.
            save: this rank wants a checkpoint.

        Returns:
            What was asked at the exchange before, and the new exchange, whose first two sums are those of `sums`.
        """
        before = self.read()
        now = time.perf_counter()
        per_step = (now - self._last[1]) / max(1, step - self._last[0])
        self._last = (step, now)
        # Filled on the device: copying values there would wait for the steps under way.
        wishes = [float(asked), float(late), float(save), per_step if self._world.is_rank_zero else 0.0]
        values = torch.cat([sums, *(torch.full_like(sums[:1], wish) for wish in wishes)])
        self._pending = Exchange(self._world, values)
        self._steps = (first, step)
        steps = max(1, min(self._most_steps, round(_PERIOD_S / self.step_s))) if self.step_s else 1
        self._due = step + steps
        return before, self._pending

    def read(self) -> Asked:
        """What was asked at the newest exchange; waits for it."""
        if self._pending is None:
            return Asked()
        loss_sum, _, asked, late, save, self.step_s = self._pending.read()
        return Asked(stop=asked + late > 0, by_request=asked > 0, save=save > 0, loss_sum=loss_sum, steps=self._steps)
