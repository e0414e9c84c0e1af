"""A loss, gradients or weights that are not finite: which step it was, on which ranks, and with which samples."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trainer.agreement import Asked
from trainer.data.naming import path_of, samples_of_step
from trainer.distributed import World
from trainer.training.assembly import Parts

_SHOWN = 3
_MOST_PATHS = 1000


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is not finite, and where it began.

    Attributes:
        what: `loss`, `gradients` or `weights`.
        step: the first such step, counted from 1.
        ranks: those whose own loss is not finite; empty where it is not the loss.
        left_out: whether the step's update was not applied.
    """

    what: str
    step: int
    ranks: tuple[int, ...] = ()
    left_out: bool = False

    def details(self, parts: Parts) -> dict[str, Any]:
        """The step's samples, or those of the ranks that are to blame, with their files where the data has files."""
        everyone = len(self.ranks) in (0, parts.world.world_size)
        samples = samples_of_step(
            parts.plan, seed=parts.config.seed, step=self.step - 1, ranks=None if everyone else self.ranks
        ).tolist()
        paths = [path_of(parts.splits.train, sample) for sample in samples[:_MOST_PATHS]]
        return {
            "what": self.what,
            "step": self.step,
            "epoch": parts.plan.share(self.step - 1).epoch + 1,
            "ranks": list(self.ranks),
            "samples": samples,
            "paths": paths if any(paths) else [],
        }


def find(asked: Asked, world: World) -> list[Trouble]:
    """The steps whose loss or gradients are not finite; all ranks must call it with what they have agreed on."""
    figures, mine = asked.figures, asked.mine
    steps = figures.not_finite() if figures is not None else []
    if figures is None or mine is None or not steps:
        return []
    bad = world.gather((~mine[0].isfinite()).long()).tolist()
    found = []
    for step in steps:
        ranks = tuple(rank for rank, row in enumerate(bad) if row[step - figures.first])
        left_out = figures.skipped[step - figures.first] > 0
        found.append(Trouble("loss" if ranks else "gradients", step, ranks, left_out))
    return found


def are_finite(model: nn.Module, world: World) -> bool:
    """Whether every weight is finite, on all ranks; waits for the device, and all ranks must call it."""
    weights = [p.detach() for p in model.parameters() if p.requires_grad]
    reals = [torch.view_as_real(weight) if weight.is_complex() else weight for weight in weights]
    # In their own type 200,000 halves of fp16 would overflow.
    sums = torch.stack([real.sum(dtype=torch.float64) for real in reals])
    return not world.sum((~sums.isfinite()).any().double())


def described(details: dict[str, Any], world_size: int) -> str:
    """A sentence: `the loss is not finite in step 7 (epoch 1, rank 3): samples 812 (/imgs/a.png), ...`."""
    step, ranks, what = details["step"], details["ranks"], details["what"]
    where = f"step {step:,} (epoch {details['epoch']:,}"
    if world_size > 1 and ranks:
        everyone = len(ranks) == world_size
        where += f", all {world_size} ranks" if everyone else f", rank {', '.join(map(str, ranks))}"
        if everyone and step > 1:
            where += " at once, so that an update before it is to blame"
    return f"the {what} {'is' if what == 'loss' else 'are'} not finite in {where}): {shown(details)}"


def shown(details: dict[str, Any]) -> str:
    """A few of the samples: `samples 812 (/imgs/a.png), 77 (/imgs/b.png), 30 (/imgs/c.png) and 61 more`."""
    samples, paths = details["samples"], details["paths"]
    words = [f"{sample} ({paths[i]})" if paths else str(sample) for i, sample in enumerate(samples[:_SHOWN])]
    more = len(samples) - len(words)
    text = f"{'sample' if len(samples) == 1 else 'samples'} {', '.join(words)}"
    return f"{text} and {more:,} more (all in events.jsonl)" if more else text
