"""Whether a failed attempt is worth another one. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

CRASH_LOOP = 3
"""Failures in a row without progress after which nothing is tried again."""

LONG_S = 600.0
"""An attempt of this length has made progress, as far as can be told of a program that does not tell."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A failed attempt.

    Attributes:
        cause: what failed it: type, message, place.
        checkpoint: the newest checkpoint at its end, by name; None where the program keeps none of ours.
        seconds: how long it lived.
    """

    cause: tuple[str, str, str]
    checkpoint: str | None
    seconds: float


def is_crash_loop(history: Sequence[Failed]) -> bool:
    """Whether the latest attempts failed one like the other, none further than the one before it.

    Where checkpoints tell of progress, the errors may differ; else it takes the same error in short attempts.
    """
    latest = history[-CRASH_LOOP:]
    if len(latest) < CRASH_LOOP:
        return False
    first = latest[0]
    if first.checkpoint is not None:
        return all(attempt.checkpoint == first.checkpoint for attempt in latest)
    return all(
        attempt.checkpoint is None and attempt.cause == first.cause and attempt.seconds < LONG_S for attempt in latest
    )
