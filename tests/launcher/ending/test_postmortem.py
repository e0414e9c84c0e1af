"""What is found out about a worker that died without a word."""

import os
import signal
from pathlib import Path

import pytest

from launcher.ending import memory
from launcher.ending.memory import Kills
from launcher.ending.postmortem import Evidence, examined, tail
from launcher.processes import peak_memory
from launcher.verdict import Exit

NONE = Kills(0, 0)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(memory, "count_kills", lambda: NONE)
    monkeypatch.setattr(memory, "memory_limit", lambda: 1 << 30)
    return tmp_path / "rank-1.log"


def test_a_native_death_is_told_by_the_end_of_its_log(log: Path) -> None:
    log.write_bytes(b"\xff" * 100_000 + b"\nfree(): double free detected in tcache 2\nFatal Python error: Aborted\n")
    evidence = Evidence(log, NONE, None, ours=False)
    assert "damaged its own memory" in examined(Exit(1, -signal.SIGABRT), evidence).meaning
    assert "damaged its own memory" in examined(Exit(1, 134), evidence).meaning
    told = Exit(1, 1, type="ValueError", message="bad")
    assert examined(told, evidence) is told
    assert examined(Exit(1, 0), evidence) == Exit(1, 0)


def test_an_abort_of_nccls_watchdog_is_known_by_its_log_and_any_other_is_its_own_cause(log: Path) -> None:
    evidence, aborted = Evidence(log, NONE, None, ours=False), Exit(1, -signal.SIGABRT)
    log.write_text(
        "[rank1]: Watchdog caught collective operation timeout: WorkNCCL(SeqNum=199, OpType=ALLREDUCE) ran for 600013 "
        "milliseconds before timing out.\nterminate called after throwing an instance of 'c10::DistBackendError'\n"
        "frame #2: c10d::ProcessGroupNCCL::WorkNCCL::checkTimeout(std::optional<std::chrono::duration<long> >)\n"
    )
    assert examined(aborted, evidence).is_silence
    log.write_text("what():  NCCL error: remote process exited or there was a network error\nframe #0: c10::Error\n")
    assert examined(aborted, evidence).is_echo
    log.write_text("my_extension.cc:7: assertion failed\nFatal Python error: Aborted\n")
    own = examined(aborted, evidence)
    assert (own.is_silence, own.is_echo, own.message) == (False, False, "")


def test_only_the_end_counts_and_no_log_is_no_error(log: Path) -> None:
    evidence = Evidence(log, NONE, None, ours=False)
    assert tail(log) == ""
    assert examined(Exit(1, -signal.SIGSEGV), evidence).meaning == ""
    log.write_text("Too many open files\n" + "step\n" * 10_000)
    assert examined(Exit(1, -signal.SIGSEGV), evidence).meaning == ""


def test_a_bus_error_is_told_with_the_room_in_shared_memory(log: Path) -> None:
    assert "/dev/shm has " in examined(Exit(1, -signal.SIGBUS), Evidence(log, NONE, None, ours=True)).meaning


def test_a_kill_for_want_of_memory_names_the_rank_and_what_it_held(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = Evidence(log, NONE, 900 << 20, ours=False)
    assert examined(Exit(1, -signal.SIGKILL), evidence).meaning == ""
    monkeypatch.setattr(memory, "count_kills", lambda: Kills(1, 1))
    meaning = examined(Exit(1, -signal.SIGKILL), evidence).meaning
    assert meaning.startswith("OOM-killed")
    assert meaning.endswith("the limit of 1.0 GiB; rank 1 held up to 900.0 MiB")
    # What was killed is the loading process, not the rank that tells of it.
    loader = Exit(1, 1, type="RuntimeError", message="DataLoader worker (pid 7) is killed by signal: Killed. ")
    assert examined(loader, evidence).meaning.endswith("the limit of 1.0 GiB")


def test_the_kernel_tells_how_much_memory_a_dead_child_had() -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        kept = bytearray(os.urandom(1 << 20) * 100)
        os.write(writer, kept[:1])
        signal.pause()
    os.read(reader, 1)
    assert peak_memory(child) is None
    os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    peak = peak_memory(child)
    assert peak is not None
    assert 100 << 20 < peak < 2 << 30
    os.waitpid(child, 0)
    assert peak_memory(child) is None
    for end in (reader, writer):
        os.close(end)
