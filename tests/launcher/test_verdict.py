"""Of many exits the one that came first, what it means, and what followed it."""

import dataclasses
import signal
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.ending.folding import fold, line
from launcher.ending.outcome import Outcome, merged
from launcher.verdict import (
    Exit,
    as_rank_zero_says,
    exit_code,
    failure_row,
    first_failure,
    not_asked_for,
    panel,
    with_early_end,
    would_come_again,
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


def test_an_abort_is_the_cause_unless_its_log_speaks_of_others() -> None:
    aborted = Exit(3, -signal.SIGABRT)
    assert first_failure([SILENCE, ECHO, aborted]) is aborted
    assert first_failure(with_early_end([ECHO, aborted], [1])) is aborted
    for said in ("NCCL communicator was aborted on rank 3", "Timed out waiting 9 ms"):
        echo = dataclasses.replace(aborted, message=said)
        early = first_failure(with_early_end([echo], [1]))
        assert early is not None
        assert early.type == "EarlyExit"
    assert failure_row(aborted, attempt=0, code=134, log="l", ours=False)["message"] == "killed by SIGABRT"


def test_a_worker_that_ended_early_is_the_cause_of_echoes_but_of_no_error_of_their_own() -> None:
    first = first_failure(with_early_end([ECHO], [2, 1]))
    assert first is not None
    assert (first.rank, first.type, first.code) == (1, "EarlyExit", 1)
    assert first.message == "ranks 1, 2 ended with exit code 0 while rank 0 still had work to share"
    for exits, codes in (([Exit(1, 75)], "75"), ([Exit(1, 75), Exit(2, 0)], "0 and 75")):
        first = first_failure(with_early_end([ECHO, *exits], [exit.rank for exit in exits]))
        assert first is not None
        assert (first.rank, first.type) == (1, "EarlyExit")
        assert f"ended with exit code {codes} while rank 0 still" in first.message
    assert first_failure(with_early_end([ECHO, CAUSE], [2])) is CAUSE
    assert first_failure(with_early_end([ECHO], [])) is ECHO
    assert first_failure(with_early_end([], [0, 1])) is None


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
    row = failure_row(SILENCE, attempt=0, code=1, log="l", ours=False)
    assert "did not answer in time" in row["meaning"]
    store = Exit(0, 1, type="DistStoreError", message="wait timeout after 300000ms, keys: /worker/1")
    assert store.is_silence
    assert not store.is_echo


def test_an_exit_code_without_a_word_is_told_as_that() -> None:
    row = failure_row(Exit(1, 7), attempt=0, code=1, log="l", ours=False)
    assert (row["type"], row["message"]) == ("exit code 7", "the script ended with exit code 7")


def test_what_all_ranks_find_out_together_is_rank_zeros_word() -> None:
    quicker = Exit(1, 1, time=1.0, type="TrainingError", message="the loss is not finite")
    slower = dataclasses.replace(quicker, rank=0, time=1.5)
    assert as_rank_zero_says([quicker, slower], quicker) is slower
    assert as_rank_zero_says([quicker, dataclasses.replace(slower, message="another")], quicker) is quicker
    killed = Exit(1, -9)
    assert as_rank_zero_says([Exit(0, -9), killed], killed) is killed


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


def test_a_panel_says_each_thing_once() -> None:
    row = failure_row(CAUSE, attempt=2, code=1, log="runs/x/logs/attempt-2/rank-1.log", ours=False)
    text = panel(row, again="paceline run run.name=x", ours=True)
    assert text.splitlines()[0] == "✗ failed: ValueError on rank 1, node-1"
    assert text.count("bad value") == 1
    assert "rank-1.log" in text
    assert "paceline run run.name=x" in text
    killed = failure_row(Exit(3, -signal.SIGKILL), attempt=0, code=137, log="l", ours=False)
    assert panel(killed, again="", ours=False).count("SIGKILL") == 2
    ended = {**row, "type": "SystemExit", "message": "2", "log": "runs/a-2026/rank-0.log"}
    assert "runs/a-2026/rank-0.log" in panel(ended, again="paceline run cluster.gpus_per_node=2", ours=False)
    assert "cluster.gpus_per_node=2" in panel(ended, again="paceline run cluster.gpus_per_node=2", ours=False)
    assert killed["meaning"]


@pytest.mark.parametrize(
    ("code", "ours", "label"),
    [(1, True, "again"), (3, True, "then"), (2, True, ""), (2, False, ""), (3, False, "again")],
)
def test_a_command_that_must_fail_again_is_not_offered(code: int, ours: bool, label: str) -> None:
    row = failure_row(CAUSE, attempt=0, code=code, log="l", ours=False)
    last = panel(row, again="paceline run run.name=x", ours=ours).splitlines()[-1].split()
    assert last == ([label, "paceline", "run", "run.name=x"] if label else ["log", "l"])


def test_a_command_that_works_with_one_more_override_is_offered_with_it() -> None:
    lacking = dataclasses.replace(CAUSE, override="data.on_bad_image=skip")
    row = failure_row(lacking, attempt=0, code=3, log="l", ours=True)
    last = panel(row, again="paceline run run.name=x", ours=True).splitlines()[-1].split()
    assert last == ["again", "paceline", "run", "run.name=x", "data.on_bad_image=skip"]


def test_the_first_failure_has_the_catalogues_meaning_and_our_keys_only_where_our_trainer_ran() -> None:
    lacking = Exit(0, 1, type="OutOfMemoryError", message="CUDA out of memory. Tried to allocate 2.00 GiB.")
    rows = [failure_row(lacking, attempt=0, code=1, log="l", ours=ours) for ours in (False, True)]
    assert [row["meaning"] for row in rows] == ["the GPU is out of memory"] * 2
    assert ["micro_batch_size" in row["advice"] for row in rows] == [False, True]
    own = dataclasses.replace(lacking, advice="as I say", meaning="what I mean")
    row = failure_row(own, attempt=0, code=1, log="l", ours=True)
    assert (row["advice"], row["meaning"]) == ("as I say", "what I mean")


# Errors of every kind that a rank can have, for the properties below.
OWN = st.sampled_from(
    ["ValueError: bad value", "OSError: [Errno 28] No space left on device", "Hang: no step for 60 s"]
)
ECHOES = st.sampled_from(
    [
        "RuntimeError: Connection closed by peer",
        "DistBackendError: NCCL error: remote process exited",
        "RuntimeError: [gloo] Connection reset by peer",
    ]
)
TIMES = st.floats(min_value=1, max_value=10)


def own_exits(rank: int) -> st.SearchStrategy[Exit]:
    told = st.builds(lambda time, text: _told(rank, 1, time, text), TIMES, OWN)
    return st.one_of(told, st.sampled_from([Exit(rank, -9), Exit(rank, -11), Exit(rank, 7)]))


def echoes(rank: int) -> st.SearchStrategy[Exit]:
    return st.builds(lambda code, time, text: _told(rank, code, time, text), st.sampled_from([1, -6]), TIMES, ECHOES)


def _told(rank: int, code: int, time: float, text: str) -> Exit:
    kind, _, message = text.partition(": ")
    return Exit(rank, code, f"node-{rank // 8}", time=time, type=kind, message=message)


@st.composite
def jobs(draw: st.DrawFn) -> list[Exit]:
    """The exits of a job of up to 8 ranks, in any order of arrival."""
    good = st.sampled_from([0, STOPPED])
    kinds = [lambda rank: st.builds(Exit, st.just(rank), good), own_exits, echoes]
    exits = [draw(draw(st.sampled_from(kinds))(rank)) for rank in range(draw(st.integers(0, 8)))]
    return draw(st.permutations(exits))


@given(exits=jobs(), data=st.data())
def test_the_verdict_is_the_same_whatever_came_first(exits: list[Exit], data: st.DataObject) -> None:
    other = data.draw(st.permutations(exits))
    first = first_failure(exits)
    assert first_failure(other) == first
    assert exit_code(other) == exit_code(exits)
    if first is not None:
        assert line(fold(other, first)) == line(fold(exits, first))


@given(exits=jobs())
def test_an_error_of_a_ranks_own_beats_every_echo_and_the_earliest_own_wins(exits: list[Exit]) -> None:
    first = first_failure(exits)
    failed = [exit for exit in exits if exit.code not in (0, STOPPED)]
    own = [exit for exit in failed if not exit.is_echo]
    assert (first is None) == (not failed)
    if own:
        assert first in own
        told = [exit for exit in own if not exit.is_untold]
        assert first is not None
        assert all((first.time or 0) <= (exit.time or 0) for exit in told)


@given(exits=jobs(), stopped_by=st.sampled_from([None, signal.SIGTERM, signal.SIGINT]))
def test_no_job_that_lost_a_rank_ends_with_0_or_75(exits: list[Exit], stopped_by: int | None) -> None:
    code = exit_code(exits, stopped_by)
    lost = not exits or any(exit.code not in (0, STOPPED) for exit in exits)
    assert (code not in (0, STOPPED)) if lost else (code in (0, STOPPED))
    assert 0 <= code < 256


@given(exits=jobs())
def test_every_failure_is_told_or_folded_exactly_once(exits: list[Exit]) -> None:
    first = first_failure(exits)
    if first is not None:
        told = [first.rank, *(rank for group in fold(exits, first) for rank in group.ranks)]
        assert sorted(told) == sorted(exit.rank for exit in exits if exit.code not in (0, STOPPED))
        row = failure_row(first, attempt=0, code=exit_code(exits), log="l", ours=True)
        shown = panel({**row, "others": line(fold(exits, first))}, again="paceline run run.name=x", ours=True)
        assert len(shown.splitlines()) < 12


def test_what_followed_is_folded_into_a_line() -> None:
    closed = "[/pytorch/gloo/transport/tcp/pair.cc:{}] Connection closed by peer [10.0.0.{}]:4{}"
    exits = [
        CAUSE,
        *(
            Exit(rank, 1, time=2.0, type="RuntimeError", message=closed.format(rank, rank, rank))
            for rank in (2, 3, 4, 6)
        ),
        Exit(7, -signal.SIGABRT),
        dataclasses.replace(CAUSE, rank=5),
        Exit(8, 0),
    ]
    assert line(fold(exits, CAUSE)) == (
        "+ 6 more: 4x connection closed by peer (ranks 2-4, 6), 1x the same (rank 5), 1x killed by SIGABRT (rank 7)"
    )
    assert line(fold([CAUSE], CAUSE)) == ""
    many = [Exit(rank, 1, type=f"{'ABCDEFG'[rank]}Error", message="m") for rank in range(7)]
    assert line(fold(many, many[0])).endswith("1x CError: m (rank 2), 1x DError: m (rank 3), 3x other errors")


@pytest.mark.parametrize(
    ("exit", "again"),
    [
        (CAUSE, True),
        (Exit(0, 1, type="ModuleNotFoundError", message="No module named 'timm'"), True),
        (ECHO, False),
        (SILENCE, False),
        (Exit(0, -signal.SIGKILL), False),
        (Exit(0, 7), False),
        (Exit(0, 1, type="SystemExit", message="1"), False),
        (Exit(0, 124, type="Hang", message="no step"), False),
        (Exit(0, 1, type="AcceleratorError", message="CUDA error: uncorrectable ECC error encountered"), False),
        (Exit(0, 1, type="OSError", message="[Errno 5] Input/output error"), False),
    ],
)
def test_an_error_of_the_program_would_come_again_and_one_of_the_machine_may_pass(exit: Exit, again: bool) -> None:
    assert would_come_again(exit) is again


def test_what_differs_in_numbers_only_is_folded_as_one() -> None:
    exits = [Exit(rank, 1, type="ValueError", message=f"rank {rank} has {rank} samples") for rank in range(4)]
    assert line(fold(exits, exits[0])) == "+ 3 more: 3x the same (ranks 1-3)"


def test_the_line_stays_one_however_many_ranks_there_are() -> None:
    exits = [dataclasses.replace(CAUSE, rank=rank) if rank % 3 else Exit(rank, -signal.SIGABRT) for rank in range(4096)]
    assert line(fold(exits, exits[1])) == (
        "+ 4095 more: 2729x the same (ranks 2, 4-5, 7-8, 10-11, ...), 1366x killed by SIGABRT (ranks 0, 3, 6, 9, ...)"
    )


def _calls_to_judge(ranks: int) -> int:
    """How many functions are called to judge so many ranks that have failed."""
    exits = [
        CAUSE if rank == ranks // 2 else dataclasses.replace(ECHO, rank=rank, message=f"{ECHO.message} {rank}")
        for rank in range(ranks)
    ]
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        first = first_failure(exits)
        assert first is not None
        exit_code(exits)
        line(fold(exits, first))
    finally:
        sys.setprofile(None)
    return calls


def test_the_work_to_judge_a_job_grows_with_its_ranks_and_no_faster() -> None:
    few, many = _calls_to_judge(512), _calls_to_judge(4096)
    assert many < 8.5 * few


@given(exits=jobs(), nodes=st.integers(1, 4), data=st.data())
def test_the_verdict_is_the_same_however_the_ranks_lie_on_nodes(
    exits: list[Exit], nodes: int, data: st.DataObject
) -> None:
    places = data.draw(st.lists(st.integers(0, nodes - 1), min_size=len(exits), max_size=len(exits)))
    outcomes = [
        Outcome(0, exits=tuple(exit for exit, place in zip(exits, places, strict=True) if place == node))
        for node in range(nodes)
    ]
    together = merged(data.draw(st.permutations(outcomes)))
    assert first_failure(together.judged) == first_failure(exits)
    assert exit_code(together.exits) == exit_code(exits)
