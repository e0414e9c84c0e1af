"""A hang of several machines: what each has seen comes to one verdict."""

import json
import multiprocessing.process
import multiprocessing.queues
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.ending.outcome import Outcome, merged
from launcher.hang.inquest import concluded
from launcher.hang.sighting import Below, Findings, Sighting, groups, thinned
from launcher.hang.stacks import Frame, Stacks, Thread
from launcher.verdict import HANG, Exit, exit_code, first_failure
from trainer.errors import STOPPED
from trainer.heartbeat import Phase

USER = Frame("main", "/home/me/train.py", 80)
REDUCE = (Frame("all_reduce", "/v/site-packages/torch/distributed/distributed_c10d.py", 3000), USER)
LOADS = (Frame("__next__", "/v/site-packages/torch/utils/data/dataloader.py", 700), USER)
BOOTSTRAP = Frame("_bootstrap", multiprocessing.process.__file__, 314)
WORKER_LOOP = Frame("_worker_loop", "/v/site-packages/torch/utils/data/_utils/worker.py", 349)
READS = (Frame("__getitem__", "/home/me/pages.py", 61), WORKER_LOOP, BOOTSTRAP, *LOADS)
RESTS = (Frame("get", multiprocessing.queues.__file__, 113), WORKER_LOOP, BOOTSTRAP, *LOADS)
BESIDE = Thread("monitor", (Frame("wait", "/usr/lib/python3.11/threading.py", 300),))


def stacks(frames: tuple[Frame, ...], state: str = "S") -> Stacks:
    return Stacks(state, threads=(Thread("MainThread", frames), BESIDE))


def at(rank: int, frames: tuple[Frame, ...] = REDUCE) -> Sighting:
    return Sighting(rank, stacks(frames), f"node{rank // 2}")


def node(number: int, *seen: Sighting, silent_s: float | None, exits: tuple[Exit, ...] = ()) -> Outcome:
    """What its agent sends, as the hub reads it."""
    sent = Outcome(0, exits=exits, findings=(Findings(thinned(seen), silent_s),))
    return Outcome.from_json(json.loads(json.dumps(sent.to_json())))


GAVE_UP = "Timed out waiting 2000ms for recv operation to complete"
WAITED = Exit(0, 1, "node0", time=5.0, type="RuntimeError", message=GAVE_UP)
LOST = Exit(4, 1, "node2", time=1.0, type="NodeLost", message="node 2 is lost")
ERROR = Exit(3, 1, "node1", time=6.0, type="ValueError", message="no")


@pytest.mark.parametrize("frames", [REDUCE, LOADS])
def test_the_rank_that_is_elsewhere_is_named_on_whichever_machine_it_is(
    frames: tuple[Frame, ...], tmp_path: Path
) -> None:
    nodes = [
        node(0, at(0), at(1), silent_s=31.0),
        node(1, at(2), at(3, frames), silent_s=33.0),
        # One whose machine could not end is part of the same.
        Outcome(0, exits=(LOST,)),
    ]
    outcome = concluded(merged(nodes), tmp_path, asked=False)
    first = first_failure(outcome.exits)
    assert first is not None
    assert exit_code(outcome.exits) == HANG
    assert "no output and no work for 33 s" in first.message
    if frames is LOADS:
        assert (first.rank, first.host) == (3, "node1")
        assert first.message.splitlines()[-1].startswith("ranks 0-2: wait in all_reduce")
    else:
        assert first.message.startswith("all ranks hang")
    text = (tmp_path / "stacks.txt").read_text()
    assert first.stacks == str(tmp_path / "stacks.txt")
    assert text.count("monitor") == len(groups([at(0), at(1, frames)]))


@pytest.mark.parametrize("code", [0, STOPPED])
def test_who_had_ended_well_on_another_machine_is_the_one_that_is_waited_for(code: int, tmp_path: Path) -> None:
    ended = Outcome(0, exits=(Exit(2, code, "node1"), Exit(3, code, "node1")), early=(2, 3))
    outcome = concluded(merged([node(0, at(0), at(1), silent_s=31.0), ended]), tmp_path, asked=False)
    first = first_failure(outcome.exits)
    assert first is not None
    assert (first.rank, first.host, first.code) == (2, "node1", HANG)
    assert f"ranks 2-3: had ended with exit code {code}" in first.message


@pytest.mark.parametrize("asked", [True, False])
def test_who_had_ended_as_asked_is_no_cause_of_what_others_waited_for(asked: bool, tmp_path: Path) -> None:
    outcome = concluded(Outcome(0, exits=(WAITED, Exit(1, STOPPED))), tmp_path, asked=asked)
    assert [exit.type for exit in outcome.exits if exit.code != STOPPED] == ["RuntimeError" if asked else "Hang"]


@pytest.mark.parametrize(
    ("more", "cause"),
    [((), (3, "Hang")), ((ERROR,), (3, "ValueError")), ((LOST,), (4, "NodeLost"))],
)
def test_where_ranks_were_explains_a_wait_in_vain_and_no_other_failure(
    more: tuple[Exit, ...], cause: tuple[int, str], tmp_path: Path
) -> None:
    gone = Sighting(0, Stacks(""), "node0", gave_up=GAVE_UP)
    nodes = [
        node(0, gone, at(1), silent_s=None, exits=(WAITED,)),
        # Rank 2 was seen on its way out.
        node(1, at(2, LOADS), at(3, LOADS), silent_s=None, exits=(replace(WAITED, rank=2), *more)),
    ]
    first = first_failure(concluded(merged(nodes), tmp_path, asked=False).exits)
    assert first is not None
    assert (first.rank, first.type) == cause
    assert (tmp_path / "stacks.txt").exists() == (not more)


def test_what_a_machine_has_seen_comes_through_whole() -> None:
    below = (Below(71, stacks(READS)), Below(72, stacks(RESTS)))
    one = Sighting(1, stacks(LOADS), "node0", Phase.STEP, beats=7, step=9, busy=True, below=below)
    sent = node(0, at(0), one, silent_s=31.5)
    assert sent.findings == (Findings((at(0), one), 31.5),)


@pytest.mark.parametrize(
    ("below", "said", "place"),
    [
        (
            [stacks(RESTS), stacks(READS)],
            ["    its process 71 is in __getitem__ (me/pages.py:61), and 1 more, see the stacks"],
            "/home/me/pages.py:61 in __getitem__",
        ),
        (
            [stacks(RESTS, "T")],
            ["    its process 70 is stopped (SIGSTOP) in get (multiprocessing/queues.py:113)"],
            "/home/me/train.py:80 in main",
        ),
        (
            [stacks(RESTS), stacks(RESTS)],
            ["    its loading processes (2) wait for work"],
            "/home/me/train.py:80 in main",
        ),
        ([], [], "/home/me/train.py:80 in main"),
    ],
)
def test_of_a_rank_that_waits_for_its_loading_processes_it_is_said_what_those_are_at(
    below: list[Stacks], said: list[str], place: str, tmp_path: Path
) -> None:
    started = tuple(Below(70 + number, one) for number, one in enumerate(below))
    one = Sighting(1, stacks(LOADS), "node0", below=started)
    hang = first_failure(concluded(node(0, at(0), one, silent_s=31.0), tmp_path, asked=False).exits)
    assert hang is not None
    assert hang.message.splitlines()[2:-1] == said
    assert hang.place == place
    text = (tmp_path / "stacks.txt").read_text()
    assert ("process 71, started by rank 1, " in text) == (len(below) == 2)
