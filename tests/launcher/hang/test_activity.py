"""Signs of life of processes that tell nothing, as the kernel and their stacks show them."""

import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest

from launcher.hang import activity
from launcher.hang.activity import Activity, Effort
from launcher.hang.spinning import Spin, begin
from launcher.hang.stacks import Frame, Stacks, Thread
from tests.waiting import until

COLLECTIVE = (Frame("all_reduce", "/v/torch/distributed/distributed_c10d.py", 1), Frame("main", "/me/train.py", 8))
OWN = (Frame("count", "/me/train.py", 3), Frame("main", "/me/train.py", 8))
LIMIT_S = 8.0


@contextmanager
def computing(*, beside: bool) -> Iterator[int]:
    """A process that computes: in its main thread, or in one beside it."""
    if not (child := os.fork()):
        if beside:
            threading.Thread(target=spin).start()
            signal.pause()
        spin()
    yield child
    os.kill(child, 9)
    os.waitpid(child, 0)


def spin() -> NoReturn:
    while True:
        pass


@pytest.fixture
def spinning() -> Iterator[int]:
    """A process that computes in its main thread."""
    with computing(beside=False) as pid:
        yield pid


@pytest.fixture
def idle() -> Iterator[int]:
    """A process that does nothing."""
    if not (child := os.fork()):
        signal.pause()
    yield child
    os.kill(child, 9)
    os.waitpid(child, 0)


def unseen(pid: int, seconds: float) -> None:
    """No closer look."""


def seen(frames: tuple[Frame, ...]) -> Stacks:
    return Stacks("R", threads=(Thread("MainThread", frames),))


def marks_over_time(pid: int, frames: list[tuple[Frame, ...]], log: Path) -> list[int]:
    """Signs of life after each quarter of the limit, of a process with such stacks in turn."""

    def take(pids: Collection[int]) -> dict[int, Stacks]:
        return {pid: seen(frames.pop(0) if len(frames) > 1 else frames[0]) for pid in pids}

    activity, marks = Activity(LIMIT_S, take, unseen), []
    for quarter in range(6):
        compute_a_little(pid)
        marks.append(activity.look(quarter * LIMIT_S / 4, {0: pid}, {0: log})[0])
    return marks


def compute_a_little(pid: int) -> None:
    """Waits until a process has, unless it does nothing."""
    if state(pid) != "S":
        compute(pid, 0.06)


def compute(pid: int, seconds: float) -> None:
    """Waits until a process has used so many more CPU seconds."""
    enough = used(pid) + seconds
    until(lambda: used(pid) >= enough, "it has computed a little")


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
    activity = Activity(LIMIT_S, lambda pids: {pid: seen(OWN) for pid in pids}, unseen)
    before = activity.look(0.0, {0: idle}, {0: log})[0]
    log.write_text("a line\n")
    assert activity.look(2.0, {0: idle}, {0: log})[0] == before + 1
    assert activity.look(4.0, {0: idle}, {0: log})[0] == before + 1


@pytest.mark.parametrize(
    ("effort", "works"),
    [
        (Effort(main_s=0.2), True),
        (Effort(main_s=0.19), False),
        (Effort(beside_s=1.0), True),
        (Effort(main_s=0.1, beside_s=0.99), False),
        (Effort(moved=2_000_000), True),
        (Effort(moved=1_999_999), False),
    ],
)
def test_beside_a_main_thread_that_waits_only_a_tenth_of_a_core_is_work(effort: Effort, works: bool) -> None:
    assert effort.is_work(10.0) is works
    assert Effort(1.0, 1.0, 1).is_work(100.0) is False
    assert Effort(0.02, 0.02).is_work(0.1) is False


@pytest.mark.parametrize("beside", [False, True])
def test_a_twentieth_of_a_core_is_work_in_the_main_thread_alone_and_of_the_time_that_passed_in_truth(
    beside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with computing(beside=beside) as pid:
        monkeypatch.setattr(activity, "time", SimpleNamespace(monotonic=lambda: 20 * used(pid)))
        watch, marks = Activity(LIMIT_S, lambda pids: {pid: seen(OWN) for pid in pids}, unseen), []
        for look in range(3):
            # The clock of the watch hardly goes on while it looks into processes or waits for the CPU.
            marks.append(watch.look(look * 1.0, {0: pid}, {0: tmp_path / "log"})[0])
            compute(pid, 0.15)
    assert marks[2] - marks[0] == (0 if beside else 2)


DEVICE = """
static volatile long count;
int cudaStreamSynchronize(long spins) {
    for (long spin = 0; spin != spins; spin++) count++;
    return 0;
}
"""
"""A library that waits as CUDA does: by computing, in a function of that name."""

WAITS = """
import ctypes, os, sys
wait = getattr((ctypes.PyDLL if sys.argv[2] == "holds" else ctypes.CDLL)(sys.argv[1]), "cudaStreamSynchronize")
def item():
    wait(ctypes.c_long(int(sys.argv[3])))
os.write(1, b".")
while True:
    item()
    sum(range(50_000))
"""


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("device")
    (folder / "device.c").write_text(DEVICE)
    library = folder / "libdevice.so"
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", library, folder / "device.c"], check=True)
    return library


@pytest.mark.parametrize(("lock", "spins", "lives"), [("holds", -1, False), ("frees", 10**7, True)])
def test_who_only_spins_in_one_wait_for_its_device_does_not_live_and_who_often_waits_so_does(
    lock: str, spins: int, lives: bool, device: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", WAITS, str(device), lock, str(spins)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.read(1)
        marks = marks_of_one_always_at_the_same_place(process.pid, tmp_path / "log")
    finally:
        process.kill()
        process.communicate()
    if lives:
        assert marks == [*range(marks[0], marks[0] + 5)]
    else:
        assert marks[-1] == marks[-2] == marks[-3] + 1


def marks_of_one_always_at_the_same_place(pid: int, log: Path) -> list[int]:
    """Signs of life after each quarter, of a process that is looked at closely."""
    looks: list[Spin] = []

    def look_closely(pid: int, seconds: float) -> Spin:
        # Whether it computes or waits in a single moment is chance.
        until(lambda: looks.extend(filter(None, [begin(pid, seconds)])) or looks, "it waits for its device")
        return looks.pop()

    limit_s, marks = LIMIT_S / 4, []
    activity = Activity(limit_s, lambda pids: {pid: seen(OWN) for pid in pids}, look_closely)
    for quarter in range(5):
        if quarter and (spin := activity._workers[0].spin):
            spin.wait()
        compute(pid, 0.06)
        marks.append(activity.look(float(quarter), {0: pid}, {0: log})[0])
    return marks
