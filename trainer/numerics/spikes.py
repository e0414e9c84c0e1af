"""Sudden rises of the training loss, told from its ordinary noise. Pure."""

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

_WINDOWS = 20
_FEWEST_WINDOWS = 10
_SAMPLES = 500
_DEVIATIONS = 8.0
_FACTOR = 1.5
_LEAST_RISE = 0.1
_SIGMA_OF_MAD = 1.4826


@dataclass(frozen=True, slots=True)
class Spike:
    """A rise of the loss.

    Attributes:
        first: the first step of the window that is high, counted from 1.
        last: its last step.
        loss: its mean loss.
        usual: the median of the windows before it.
        worst: its step with the highest loss.
        worst_loss: the mean loss of that step.
    """

    first: int
    last: int
    loss: float
    usual: float
    worst: int
    worst_loss: float


class Spikes:
    """Watches the steps of a run, in windows of at least 500 samples: a handful tells noise, not a trend.

    A window is a spike when its loss is above the median of those before it by 8 robust standard deviations (from the
    median absolute deviation, Hampel's rule), and by half of it, and by 0.1: noise of a loss that is nearly 0 harms
    nobody. A level that stays is told once.
    """

    def __init__(self) -> None:
        self._past: deque[float] = deque(maxlen=_WINDOWS)
        self._steps: list[tuple[int, float, int]] = []
        self._is_high = False

    def look(self, first: int, losses: Sequence[float], samples: Sequence[int]) -> Spike | None:
        """Takes the next steps; the spike that begins with them, if one does.

        Args:
            first: the first of these steps.
            losses: each step's mean loss; those that are not finite are passed over.
            samples: behind each.
        """
        steps = zip(range(first, first + len(losses)), losses, samples, strict=True)
        self._steps += [step for step in steps if math.isfinite(step[1])]
        count = sum(samples for _, _, samples in self._steps)
        if count < _SAMPLES:
            return None
        window, self._steps = self._steps, []
        loss = math.fsum(loss * samples for _, loss, samples in window) / count
        spike = None
        if len(self._past) >= _FEWEST_WINDOWS:
            usual = statistics.median(self._past)
            deviation = _SIGMA_OF_MAD * statistics.median(abs(past - usual) for past in self._past)
            is_high = loss > max(usual + _DEVIATIONS * deviation, _FACTOR * usual, usual + _LEAST_RISE)
            if is_high and not self._is_high:
                worst, worst_loss, _ = max(window, key=lambda step: step[1])
                spike = Spike(window[0][0], window[-1][0], loss, usual, worst, worst_loss)
            self._is_high = is_high
        self._past.append(loss)
        return spike
