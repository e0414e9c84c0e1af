"""Where two runs part: the first step whose loss, or whose weights, are not the same bit for bit. No torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from trainer.run.rows import read_json_lines
from trainer.rundir import RunDir
from trainer.wording import plural, significant

_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Trace:
    """What a run has recorded about its steps, each counted from 1.

    Attributes:
        losses: the mean loss of a step; None where it was not finite.
        digests: the digest of the weights after a step, at the rows of metrics.
        left_out: the steps whose update was left out.
    """

    losses: Mapping[int, float | None] = field(default_factory=dict)
    digests: Mapping[int, str] = field(default_factory=dict)
    left_out: frozenset[int] = frozenset()

    def computes(self, step: int) -> bool:
        """Whether a step has a finite loss."""
        return self.losses.get(step) is not None


@dataclass(frozen=True, slots=True)
class Parting:
    """The comparison of two traces.

    Attributes:
        steps: how many steps both have.
        last: the last of them; 0 where there is none.
        loss: the first step with another loss, and the two losses; None: all are the same.
        clear: the first step whose losses differ by more than rounding explains (a millionth).
        same_weights: the last step up to which the digests agree, of those that both have; 0: none.
        other_weights: the first step after which the digests differ.
    """

    steps: int
    last: int
    loss: tuple[int, float | None, float | None] | None
    clear: int | None
    same_weights: int
    other_weights: int | None

    @property
    def agree(self) -> bool:
        """Whether all that both have recorded is the same; not when they have nothing in common."""
        return self.steps > 0 and self.loss is None and self.other_weights is None

    @property
    def first(self) -> int:
        """The first step, or row's step, that is not the same; the last that both have where all are, at least 1."""
        steps = [self.loss[0] if self.loss else None, self.other_weights]
        return min((step for step in steps if step is not None), default=max(self.last, 1))

    def lines(self) -> list[str]:
        """The verdict for people, the most important line first."""
        if not self.steps:
            return ["no step is recorded in both"]
        if self.agree:
            return [f"the same in all of {plural(self.steps, 'step')} that both have, bit for bit"]
        lines = []
        if self.loss is not None:
            step, one, other = self.loss
            lines.append(f"part in step {step:,}: loss {_exact(one)} and {_exact(other)}{_apart(one, other)}")
            if self.clear is not None and self.clear > step:
                lines.append(f"by more than rounding from step {self.clear:,} on")
            elif self.clear is None:
                lines.append("never by more than rounding, as another number of workers brings it")
        else:
            lines.append(f"the losses of all of {plural(self.steps, 'step')} are the same, the weights are not")
        if self.other_weights is not None:
            since = f"the same after step {self.same_weights:,}, " if self.same_weights else ""
            lines.append(f"weights: {since}others after step {self.other_weights:,}")
        return lines


def trace_of(run: RunDir) -> Trace:
    """What a run directory has recorded."""
    losses: dict[int, float | None] = {}
    digests: dict[int, str] = {}
    left_out: set[int] = set()
    for row in read_json_lines(run.steps):
        if not (isinstance(row.get("first"), int) and isinstance(row.get("step"), int)):
            continue  # damaged
        losses.update(zip(range(row["first"], row["step"] + 1), row["losses"], strict=False))
        digests[row["step"]] = row["digest"]
        left_out.update(row.get("left_out", ()))
    return Trace(losses, digests, frozenset(left_out))


def compare(one: Trace, other: Trace) -> Parting:
    """Compares two traces in the steps that both have."""
    steps = sorted(one.losses.keys() & other.losses.keys())
    pairs = [(step, one.losses[step], other.losses[step]) for step in steps]
    rows = sorted(one.digests.keys() & other.digests.keys())
    odd = next((step for step in rows if one.digests[step] != other.digests[step]), None)
    same = [step for step in rows if odd is None or step < odd]
    return Parting(
        steps=len(steps),
        last=steps[-1] if steps else 0,
        loss=next((pair for pair in pairs if pair[1] != pair[2]), None),
        clear=next((step for step, a, b in pairs if _difference(a, b) > _ROUNDING), None),
        same_weights=same[-1] if same else 0,
        other_weights=odd,
    )


def _difference(one: float | None, other: float | None) -> float:
    if one is None or other is None:
        return 0.0 if one is other else math.inf
    return abs(one - other) / max(abs(one), abs(other), 1e-300)


def _exact(loss: float | None) -> str:
    return "not finite" if loss is None else repr(loss)


def _apart(one: float | None, other: float | None) -> str:
    difference = _difference(one, other)
    return f" ({significant(difference, 2)} of it apart)" if math.isfinite(difference) else ""
