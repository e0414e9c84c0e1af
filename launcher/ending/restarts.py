"""Whether a failed attempt is worth another one. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.errors import ConfigError, UnfitError

CRASH_LOOP = 3
"""Failures in a row without progress after which nothing is tried again."""

LONG_S = 600.0
"""An attempt of this length has made progress, as far as can be told of a program that does not tell."""

_FINAL = {
    ConfigError.exit_code: "another attempt would find the same configuration",
    UnfitError.exit_code: "another attempt would find the same machine",
}


@dataclass(frozen=True, slots=True)
class Failed:
    """A failed attempt.

    Attributes:
        code: the exit code of what failed it.
        cause: what failed it: type, message, place.
        lasts: whether that would come again at the same place, as an error in a program does and one of a network
            does not.
        checkpoint: the newest checkpoint at its end, by name, whatever stands for none; None where the program keeps
            none of ours.
        seconds: how long it lived.
    """

    code: int
    cause: tuple[str, str, str]
    lasts: bool
    checkpoint: str | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows a failed attempt.

    Attributes:
        again: whether there is another one.
        why: why not, in words; empty where nobody asks.
    """

    again: bool
    why: str = ""


def decide(history: Sequence[Failed], budget: int) -> Decision:
    """Whether another attempt is made after the last one in the history.

    Args:
        history: this job's failed attempts, the latest last; at least one.
        budget: restarts that the user has asked for.
    """
    if budget == 0:
        return Decision(again=False)
    last = history[-1]
    if last.code in _FINAL:
        return Decision(again=False, why=f"exit code {last.code}: {_FINAL[last.code]}")
    if len(history) > budget:
        return Decision(again=False, why=f"cluster.max_restarts={budget} is used up")
    if last.lasts and len(history) > 1 and _is_stuck(history[-2:]) and history[-2].cause == last.cause:
        return Decision(again=False, why="the same error twice, without progress in between: it would come again")
    if len(history) >= CRASH_LOOP and _is_stuck(history[-CRASH_LOOP:]):
        return Decision(again=False, why=f"{CRASH_LOOP} failures in a row without progress: it is not tried again")
    return Decision(again=True)


def _is_stuck(latest: Sequence[Failed]) -> bool:
    """Whether none of these attempts got further than the one before it.

    Where checkpoints tell of progress, the errors may differ; else it takes the same error in short attempts.
    """
    first = latest[0]
    if any(attempt.checkpoint != first.checkpoint for attempt in latest):
        return False
    if first.checkpoint is not None:
        return True
    return all(attempt.cause == first.cause and attempt.seconds < LONG_S for attempt in latest)
