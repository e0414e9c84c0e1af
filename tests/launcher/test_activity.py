"""Signs of life of processes that tell nothing, as the kernel and their stacks show them."""

import itertools
import os
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from launcher.activity import Activity
from launcher.stacks import Frame, Stacks, Thread
from tests.waiting import until

COLLECTIVE = (Frame("all_reduce", "/v/torch/distributed/distributed_c10d.py", 1), Frame("main", "/me/train.py", 8))
OWN = (Frame("count", "/me/train.py", 3), Frame("main", "/me/train.py", 8))
LIMIT_S = 8.0


@pytest.fixture
def spinning() -> Iterator[int]:
    """A process that computes."""
    if not (child := os.fork()):
        while True:
            pass
    yield child
    os.kill(child, 9)
    os.waitpid(child, 0)


@pytest.fixture
def idle() -> Iterator[int]:
    """A process that does nothing."""
    if not (child := os.fork()):
        time.sleep(600)
    yield child
    os.kill(child, 9)
    os.waitpid(child, 0)


def seen(frames: tuple[Frame, ...]) -> Stacks:
    return Stacks("R", threads=(Thread("MainThread", frames),))


def marks_over_time(pid: int, frames: list[tuple[Frame, ...]], log: Path) -> list[int]:
    """Signs of life after each quarter of the limit, of a process with such stacks in turn."""

    def take(pids: Collection[int]) -> dict[int, Stacks]:
        return {pid: seen(frames.pop(0) if len(frames) > 1 else frames[0]) for pid in pids}

    activity, marks = Activity(LIMIT_S, take), []
    for quarter in range(6):
        compute_a_little(pid)
        marks.append(activity.look(quarter * LIMIT_S / 4, {0: pid}, {0: log})[0])
    return marks


def compute_a_little(pid: int) -> None:
    """Waits until a process has, unless it does nothing."""
    enough = used(pid) + 0.06
    until(lambda: used(pid) >= enough or state(pid) == "S", "it has computed a little")


def used(pid: int) -> float:
    return sum(map(int, fields(pid)[11:13])) / os.sysconf("SC_CLK_TCK")


def state(pid: int) -> str:
    return fields(pid)[0]


def fields(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def test_who_computes_lives_though_its_stack_never_changes(spinning: int, tmp_path: Path) -> None:
    marks = marks_over_time(spinning, [OWN], tmp_path / "log")
    assert all(later > earlier for earlier, later in itertools.pairwise(marks))


def test_who_spins_in_one_collective_does_not_live_until_its_stack_changes(spinning: int, tmp_path: Path) -> None:
    marks = marks_over_time(spinning, [COLLECTIVE], tmp_path / "log")
    assert marks[-1] == marks[-2] == marks[-3]
    again = marks_over_time(spinning, [COLLECTIVE, COLLECTIVE, COLLECTIVE, OWN], tmp_path / "log")
    assert again[-1] > again[-2]


def test_an_idle_process_lives_only_by_what_it_prints_and_by_where_it_is(idle: int, tmp_path: Path) -> None:
    quiet = marks_over_time(idle, [OWN], tmp_path / "log")
    assert len(set(quiet[1:])) == 1
    moving = marks_over_time(idle, [OWN, OWN, COLLECTIVE, OWN], tmp_path / "log")
    assert moving[-1] == quiet[-1] + 2
    log = tmp_path / "log"
    activity = Activity(LIMIT_S, lambda pids: {pid: seen(OWN) for pid in pids})
    before = activity.look(0.0, {0: idle}, {0: log})[0]
    log.write_text("a line\n")
    assert activity.look(2.0, {0: idle}, {0: log})[0] == before + 1
    assert activity.look(4.0, {0: idle}, {0: log})[0] == before + 1
