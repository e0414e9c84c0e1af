"""Of many exits the one that came first, what it means, and whether another attempt is worth it."""

import dataclasses
import signal

import pytest

from launcher.restarts import Failed, is_crash_loop
from launcher.verdict import (
    Exit,
    exit_code,
    failure_row,
    first_failure,
    not_asked_for,
    panel,
    with_early_end,
    with_the_trainers_word,
)
from trainer.errors import STOPPED

ECHO = Exit(0, 1, time=1.0, type="RuntimeError", message="[gloo/transport/tcp/pair.cc:547] Connection closed by peer")
CAUSE = Exit(1, 1, "node-1", time=1.2, type="ValueError", message="bad value")


def test_the_cause_is_found_although_its_echo_was_faster() -> None:
    assert first_failure([ECHO, CAUSE]) is CAUSE
    assert first_failure([ECHO]) is ECHO
    assert first_failure([Exit(0, 0), Exit(1, STOPPED)]) is None


def test_a_killed_worker_comes_before_what_the_others_say_but_an_abort_does_not() -> None:
    killed, aborted = Exit(1, -signal.SIGKILL), Exit(1, -signal.SIGABRT)
    assert first_failure([ECHO, killed]) is killed
    assert first_failure([aborted, CAUSE]) is CAUSE


def test_a_worker_that_ended_early_is_the_cause_of_echoes_but_of_no_error_of_their_own() -> None:
    first = first_failure(with_early_end([ECHO], [2, 1]))
    assert first is not None
    assert (first.rank, first.type, first.code) == (1, "EarlyExit", 1)
    assert first.message == "ranks 1, 2 ended with exit code 0 while rank 0 still had work to share"
    assert first_failure(with_early_end([ECHO, CAUSE], [2])) is CAUSE
    assert first_failure(with_early_end([ECHO], [])) is ECHO
    assert first_failure(with_early_end([], [0, 1])) is None


def test_what_the_trainer_wrote_counts_unless_it_is_an_echo() -> None:
    silent = [Exit(0, 1, time=1.0), Exit(1, 1, time=2.0)]
    row = {"rank": 1, "type": "ValueError", "message": "bad value", "traceback": "t", "advice": "mend it"}
    first = first_failure(with_the_trainers_word(silent, row))
    assert first is not None
    assert (first.rank, first.message, first.advice) == (1, "bad value", "mend it")
    echo = {"rank": 0, "type": ECHO.type, "message": ECHO.message}
    killed = Exit(1, -signal.SIGKILL)
    assert first_failure(with_the_trainers_word([silent[0], killed], echo)) is killed


SILENCE = Exit(
    0, 1, time=0.5, type="RuntimeError",
    message="[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 30000ms for recv",
)  # fmt: skip


def test_a_time_out_is_the_sign_of_a_worker_that_hangs_and_the_echo_of_none() -> None:
    # The one that was waited for gets to hear of the end of the one that gave up.
    assert first_failure([dataclasses.replace(ECHO, rank=1, time=0.1), SILENCE]) is SILENCE
    assert first_failure([SILENCE, CAUSE]) is CAUSE
    assert first_failure([SILENCE, Exit(1, -signal.SIGSEGV)]) == Exit(1, -signal.SIGSEGV)
    early = first_failure(with_early_end([SILENCE], [1]))
    assert early is not None
    assert (early.rank, early.type) == (1, "EarlyExit")
    row = failure_row(SILENCE, attempt=0, code=1, log="l")
    assert "did not answer in time" in row["meaning"]
    store = Exit(0, 1, type="DistStoreError", message="wait timeout after 300000ms, keys: /worker/1")
    assert store.is_silence
    assert not store.is_echo


def test_an_exit_code_without_a_word_is_told_as_that() -> None:
    row = failure_row(Exit(1, 7), attempt=0, code=1, log="l")
    assert (row["type"], row["message"]) == ("exit code 7", "the script ended with exit code 7")


def test_of_two_causes_the_earlier_wins() -> None:
    later = dataclasses.replace(CAUSE, rank=0, time=1.3)
    assert first_failure([later, CAUSE]) is CAUSE


@pytest.mark.parametrize(
    ("exit", "asked_for"),
    [
        (Exit(0, 0), True),
        (Exit(0, STOPPED), True),
        (Exit(0, -signal.SIGTERM), True),
        (Exit(0, 143, time=1.0, type="SystemExit"), True),
        (Exit(0, 1, time=1.0, type="KeyboardInterrupt"), True),
        (ECHO, True),
        (SILENCE, True),
        (CAUSE, False),
        (Exit(0, -signal.SIGABRT), True),
        (dataclasses.replace(ECHO, code=-signal.SIGABRT), True),
        (dataclasses.replace(CAUSE, code=-signal.SIGABRT), False),
        (Exit(0, -signal.SIGSEGV), False),
        (Exit(0, -signal.SIGKILL), False),
        (Exit(7, -signal.SIGKILL), True),
    ],
)
def test_what_a_request_to_stop_explains_and_what_it_does_not(exit: Exit, asked_for: bool) -> None:
    assert (not_asked_for([exit], killed=[7]) == []) is asked_for


@pytest.mark.parametrize(
    ("codes", "stopped_by", "code"),
    [
        ([0, 0], None, 0),
        ([75, 75], None, 75),
        ([0, 75], None, 75),
        ([75, 75], signal.SIGTERM, 75),
        ([0, 75], signal.SIGTERM, 75),
        ([0, 75, -15], signal.SIGTERM, 143),
        ([75, -9], signal.SIGINT, 130),
        ([0, 0], signal.SIGTERM, 0),
        ([], signal.SIGTERM, 143),
        ([], None, 1),
        ([2], None, 2),
        ([3], None, 3),
        ([124], None, 124),
        ([7], None, 1),
        ([-9], None, 137),
        ([-11], None, 139),
    ],
)
def test_the_exit_code_is_the_first_failures(codes: list[int], stopped_by: int | None, code: int) -> None:
    assert exit_code([Exit(rank, value) for rank, value in enumerate(codes)], stopped_by) == code


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
        Failed((cause, "", ""), checkpoint, seconds) for checkpoint, cause in zip(checkpoints, causes, strict=True)
    ]
    assert is_crash_loop(history) is loop


def test_a_panel_says_each_thing_once() -> None:
    row = failure_row(CAUSE, attempt=2, code=1, log="runs/x/logs/attempt-2/rank-1.log")
    text = panel(row, again="paceline run run.name=x", ours=True)
    assert text.splitlines()[0] == "✗ failed: ValueError on rank 1, node-1"
    assert text.count("bad value") == 1
    assert "rank-1.log" in text
    assert "paceline run run.name=x" in text
    killed = failure_row(Exit(3, -signal.SIGKILL), attempt=0, code=137, log="l")
    assert panel(killed, again="", ours=False).count("SIGKILL") == 2
    ended = {**row, "type": "SystemExit", "message": "2", "log": "runs/a-2026/rank-0.log"}
    assert "runs/a-2026/rank-0.log" in panel(ended, again="paceline run cluster.gpus_per_node=2", ours=False)
    assert "cluster.gpus_per_node=2" in panel(ended, again="paceline run cluster.gpus_per_node=2", ours=False)
    assert killed["meaning"]


@pytest.mark.parametrize(
    ("code", "ours", "label"),
    [(1, True, "again"), (3, True, "then"), (2, True, ""), (2, False, "again"), (3, False, "again")],
)
def test_a_command_that_must_fail_again_is_not_offered(code: int, ours: bool, label: str) -> None:
    row = failure_row(CAUSE, attempt=0, code=code, log="l")
    last = panel(row, again="paceline run run.name=x", ours=ours).splitlines()[-1].split()
    assert last == ([label, "paceline", "run", "run.name=x"] if label else ["log", "l"])
