"""How long to wait between two checkpoints: a pure decision."""

import math

FAILURES_PER_GPU_DAY = 4.7e-4
"""Of Llama 3's training: 419 failures in 54 days on 16,384 GPUs (The Llama 3 Herd of Models, section 3.3.4)."""

_MOST_OVERHEAD = 0.035
_LONGEST_S = 1800.0
_DAY_S = 86_400.0


def seconds_between_failures(world_size: int) -> float:
    """Mean time between failures of a job of `world_size` GPUs."""
    return _DAY_S / (FAILURES_PER_GPU_DAY * world_size)


def best_interval(*, blocking_s: float, restart_s: float, world_size: int) -> float:
    """Seconds between checkpoints at which the least time is lost, to saving and to failures together.

    With a blocking cost of C, a restart of R and a time between failures of M, the interval C + sqrt(2 (M + R) C + C^2)
    maximises the useful share of the time, (1 - C/T) / (1 + T / (2 (M + R))); Young's sqrt(2 M C) is its limit for
    small C and R. But half an hour at most, since jobs end for other reasons than broken GPUs, and never so often that
    saving takes more than 3.5 % of the time.

    Args:
        blocking_s: what a save costs the steps.
        restart_s: from the start of the job to its first new step.
        world_size: GPUs, or workers.
    """
    failures = seconds_between_failures(world_size)
    best = blocking_s + math.sqrt(2 * (failures + restart_s) * blocking_s + blocking_s**2)
    return max(min(best, _LONGEST_S), blocking_s / _MOST_OVERHEAD)
