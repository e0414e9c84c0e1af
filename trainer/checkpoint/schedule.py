"""When a checkpoint is due: by steps, by evaluations, or by time."""

import time
from collections.abc import Callable

from trainer.checkpoint.interval import best_interval
from trainer.config import CheckpointConfig
from trainer.config.timespan import parse_time_span
from trainer.wording import duration

_FIRST_S = 60.0


class Schedule:
    """Knows what the configuration asks for, and measures what `auto` needs.

    Args:
        options: checked.
        world_size: workers of the job.
        restart_s: seconds from the start of this process to now, when its first step is about to begin.
        say: told once what `auto` came to.
    """

    def __init__(
        self, options: CheckpointConfig, *, world_size: int, restart_s: float, say: Callable[[str], None]
    ) -> None:
        self._options, self._world_size, self._restart_s, self._say = options, world_size, restart_s, say
        self._is_auto = options.every == "auto"
        # `auto` has nothing to go by before the first save; an early one also shows that saving works.
        self._interval_s = parse_time_span(options.every) or _FIRST_S
        self._saves = 0
        self._last = time.monotonic()

    def is_due_at(self, step: int) -> bool:
        """Whether one is due after `step` steps, by their number alone."""
        every = self._options.every_steps
        return every is not None and step % every == 0

    def is_due_after_evaluation(self, *, best: bool) -> bool:
        """Whether one is due after an evaluation.

        Args:
            best: it was the best so far.
        """
        return self._options.every_steps is None and (best or self._options.every == "evaluation")

    def is_late(self) -> bool:
        """Whether one is due by the clock."""
        by_time = self._options.every_steps is None and self._options.every != "evaluation"
        return by_time and time.monotonic() - self._last >= self._interval_s

    def saved(self, blocking_s: float) -> None:
        """Takes note of a save, which has held the steps up for `blocking_s` seconds."""
        self._last = time.monotonic()
        self._saves += 1
        if not self._is_auto or self._options.every_steps is not None:
            return
        self._interval_s = best_interval(blocking_s=blocking_s, restart_s=self._restart_s, world_size=self._world_size)
        # The first one took memory as well, which the others find there.
        if self._saves == 2:
            self._say(
                f"  a checkpoint every {duration(self._interval_s)}: it costs {duration(blocking_s)}, a restart "
                f"{duration(self._restart_s)} (checkpoint.every=auto)"
            )
