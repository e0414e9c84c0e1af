"""The budget of restarts, through thousands of histories."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from launcher.ending.restarts import CRASH_LOOP, LONG_S, Failed, decide

FLAKY = Failed(1, ("RuntimeError", "no room", ""), lasts=False, checkpoint=None, seconds=1)
BUG = Failed(1, ("ValueError", "bad value", "a.py:3 in f"), lasts=True, checkpoint=None, seconds=1)
ENOUGH = 100


@pytest.mark.parametrize(
    ("checkpoints", "causes", "seconds", "loop"),
    [
        (["a", "a", "a"], "rst", 9000, True),
        (["a", "a"], "rr", 1, False),
        (["a", "b", "b"], "rrr", 1, False),
        (["a", "b", "b", "b"], "rrrr", 1, True),
        ([None, None, None], "rrr", 1, True),
        ([None, None, None], "rrs", 1, False),
        ([None, None, None], "rrr", 9000, False),
        ([None, None, "a"], "rrr", 1, False),
    ],
)
def test_a_crash_loop_is_three_failures_without_progress(
    checkpoints: list[str | None], causes: str, seconds: float, loop: bool
) -> None:
    history = [
        Failed(1, (cause, "", ""), lasts=False, checkpoint=checkpoint, seconds=seconds)
        for checkpoint, cause in zip(checkpoints, causes, strict=True)
    ]
    assert decide(history, ENOUGH).again is not loop


def test_an_error_of_the_program_is_not_met_a_third_time() -> None:
    assert decide([BUG], ENOUGH).again
    assert decide([BUG, BUG], ENOUGH).why.startswith("the same error twice")
    assert decide([BUG, replace(BUG, cause=("ValueError", "another value", ""))], ENOUGH).again
    assert decide([BUG, FLAKY, BUG], ENOUGH).again
    assert decide([FLAKY, FLAKY], ENOUGH).again
    further = [replace(BUG, checkpoint="step-1"), replace(BUG, checkpoint="step-2")]
    assert decide(further, ENOUGH).again
    assert decide([replace(BUG, seconds=LONG_S)] * 2, ENOUGH).again


@pytest.mark.parametrize("code", [2, 3])
def test_what_another_attempt_cannot_change_ends_the_job_at_once(code: int) -> None:
    decision = decide([replace(FLAKY, code=code)], ENOUGH)
    assert not decision.again
    assert f"exit code {code}" in decision.why


def test_no_restart_was_asked_for_and_none_is_talked_of() -> None:
    assert (decide([BUG], 0).again, decide([BUG], 0).why) == (False, "")


class Job(RuleBasedStateMachine):
    """A job that fails again and again, with and without progress, as far as the decision lets it."""

    @initialize(budget=st.integers(0, 8), ours=st.booleans())
    def start(self, budget: int, ours: bool) -> None:
        self.budget, self.ours = budget, ours
        self.history: list[Failed] = []
        self.saved, self.over, self.without = 0, False, 0

    @precondition(lambda self: self.over)
    @rule(budget=st.integers(0, 8))
    def is_run_again_by_hand(self, budget: int) -> None:
        # What went before is not counted: somebody may have mended the cause.
        self.budget, self.history, self.over, self.without = budget, [], False, 0

    @precondition(lambda self: not self.over)
    @rule(
        lasts=st.booleans(),
        cause=st.sampled_from("xyz"),
        saves=st.integers(0, 2),
        code=st.sampled_from([1, 1, 1, 1, 2, 3, 137]),
        seconds=st.sampled_from([1.0, LONG_S - 1, LONG_S, 1e6]),
    )
    def fail(self, lasts: bool, cause: str, saves: int, code: int, seconds: float) -> None:
        self.saved += saves
        checkpoint = f"step-{self.saved}" if self.ours else None
        failed = Failed(code, (cause, "", ""), lasts=lasts, checkpoint=checkpoint, seconds=seconds)
        self.without = 1 if saves or not self.history else self.without + 1
        self.history.append(failed)
        decision = decide(self.history, self.budget)
        self.over = not decision.again
        if decision.again:
            assert len(self.history) <= self.budget
            assert code not in (2, 3)
            assert not self.ours or self.without < CRASH_LOOP
            twice = len(self.history) > 1 and self.history[-2].cause == failed.cause
            assert not (self.ours and lasts and twice and self.without > 1)
        else:
            assert (decision.why == "") == (self.budget == 0)
            progress = self.without == 1 if self.ours else seconds >= LONG_S
            early = len(self.history) <= self.budget and code not in (2, 3)
            assert not (early and progress), f"given up although it got further: {decision.why}"
        # The same history is judged the same, whoever asks again.
        assert decide(list(self.history), self.budget) == decision


TestJob = Job.TestCase
TestJob.settings = settings(max_examples=1000, stateful_step_count=20, deadline=None)


@given(budget=st.integers(0, 50), steps=st.lists(st.sampled_from("xyz"), min_size=1, max_size=60))
def test_whatever_fails_the_job_ends_within_its_budget(budget: int, steps: list[str]) -> None:
    history: list[Failed] = []
    for number, cause in enumerate(steps):
        history.append(replace(FLAKY, cause=(cause, "", ""), checkpoint=f"step-{number}"))
        if not decide(history, budget).again:
            break
    assert len(history) == min(len(steps), budget + 1)
