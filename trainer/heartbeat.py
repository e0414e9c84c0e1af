"""Signs of life for a watchdog outside this process: three numbers in memory that it shares. Standard library only.

Whoever starts the training may say where the numbers lie (`beat_in`, before `mine`); without a watchdog they go where
nobody reads them, at the same cost: a fraction of a microsecond a step, and no system call.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

NBYTES = 24
"""Bytes that a worker needs: int64 beats, step, phase."""


class Phase(IntEnum):
    """What a worker is at; each has its own idea of how long a silence may last."""

    START = 0
    """Imports, data, model, compilation, the first step: nothing beats here."""
    STEP = 1
    """Training steps: one beat each."""
    EVALUATION = 2
    """One beat about every second, or every batch that takes longer."""
    CHECKPOINT = 3
    """A copy of the state, or the wait for a save under way: one beat every few seconds."""
    END = 4
    """Results, trackers, parting: nothing beats here."""


class Heartbeat:
    """What one worker tells.

    Args:
        words: int64 [3], shared with whoever watches.
    """

    def __init__(self, words: memoryview) -> None:
        self._words = words

    @property
    def beats(self) -> int:
        """Signs of life so far; all ranks of a job give the same number of them."""
        return self._words[0]

    @property
    def last_step(self) -> int:
        """Steps taken in the run, 0 before the first of this attempt."""
        return self._words[1]

    @property
    def phase(self) -> Phase:
        """What the worker is at."""
        return Phase(self._words[2])

    def step(self, step: int) -> None:
        """A training step has been taken, the run's `step`th."""
        words = self._words
        words[0] += 1
        words[1] = step
        words[2] = Phase.STEP

    def beat(self) -> None:
        """Something else went on."""
        self._words[0] += 1

    def enter(self, phase: Phase) -> None:
        """Something else begins."""
        self._words[2] = phase

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Something else is done in between."""
        before = self._words[2]
        self._words[2] = phase
        try:
            yield
        finally:
            self._words[2] = before
            self._words[0] += 1


def beat_in(words: memoryview) -> None:
    """Says where this process's signs of life go; before they are begun."""
    global _words
    _words = words


def mine() -> Heartbeat:
    """This process's."""
    return Heartbeat(_words)


_words = memoryview(bytearray(NBYTES)).cast("q")
