"""Whether storage keeps the promises that checkpoints and run directories rest on; needs no special rights."""

import errno
import fcntl
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from launcher.doctor.apart import NoAnswer, ask
from launcher.doctor.finding import FAIL, PASS, WARN, Check, Finding, check
from trainer import wording
from trainer.errors import ConfigError, UnfitError
from trainer.rundir import sync_directory

_ANSWER_S = 10.0
_LIMIT_S = 30.0
_SYNCS = 20
_SLOW_SYNC_S = 0.2
_REPLACEMENTS = 200
_WRITERS, _LINES = 4, 200
_CHILD_LIMIT_S = 15
TRIAL_BYTES = 16 << 20
"""Room that the trials need; with less of it only `room` says something."""

_LEAST_BYTES, _FEW_BYTES = 1 << 30, 10 << 30
_LEAST_INODES, _FEW_INODES = 100, 10_000
_SPEED_BYTES, _SPEED_S = 64 << 20, 3.0
_SYNC_EVERY = 8
_MOST_SKEW_S = 2.0
_IN_MEMORY = ("tmpfs", "ramfs")

_HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "r+")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""
_APPEND = """
import os, sys
path, mark, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
file = os.open(path, os.O_WRONLY | os.O_APPEND)
for number in range(count):
    os.write(file, (mark * (50 + number * 37 % 3000) + "\\n").encode())
"""


@contextmanager
def trial_folder(path: Path) -> Iterator[Path]:
    """A folder of our own inside `path`, gone again afterwards with all that is in it.

    Raises:
        ConfigError: `path` is no directory.
        UnfitError: nothing can be written there, or it does not answer.
    """
    try:
        made = ask(lambda: _make_folder(path), _ANSWER_S)
    except NoAnswer as error:
        fix = f"`grep {path} /proc/mounts` shows what is mounted there; its server may be down"
        raise UnfitError(f"{path}: {error}", fix) from error
    if made["problem"]:
        raise UnfitError(f"cannot write to {path}: {made['problem']}", f"`ls -ld {path}`, `df {path}`; or another one")
    if not made["folder"]:
        raise ConfigError(f"{path} is not a directory", f"{wording.command('paceline')} doctor --storage DIRECTORY")
    try:
        yield Path(made["folder"])
    finally:
        with suppress(NoAnswer):
            ask(lambda: shutil.rmtree(made["folder"], ignore_errors=True), _ANSWER_S)


def _make_folder(path: Path) -> dict[str, str]:
    try:
        folder = tempfile.mkdtemp(prefix=".paceline-doctor-", dir=path) if path.is_dir() else ""
    except OSError as error:
        return {"folder": "", "problem": error.strerror or str(error)}
    return {"folder": folder, "problem": ""}


def kind(path: Path) -> str:
    """The type of the file system that a path is on, such as ext4, nfs4 or lustre; empty where it cannot be told."""
    found, longest = "", -1
    with suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
            left, _, right = line.partition(" - ")
            point = Path(left.split()[4].encode().decode("unicode_escape"))
            if path.resolve().is_relative_to(point) and len(point.parts) >= longest:
                found, longest = right.split()[0], len(point.parts)
    return found


@check("replace a file", limit_s=_LIMIT_S)
def replacing_files(folder: Path) -> Finding:
    """A file is replaced while somebody reads it: every read must give the old content or the new one, whole."""
    path, bad, done = folder / "file", [], threading.Event()
    path.write_bytes(b"0" * 4096)

    def read() -> None:
        while not done.is_set():
            try:
                content = path.read_bytes()
            except OSError as error:
                bad.append(error.strerror or str(error))
                return
            if len(content) != 4096 or content != content[:1] * 4096:
                bad.append(f"{len(content)} bytes that are neither the old nor the new content")
                return

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    for number in range(_REPLACEMENTS):
        new = folder / "new"
        new.write_bytes(str(number % 10).encode() * 4096)
        new.replace(path)
    done.set()
    reader.join()
    if bad:
        return Finding("replace a file", FAIL, f"a reader met {bad[0]}", "keep run.dir on another file system")
    return Finding("replace a file", PASS, f"atomic in {_REPLACEMENTS} of {_REPLACEMENTS} trials")


@check("rename a folder", limit_s=_LIMIT_S)
def renaming_folders(folder: Path) -> Finding:
    """A complete folder appears under its name at once, and never takes the place of another one's content."""
    for name in ("made", "taken"):
        (folder / name).mkdir()
        (folder / name / "content").write_text(name)
    (folder / "empty").mkdir()
    (folder / "made").rename(folder / "final")
    if (folder / "final" / "content").read_text() != "made" or (folder / "made").exists():
        return Finding("rename a folder", FAIL, "its content is not where it should be", "another file system")
    try:
        (folder / "final").rename(folder / "taken")
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    else:
        return Finding("rename a folder", FAIL, "it silently took the place of a full one", "another file system")
    (folder / "final").rename(folder / "empty")
    return Finding("rename a folder", PASS, "works, and refuses to cover another one")


@check("sync", limit_s=_LIMIT_S)
def syncing(folder: Path) -> Finding:
    """What was synced must be on the disk: a save is 'done' only then."""
    name, times = "sync", []
    for number in range(_SYNCS):
        path = folder / f"synced-{number}"
        begin = time.perf_counter()
        try:
            with path.open("wb") as stream:
                stream.write(bytes(4096))
                stream.flush()
                os.fsync(stream.fileno())
            sync_directory(folder)
        except OSError as error:
            return Finding(
                name, FAIL, f"refused: {error.strerror}", "a save could not be made durable here: another disk"
            )
        times.append(time.perf_counter() - begin)
    latency = wording.duration(statistics.median(times)) if statistics.median(times) >= 1e-3 else "under 1 ms"
    found = f"file and directory in {latency} (median of {_SYNCS})"
    system = kind(folder)
    if system in _IN_MEMORY:
        return Finding(
            name, WARN, f"{found}, but {system} is memory: a restart of the machine loses all", "a real disk"
        )
    if statistics.median(times) > _SLOW_SYNC_S:
        return Finding(name, WARN, f"{found}: slow", "a longer checkpoint.every_steps, or faster storage")
    return Finding(name, PASS, found + (f", {system}" if system else ""))


@check("lock", limit_s=_LIMIT_S)
def locking(folder: Path) -> Finding:
    """One job a run: a lock keeps another process out, and a killed holder lets go of it."""
    name, path = "lock", folder / "lock"
    path.touch()
    command = [sys.executable, "-S", "-c", _HOLD, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            if holder.stdout.readline() != "held\n":
                assert holder.stderr is not None
                return Finding(
                    name, FAIL, f"refused: {holder.stderr.read().strip()[-200:]}", "mount it with locks (flock)"
                )
            if _lock(path):
                return Finding(
                    name, FAIL, "two processes had it at once: two jobs could train in one run", "mount it with flock"
                )
        finally:
            holder.kill()
    deadline = time.monotonic() + _CHILD_LIMIT_S
    while not _lock(path):
        if time.monotonic() > deadline:
            return Finding(name, FAIL, f"held for {_CHILD_LIMIT_S} s by a process that was killed", "another run.dir")
        time.sleep(0.05)
    return Finding(name, PASS, "keeps others out, and ends with its holder")


@check("append", limit_s=_LIMIT_S)
def appending(folder: Path) -> Finding:
    """Several processes append lines to one file: none may be lost or torn."""
    path = folder / "lines"
    path.touch()
    marks = "abcd"[:_WRITERS]
    writers = [subprocess.Popen([sys.executable, "-S", "-c", _APPEND, str(path), mark, str(_LINES)]) for mark in marks]
    for writer in writers:
        writer.wait(_CHILD_LIMIT_S)
    lines = path.read_text().splitlines()
    torn = sum(1 for line in lines if len(set(line)) != 1)
    lost = _WRITERS * _LINES - len(lines)
    if torn or lost:
        message = f"of {_WRITERS * _LINES} lines {lost} were lost and {torn} torn"
        return Finding("append", FAIL, message, "keep run.dir on a file system that appends atomically")
    return Finding("append", PASS, f"{_WRITERS * _LINES} lines of {_WRITERS} processes, all whole")


@check("hard links", limit_s=_LIMIT_S)
def hard_links(folder: Path) -> Finding:
    """Of several ranks exactly one writes failure.json."""
    (folder / "one").touch()
    try:
        (folder / "other").hardlink_to(folder / "one")
    except OSError as error:
        return Finding(
            "hard links", WARN, f"none ({error.strerror}): the first error may be overwritten", "another run.dir"
        )
    return Finding("hard links", PASS, "work")


@check("room", limit_s=_LIMIT_S)
def room(folder: Path) -> Finding:
    """Space and inodes that this user may still take."""
    found = os.statvfs(folder)
    free, inodes = found.f_bavail * found.f_frsize, found.f_favail
    # Some file systems make inodes as they need them, and say 0 of 0.
    counted = found.f_files > 0
    message = f"{wording.size(free)} free" + (f", {inodes:,} more files" if counted else "")
    if free < _LEAST_BYTES or (counted and inodes < _LEAST_INODES):
        return Finding("room", FAIL, message, "free some, or run.dir on another disk")
    if free < _FEW_BYTES or (counted and inodes < _FEW_INODES):
        return Finding("room", WARN, message, "checkpoint.keep=1, or run.dir on another disk")
    return Finding("room", PASS, message)


def measure_speed(folder: Path, most_bytes: int) -> tuple[float, float, int] | None:
    """How fast a large file is written to the disk, and read back from there: bytes/s of both, and its MiB.

    Returns:
        None where there is too little room.
    """
    path, block = folder / "large", os.urandom(1 << 20)
    most = min(most_bytes, shutil.disk_usage(folder).free // 4) >> 20
    if most == 0:
        return None
    count, begin = 0, time.perf_counter()
    with path.open("wb", buffering=0) as stream:
        # A slow disk has told enough before the file is full.
        while count < most and time.perf_counter() - begin < _SPEED_S:
            stream.write(block)
            count += 1
            if count % _SYNC_EVERY == 0 or count == most:
                os.fdatasync(stream.fileno())
        written = time.perf_counter() - begin
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    begin = time.perf_counter()
    with path.open("rb") as stream:
        while stream.read(1 << 20):
            pass
    read = time.perf_counter() - begin
    return (count << 20) / max(written, 1e-9), (count << 20) / max(read, 1e-9), count


@check("speed", limit_s=_LIMIT_S)
def speed(folder: Path) -> Finding:
    """How fast a large file is written to the disk, and read back from there."""
    found = measure_speed(folder, _SPEED_BYTES)
    if found is None:
        return Finding("speed", WARN, "too little room to measure it")
    return Finding("speed", PASS, in_words(*found))


def in_words(written: float, read: float, mib: int) -> str:
    """What `measure_speed` has found."""
    return f"writes {wording.size(written)}/s to the disk, reads {wording.size(read)}/s ({mib} MiB)"


@check("clock", limit_s=_LIMIT_S)
def clock(folder: Path) -> Finding:
    """A file server's clock against this machine's: times in the run directory are compared."""
    before = time.time()
    (folder / "now").touch()
    skew = (folder / "now").stat().st_mtime - before
    if abs(skew) > _MOST_SKEW_S:
        return Finding("clock", WARN, f"{skew:+.1f} s against this machine's", "synchronise both (chrony, NTP)")
    return Finding("clock", PASS, "agrees with this machine's")


@check("letter case", limit_s=_LIMIT_S)
def letter_case(folder: Path) -> Finding:
    """Runs `a` and `A` must be two."""
    (folder / "case").touch()
    if (folder / "CASE").exists():
        return Finding("letter case", WARN, "not told apart: runs x and X would be one", "names that differ otherwise")
    return Finding("letter case", PASS, "told apart")


def _lock(path: Path) -> bool:
    with path.open("r+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


CHECKS: tuple[Check[Path], ...] = (
    room,
    replacing_files,
    renaming_folders,
    syncing,
    locking,
    appending,
    hard_links,
    speed,
    clock,
    letter_case,
)
"""What is looked at, in this order; the argument is a folder of our own."""
