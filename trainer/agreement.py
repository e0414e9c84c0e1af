"""What any rank asks of all ranks: gathered about once a second beside the computation, acted upon at one step."""

import time
from dataclasses import dataclass, field, replace

import torch

from trainer.distributed import World
from trainer.exchange import Exchange
from trainer.numerics.figures import MOST_STEPS, Figures
from trainer.numerics.replicas import collected, spread

_PERIOD_S = 1.0
_WISHES = 4


@dataclass(frozen=True, slots=True)
class Asked:
    """What the ranks asked for, and the steps' figures over them.

    Attributes:
        stop: some rank must stop.
        by_request: somebody asked for that; else max_time is near.
        save: rank 0 finds that a checkpoint is due.
        figures: of the steps up to this exchange, since the one before.
        mine: this rank's own part of them, float64 [4, steps] on the device.
        digests: every rank's digest of its weights after these steps; empty where none was made.
        rolled_back: the run was taken back to an earlier step.
    """

    stop: bool = False
    by_request: bool = False
    save: bool = False
    figures: Figures | None = None
    mine: torch.Tensor | None = None
    digests: list[str] = field(default_factory=list)
    rolled_back: bool = False

    def joined_by(self, later: "Asked") -> "Asked":
        """What was asked here or at the exchange after it, whose figures are kept."""
        return replace(
            later,
            stop=self.stop or later.stop,
            by_request=self.by_request or later.by_request,
            save=self.save or later.save,
        )


@dataclass(frozen=True, slots=True)
class Pending:
    """Figures on their way.

    Attributes:
        first: the first step.
        mine: this rank's own, float64 [4, steps].
        exchange: [wishes..., places of digests..., all ranks' figures].
        places: how many places of digests.
    """

    first: int
    mine: torch.Tensor
    exchange: Exchange
    places: int

    def figures(self) -> Figures:
        """The figures over all ranks; waits for them."""
        return Figures.of(self.first, self.exchange.read()[_WISHES + self.places :])

    def digests(self) -> list[str]:
        """Every rank's digest of its weights after these steps; empty where none was made. Waits for them."""
        return collected(self.exchange.read()[_WISHES : _WISHES + self.places])


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
        self._most_steps = min(most_steps, MOST_STEPS)
        self._due = step + 1
        self._last = (step, time.perf_counter())
        self._pending: Pending | None = None
        self.step_s = 0.0

    def is_due(self, step: int) -> bool:
        """Whether the ranks exchange their wishes after `step` steps."""
        return step >= self._due

    def start(
        self,
        mine: torch.Tensor,
        *,
        step: int,
        asked: bool,
        late: bool,
        save: bool,
        digest: torch.Tensor | None = None,
    ) -> Pending:
        """Starts an exchange; the one before must have been read.

        Args:
            mine: float64 [4, steps] on the device: this rank's figures of the steps since the exchange before.
            step: steps taken.
            asked: this rank was asked to stop.
            late: this rank must stop, for max_time is near.
            save: this rank wants a checkpoint.
            digest: of this rank's weights, an int64 scalar; all ranks give one, or none.
        """
        assert self._pending is None
        now = time.perf_counter()
        per_step = (now - self._last[1]) / max(1, step - self._last[0])
        self._last = (step, now)
        # Filled on the device: copying values there would wait for the steps under way.
        wishes = [float(asked), float(late), float(save), per_step if self._world.is_rank_zero else 0.0]
        places = mine.new_empty(0) if digest is None else spread(digest, self._world)
        values = torch.cat([*(mine.new_full((1,), wish) for wish in wishes), places, mine.flatten()])
        self._pending = Pending(step - mine.shape[1] + 1, mine, Exchange(self._world, values), len(places))
        steps = max(1, min(self._most_steps, round(_PERIOD_S / self.step_s))) if self.step_s else 1
        self._due = step + steps
        return self._pending

    def read(self) -> Asked:
        """What was asked at the newest exchange, once; waits for it."""
        if self._pending is None:
            return Asked()
        pending, self._pending = self._pending, None
        asked, late, save, self.step_s = pending.exchange.read()[:_WISHES]
        return Asked(
            stop=asked + late > 0,
            by_request=asked > 0,
            save=save > 0,
            figures=pending.figures(),
            mine=pending.mine,
            digests=pending.digests(),
        )
