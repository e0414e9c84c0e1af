"""The interval between checkpoints: the best one by simulation, within its bounds, and what the words mean."""

import math
from collections.abc import Callable

import pytest

from trainer.checkpoint import Schedule
from trainer.checkpoint.interval import best_interval, seconds_between_failures
from trainer.config import CheckpointConfig


def useful_share(interval: float, blocking: float, restart: float, failures: float) -> float:
    """Share of the time in steps that count, with failures at an exponential rate, in closed form.

    An interval is passed through without a failure with probability exp(-T/M); the expected time until it is, restarts
    included, is (M + R) (exp(T/M) - 1) for memoryless failures (also during restarts, to first order).
    """
    return (interval - blocking) / ((failures + restart) * math.expm1(interval / failures))


@pytest.mark.parametrize(
    ("blocking", "restart", "world_size"), [(5.0, 60.0, 16_384), (0.5, 300.0, 4096), (0.02, 30.0, 100_000)]
)
def test_no_other_interval_loses_clearly_less(blocking: float, restart: float, world_size: int) -> None:
    failures = seconds_between_failures(world_size)
    chosen = best_interval(blocking_s=blocking, restart_s=restart, world_size=world_size)
    share = useful_share(chosen, blocking, restart, failures)
    others = [useful_share(chosen * factor / 100, blocking, restart, failures) for factor in range(30, 301)]
    assert 1 - share <= 1.02 * (1 - max(others))


def test_it_stays_within_its_bounds() -> None:
    assert best_interval(blocking_s=0.02, restart_s=10, world_size=1) == 1800
    assert best_interval(blocking_s=100, restart_s=10, world_size=1) == pytest.approx(100 / 0.035)
    assert best_interval(blocking_s=0.0, restart_s=10, world_size=8) == 0
    assert seconds_between_failures(16_384) == pytest.approx(54 * 86_400 / 419, rel=0.02)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("trainer.checkpoint.schedule.time.monotonic", lambda: now[0])
    return now


def schedule(say: Callable[[str], None] = lambda text: None, **options: object) -> Schedule:
    return Schedule(CheckpointConfig(**options), world_size=4096, restart_s=60.0, say=say)  # type: ignore[arg-type]


def test_auto_begins_early_and_says_once_what_it_has_chosen(clock: list[float]) -> None:
    said: list[str] = []
    auto = schedule(said.append)
    assert not auto.is_late()
    clock[0] += 60
    assert auto.is_late()
    for _ in range(3):
        auto.saved(0.5)
        assert not auto.is_late()
    clock[0] += best_interval(blocking_s=0.5, restart_s=60.0, world_size=4096) - 1
    assert not auto.is_late()
    clock[0] += 1
    assert auto.is_late()
    assert len(said) == 1
    assert "a checkpoint every 3 m 32 s: it costs 500 ms, a restart " in said[0]


def test_each_way_of_asking(clock: list[float]) -> None:
    by_time, by_evaluation, by_steps = schedule(every="10m"), schedule(every="evaluation"), schedule(every_steps=7)
    for each in (by_time, by_evaluation, by_steps):
        each.saved(0.1)
    clock[0] += 599
    assert not by_time.is_late()
    clock[0] += 1e6
    assert [each.is_late() for each in (by_time, by_evaluation, by_steps)] == [True, False, False]
    after_best = [each.is_due_after_evaluation(best=True) for each in (by_time, by_evaluation, by_steps)]
    after_other = [each.is_due_after_evaluation(best=False) for each in (by_time, by_evaluation, by_steps)]
    assert (after_best, after_other) == ([True, True, False], [False, True, False])
    assert [step for step in range(1, 22) if by_steps.is_due_at(step)] == [7, 14, 21]
    assert not any(each.is_due_at(step) for each in (by_time, by_evaluation) for step in range(1, 22))
