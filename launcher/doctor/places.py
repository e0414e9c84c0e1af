"""Where runs are written and data are read: whether they may be, how much room there is, and how fast it really is."""

import os
import shutil
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from launcher.doctor.finding import FAIL, PASS, WARN, Check, Finding, check
from launcher.doctor.storage import in_words, measure_speed, trial_folder
from launcher.doctor.surroundings import Surroundings
from trainer import wording
from trainer.check.sources import data_problems
from trainer.errors import PacelineError, UnfitError

_LEAST_DISK, _FEW_DISK = 1 << 30, 10 << 30
_LEAST_INODES, _FEW_INODES = 100, 10_000
_TRIAL_BYTES = 16 << 20
_SLOW_WRITE = 20 << 20
_READ_FILES, _READ_BYTES, _READ_S = 256, 64 << 20, 3.0
_SLOW_READ, _FEW_FILES = 10 << 20, 500
_ENOUGH_FILES, _ENOUGH_BYTES = 64, 1 << 20


@check("run.dir", limit_s=10.0, hangs="run.dir=/another/disk, or `grep -w nfs /proc/mounts`: is its server there?")
def run_directory(here: Surroundings) -> Finding:
    """Where runs are kept."""
    wanted = Path(here.config.run.dir).expanduser()
    place = next(path for path in (wanted.absolute(), *wanted.absolute().parents) if os.path.lexists(path))
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        why = f"{place} may not be written by this user" if place.is_dir() else f"{place} is not a directory"
        return Finding("run.dir", FAIL, f"{wanted}: {why}", "run.dir=/a/directory/you/can/write")
    found = os.statvfs(place)
    free, inodes = found.f_bavail * found.f_frsize, found.f_favail if found.f_files else _FEW_INODES
    text = f"{wanted}, {wording.size(free)} free" + (f", {inodes:,} more files" if inodes < _FEW_INODES else "")
    if free < _LEAST_DISK or inodes < _LEAST_INODES:
        return Finding("run.dir", FAIL, text, "free some, or run.dir=/a/disk/with/space")
    with trial_folder(place) as folder:
        speed = measure_speed(folder, _TRIAL_BYTES)
    if speed is not None:
        text = f"{text}; {in_words(*speed)}"
    if free < _FEW_DISK or inodes < _FEW_INODES:
        return Finding("run.dir", WARN, text, "checkpoint.keep=1, or run.dir=/a/disk/with/space")
    if speed is not None and speed[0] < _SLOW_WRITE:
        return Finding("run.dir", WARN, f"{text}: slow", "run.dir=/a/faster/disk: saves will wait")
    return Finding("run.dir", PASS, text)


@check("data", limit_s=15.0, hangs="data.root=/local/copy, or `grep -w nfs /proc/mounts`: is its server there?")
def data(here: Surroundings) -> Finding:
    """The data set that a job is given, as far as a look at it tells."""
    chosen = here.config.data
    if chosen.root is None:
        return Finding("data", PASS, "no data.root given")
    try:
        problems: list[PacelineError] = list(data_problems(here.config))
    except UnfitError as error:
        problems = [error]
    if problems:
        return Finding("data", FAIL, problems[0].problem, problems[0].fix)
    root = Path(chosen.root).expanduser()
    text = f"data.root={chosen.root} can be read, {wording.size(shutil.disk_usage(root).free)} free there"
    rate = read_rate(root)
    if rate is None:
        return Finding("data", PASS, text)
    files, bytes_ = rate
    text += f"; reads {wording.number(files)} files/s, {wording.size(bytes_)}/s from the disk"
    # Of small files a disk gives few bytes a second and still more images than a core decodes.
    if bytes_ < _SLOW_READ and files < _FEW_FILES:
        return Finding("data", WARN, f"{text}: slow", "copy it to a local disk: data.root=/local/copy")
    return Finding("data", PASS, text)


def read_rate(root: Path) -> tuple[float, float] | None:
    """How fast the first files below a folder are read past the page cache: files/s and bytes/s.

    Returns:
        None where there are too few to tell.
    """
    count = size = 0
    begin = time.perf_counter()
    for path in islice(_files(root), _READ_FILES):
        with path.open("rb", buffering=0) as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            size += len(stream.read(_READ_BYTES))
        count += 1
        if size > _READ_BYTES or time.perf_counter() - begin > _READ_S:
            break
    seconds = max(time.perf_counter() - begin, 1e-9)
    return (count / seconds, size / seconds) if count >= _ENOUGH_FILES or size >= _ENOUGH_BYTES else None


def _files(root: Path) -> Iterator[Path]:
    """A folder's files as they come: one with a million of them is not listed to its end first."""
    if root.is_file():
        yield root
        return
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(Path(entry.path))
            elif entry.is_file():
                yield Path(entry.path)


CHECKS: tuple[Check[Surroundings], ...] = (run_directory, data)
