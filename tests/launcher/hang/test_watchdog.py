"""When silence is a hang: the decision alone, driven through many histories."""

from hypothesis import given
from hypothesis import strategies as st

from launcher.hang.watchdog import FIRST_LIMIT_S, IDLE_LIMIT_S, LEAST_LIMIT_S, Clock, Sign, Watchdog
from trainer.heartbeat import Phase

TICK_S = 0.5
BEATING = [Phase.STEP, Phase.EVALUATION, Phase.CHECKPOINT]


def steps(count: int) -> Sign:
    return Sign(count, Phase.STEP)


def silent_until_told(dog: Watchdog, signs: dict[int, Sign], now: float, most_s: float = 10_000.0) -> float:
    """Seconds of unchanged signs until the watchdog says that the job hangs."""
    begin = now
    while dog.look(now, signs) is None:
        now += TICK_S
        assert now - begin < most_s
    return now - begin


@given(
    period=st.floats(0.05, 200.0),
    longest=st.floats(0.05, 400.0),
    count=st.integers(12, 200),
    ranks=st.integers(1, 4),
)
def test_the_limit_follows_from_the_steps_and_what_was_waited_for_once_is_never_a_hang(
    period: float, longest: float, count: int, ranks: int
) -> None:
    dog, now = Watchdog(None), 0.0
    for number in range(count):
        now += min(longest, FIRST_LIMIT_S - 1) if number == count // 2 else min(period, FIRST_LIMIT_S - 1)
        assert dog.look(now, {rank: steps(number) for rank in range(ranks)}) is None
    waited = silent_until_told(dog, {rank: steps(count - 1) for rank in range(ranks)}, now)
    usual, most = min(period, FIRST_LIMIT_S - 1), min(max(longest, period), FIRST_LIMIT_S - 1)
    assert max(LEAST_LIMIT_S, 2 * most) <= waited + TICK_S
    assert waited <= max(LEAST_LIMIT_S, 5 * max(usual, most), 2 * most) + TICK_S


@given(st.lists(st.tuples(st.sampled_from(list(Phase)), st.booleans()), min_size=1, max_size=4), st.floats(1, 500))
def test_one_rank_that_goes_on_speaks_for_all_and_a_time_that_was_set_holds_in_every_phase(
    ranks: list[tuple[Phase, bool]], timeout_s: float
) -> None:
    dog, now, count = Watchdog(timeout_s), 0.0, 0
    lively = any(moves for _, moves in ranks)
    told = None
    while now <= 2 * timeout_s and told is None:
        signs = {rank: Sign(count if moves else 0, phase) for rank, (phase, moves) in enumerate(ranks)}
        told = dog.look(now, signs)
        now, count = now + timeout_s / 8, count + 1
    assert (told is None) == lively
    assert told is None or timeout_s <= told <= 1.2 * timeout_s


def test_phases_have_limits_of_their_own_and_a_worker_that_saves_is_waited_for() -> None:
    for phase, limit in {
        None: IDLE_LIMIT_S,
        Phase.START: IDLE_LIMIT_S,
        Phase.END: IDLE_LIMIT_S,
        **dict.fromkeys(BEATING, FIRST_LIMIT_S),
    }.items():
        assert silent_until_told(Watchdog(None), {0: Sign(0, phase)}, 0.0) == limit
    dog = Watchdog(None)
    for number in range(100):
        assert dog.look(number / 10, {0: steps(number), 1: steps(number)}) is None
    assert silent_until_told(dog, {0: steps(99), 1: Sign(99, Phase.CHECKPOINT)}, 10.0) == FIRST_LIMIT_S
    # What ended has no say any more, but its end may be what the other one waited for.
    assert dog.look(10.0 + FIRST_LIMIT_S, {0: steps(99)}) is None
    assert silent_until_told(dog, {0: steps(99)}, 10.0 + FIRST_LIMIT_S) == LEAST_LIMIT_S


def test_an_excuse_puts_it_off_and_the_silence_is_still_told_from_its_beginning() -> None:
    dog = Watchdog(4.0)
    assert silent_until_told(dog, {0: steps(1)}, 0.0) == 4.0
    dog.excuse(4.0)
    assert dog.look(7.9, {0: steps(1)}) is None
    assert dog.look(8.0, {0: steps(1)}) == 8.0


def test_a_suspended_machine_or_a_watchdog_that_was_stopped_itself_ages_nobody() -> None:
    clock = Clock(100.0)
    assert clock.tick(100.5) == 0.5
    assert clock.tick(100.5 + 3600) <= 1.5
    assert clock.tick(100.5 + 3600.25) <= 1.75
