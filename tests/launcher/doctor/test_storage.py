"""`paceline doctor --storage`: it passes real storage, leaves nothing there, and sees each promise that is broken."""

import errno
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.doctor import storage
from launcher.doctor.finding import FAIL, PASS, WARN, Check, Finding, check, examine
from launcher.verbs import doctor
from tests.launcher.conftest import small_disk  # noqa: F401  # a fixture
from trainer.errors import UnfitError


def test_real_storage_passes_and_nothing_is_left_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--storage", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    states = {row["name"]: row["state"] for row in found["findings"]}
    assert len(states) == len(storage.CHECKS)
    # How much room and how fast a disk there is differs from machine to machine.
    assert {name: state for name, state in states.items() if state != PASS}.keys() <= {"room", "sync", "speed"}
    assert str(tmp_path) in found["verdict"]
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_to_try_anything_is_the_one_thing_said(
    small_disk: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["doctor", "--storage", str(small_disk)]) == 3
    out = capsys.readouterr().out
    assert out.startswith("  fail  room ")
    assert out.endswith(f"{small_disk} does not keep its promises (room): a checkpoint may be lost there\n")
    assert list(small_disk.iterdir()) == []


def test_memory_in_a_disks_place_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert storage.kind(Path("/proc")) == "proc"
    monkeypatch.setattr(storage, "kind", lambda path: "tmpfs")
    found = storage.syncing(tmp_path)
    assert (found.state, "tmpfs is memory: a restart of the machine loses all" in found.message) == (WARN, True)


@pytest.mark.parametrize(("path", "code"), [("absent", 2), ("/proc", 3)])
def test_where_nothing_can_be_tried_is_said(path: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--storage", path]) == code
    told = capsys.readouterr()
    assert path in (told.err if code == 2 else told.out)


Break = Callable[[pytest.MonkeyPatch], None]


def torn_replace(monkeypatch: pytest.MonkeyPatch) -> None:
    read, was_seen = Path.read_bytes, threading.Event()

    def read_bytes(self: Path) -> bytes:
        content = read(self)
        if not content:
            was_seen.set()
        return content

    def replace(self: Path, target: Path) -> Path:
        with target.open("wb") as stream:
            assert was_seen.wait(20)
            stream.write(read(self))
        return target

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    monkeypatch.setattr(Path, "replace", replace)


def covering_rename(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if target.exists():
            shutil.rmtree(target)
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)


def refused_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)


def shared_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_lock", lambda path: True)


def kept_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_lock", lambda path: False)
    monkeypatch.setattr(storage, "_CHILD_LIMIT_S", 0.1)


def overwriting_append(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_APPEND", storage._APPEND.replace(" | os.O_APPEND", ""))


def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def hardlink_to(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "hardlink_to", hardlink_to)


def fast_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 60)


def one_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda self: True)


@pytest.mark.parametrize(
    ("check", "broken", "state", "words"),
    [
        (storage.replacing_files, torn_replace, FAIL, "neither the old nor the new content"),
        (storage.renaming_folders, covering_rename, FAIL, "silently took the place of a full one"),
        (storage.syncing, refused_sync, FAIL, "refused: Input/output error"),
        (storage.locking, shared_lock, FAIL, "two jobs could train in one run"),
        (storage.locking, kept_lock, FAIL, "held for"),
        (storage.appending, overwriting_append, FAIL, "were lost"),
        (storage.hard_links, no_links, WARN, "none (Operation not permitted)"),
        (storage.clock, fast_clock, WARN, "-60.0 s against this machine's"),
        (storage.letter_case, one_case, WARN, "x and X would be one"),
    ],
)
def test_a_broken_promise_is_seen(
    check: Check[Path], broken: Break, state: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch)
    found = check(tmp_path)
    assert found.state == state
    assert words in found.message
    assert found.fix


def test_a_check_that_fails_hangs_or_crashes_breaks_no_other() -> None:
    @check("wrong")
    def wrong(subject: None) -> Finding:
        raise ValueError("oh")

    @check("refused")
    def refused(subject: None) -> Finding:
        raise PermissionError(errno.EACCES, "no", "/a/file")

    @check("told")
    def told(subject: None) -> Finding:
        raise UnfitError("it is broken", "mend it")

    @check("hanging", limit_s=0.2, hangs="ask the other server")
    def hanging(subject: None) -> Finding:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        time.sleep(600)
        raise AssertionError

    @check("crashing")
    def crashing(subject: None) -> Finding:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    @check("fine")
    def fine(subject: None) -> Finding:
        return Finding("fine", PASS, "yes")

    found = examine([wrong, refused, told, hanging, crashing, fine], None)
    assert [(row.name, row.state, row.message, row.fix) for row in found] == [
        ("wrong", WARN, "could not be checked: ValueError: oh", "this is the doctor's own fault: please report it"),
        (
            "refused",
            FAIL,
            "could not be checked: [Errno 13] no: '/a/file'",
            "see `ls -ld /a/file` and `df /a/file`",
        ),
        ("told", FAIL, "it is broken", "mend it"),
        ("hanging", FAIL, "no answer within 0.2 s", "ask the other server"),
        ("crashing", FAIL, "the process that asked ended with SIGKILL", "`dmesg | tail` may say what hangs"),
        ("fine", PASS, "yes", ""),
    ]


def test_a_verdict_is_one_plain_sentence(tmp_path: Path) -> None:
    rows = [Finding("sync", PASS, ""), Finding("lock", WARN, "")]
    assert doctor._storage_verdict(tmp_path, rows[:1]) == f"{tmp_path} keeps its promises"
    assert "with reservations (lock)" in doctor._storage_verdict(tmp_path, rows)
