"""Whether a job hangs, decided from signs of life and the time. Pure: it looks at nothing itself."""

from collections import deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

from trainer.heartbeat import Phase

IDLE_LIMIT_S = 600.0
"""Silence that is granted where no beat is expected: start-up, the end, and programs that know no heartbeat."""

FIRST_LIMIT_S = 300.0
"""The same between beats, as long as there were too few to know how far they lie apart."""

LEAST_LIMIT_S = 30.0
"""The same at least, however fast the beats: a slow moment of a storage or a network is no hang."""

_BEATING = (Phase.STEP, Phase.EVALUATION, Phase.CHECKPOINT)
_ENOUGH_GAPS = 10
_REMEMBERED_GAPS = 2000
_MOST_TICK_S = 1.0


@dataclass(frozen=True, slots=True)
class Sign:
    """What was seen of a worker.

    Attributes:
        mark: changes with every sign of life.
        phase: what it is at; None of a program that does not tell.
    """

    mark: Hashable
    phase: Phase | None


class Clock:
    """The time in which this process could watch: neither a suspended machine nor a stopped job ages.

    Args:
        now: seconds of a monotonic clock.
    """

    def __init__(self, now: float) -> None:
        self._last = now
        self.time = 0.0

    def tick(self, now: float) -> float:
        """The time so far; to be called several times a second."""
        self.time += min(now - self._last, _MOST_TICK_S)
        self._last = now
        return self.time


@dataclass(slots=True)
class _Gaps:
    """How far beats of one phase lie apart, seconds; the latest ones."""

    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED_GAPS))

    def limit_s(self) -> float:
        if len(self.seconds) < _ENOUGH_GAPS:
            return FIRST_LIMIT_S
        ordered = sorted(self.seconds)
        usual = ordered[int(0.99 * (len(ordered) - 1))]
        # What has been waited for once, such as the first batch of an epoch, may come again.
        return max(LEAST_LIMIT_S, 5 * usual, 2 * ordered[-1])


@dataclass(slots=True)
class _Seen:
    sign: Sign
    since: float


class Watchdog:
    """Finds out that nothing goes on any more.

    Args:
        timeout_s: silence that is granted in every phase; None: learnt from the beats.

    Attributes:
        least_s: what is granted in any phase at least.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        self.least_s = LEAST_LIMIT_S if timeout_s is None else timeout_s
        self._seen: dict[int, _Seen] = {}
        self._excused_until = 0.0
        self._gaps = {phase: _Gaps() for phase in _BEATING}

    def limit_s(self, phase: Phase | None) -> float:
        """Seconds of silence that are granted to a worker in a phase."""
        if self._timeout_s is not None:
            return self._timeout_s
        return self._gaps[phase].limit_s() if phase in self._gaps else IDLE_LIMIT_S

    def look(self, now: float, signs: Mapping[int, Sign]) -> float | None:
        """Takes note of the workers' signs; if all that are there are silent for too long, the seconds of that.

        One that goes on, or may still be silent, speaks for all: the others wait for it.

        Args:
            now: of a `Clock`.
            signs: of every worker that has not ended, by rank.
        """
        if ended := self._seen.keys() - signs.keys():
            # What the others waited for may just have come.
            for rank in ended:
                del self._seen[rank]
            for seen in self._seen.values():
                seen.since = now
        for rank, sign in signs.items():
            seen = self._seen.get(rank)
            if seen is None or seen.sign != sign:
                if seen is not None and seen.sign.phase in self._gaps:
                    self._gaps[seen.sign.phase].seconds.append(now - seen.since)
                self._seen[rank] = _Seen(sign, now)
        if not self._seen or now < self._excused_until:
            return None
        if not all(self._is_overdue(seen, now) for seen in self._seen.values()):
            return None
        return self.silent_s(now)

    def silent_s(self, now: float) -> float:
        """Seconds since the last sign of any worker, when `look` was last told of them."""
        return now - max((seen.since for seen in self._seen.values()), default=now)

    def excuse(self, now: float) -> None:
        """The silence has a good reason: nothing is said of it for as long again as is granted at least."""
        self._excused_until = now + self.least_s

    def _is_overdue(self, seen: _Seen, now: float) -> bool:
        silent = now - seen.since
        # Learnt limits are not computed twenty times a second.
        return silent >= self.least_s and silent >= self.limit_s(seen.sign.phase)
