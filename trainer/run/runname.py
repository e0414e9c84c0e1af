"""Where a run lives: its name, and its directory made ready. Standard library only, for the launcher."""

import difflib
import errno
import os
import re
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Protocol

from trainer.errors import ConfigError, UnfitError
from trainer.rundir import RunDir

LONGEST_NAME = 128
"""Bytes of a run's name: file systems allow 255, and suffixes are appended."""

NAME_FIX = "run.name=NAME, such as run.name=first-try; run.dir=DIR places it"


class Naming(Protocol):
    """The keys of `RunConfig` that decide where a run lives."""

    name: str | None
    dir: str
    fresh: bool


def automatic(recipe: str, now: time.struct_time | None = None) -> str:
    """The name of a run that nobody named: `<recipe>-<MMDD-HHMM>`, local time.

    Args:
        recipe: the recipe, or the model or script where there is none; characters that do not suit a file
            name become underscores.
        now: the time to put in, by default the present.
    """
    stem = re.sub(r"[^\w.+-]+", "_", recipe).strip("._-") or "run"
    return f"{stem}-{time.strftime('%m%d-%H%M', now or time.localtime())}"


def choose(run: Naming, recipe: str, now: time.struct_time | None = None) -> Path:
    """The run directory that a job should use; nothing is created.

    A given name is taken as it is, since an existing run is continued; with `run.fresh`, and for automatic
    names, the first free one of `name`, `name-2`, `name-3`, ... is.

    Raises:
        ConfigError: the name cannot be a directory's name.
    """
    parent = Path(run.dir).expanduser()
    if run.name is None:
        return _free(parent, automatic(recipe, now))
    check_name(run.name)
    return _free(parent, run.name) if run.fresh else parent / run.name


def create(run: Naming, recipe: str, now: time.struct_time | None = None) -> Path:
    """Chooses the run directory, makes it and proves that it can be written to.

    Two jobs that choose the same free name at the same moment get two directories.

    Raises:
        ConfigError: the name cannot be a directory's name.
        UnfitError: the directory cannot be made or written to, or its disk is full.
    """
    while True:
        path = choose(run, recipe, now)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(exist_ok=run.name is not None and not run.fresh)
        except FileExistsError as error:
            if path.is_dir():
                continue
            in_the_way = next(place for place in (path, *path.parents) if place.exists())
            raise UnfitError(
                f"the run directory {path} cannot be made: {in_the_way} is a file",
                "run.name=... or run.dir=... chooses another place",
            ) from error
        except OSError as error:
            raise unwritable(path, error) from error
        probe(path)
        return path


def probe(path: Path) -> None:
    """Proves that a directory takes new files, by writing and removing a small one.

    Raises:
        UnfitError: not writable, or the disk is full.
    """
    file = path / f".probe.{os.getpid()}.tmp"
    try:
        with file.open("wb") as stream:
            stream.write(bytes(4096))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        # A read-only file system refuses this too; the error above says it better.
        if file.exists():
            file.unlink()


def unwritable(path: Path, error: OSError) -> UnfitError:
    """The error for a person, of an operating system's error in writing to the run directory `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what = "its disk is full" if error.errno == errno.ENOSPC else "your quota is used up"
        return UnfitError(
            f"cannot write the run directory {path}: {what}", "free some space, or run.dir=/a/disk/with/space"
        )
    reason = "a part of its path is a file" if error.errno == errno.ENOTDIR else (error.strerror or str(error)).lower()
    return UnfitError(
        f"cannot write the run directory {path}: {reason}",
        "run.dir=/a/directory/you/can/write chooses another place",
    )


def check_name(name: str) -> None:
    """Refuses a run name that is no plain directory name.

    Raises:
        ConfigError: it is empty, too long, begins with a dot or a dash, or has a path separator or a control
            character.
    """
    if wrong := wrong_name(name):
        raise ConfigError(f"run.name={name!r} {wrong}", NAME_FIX)


def wrong_name(name: str) -> str:
    """What keeps a name from being a run's, as the end of a sentence that begins with the name; empty if nothing."""
    if not name.strip():
        return "is empty"
    if "/" in name or "\\" in name:
        return "has a path separator"
    if name in (".", ".."):
        return "means a directory above it"
    if name.startswith("."):
        return "would be hidden"
    if name.startswith("-"):
        return "would be read as an option"
    if name != name.strip() or not name.isprintable():
        return "has blanks around it or unprintable characters"
    return f"is longer than {LONGEST_NAME} bytes" if len(os.fsencode(name)) > LONGEST_NAME else ""


def is_run(path: Path) -> bool:
    """Whether a directory is a run's; one that may not be looked into is none."""
    run = RunDir(path)
    try:
        return run.job.is_file() or run.status.is_file() or run.config.is_file()
    except OSError:
        return False


def continuing(words: Sequence[str], name: str) -> list[str]:
    """The overrides that go on with the run `name`, from those that began it."""
    kept = [word for word in words if word.lstrip("+").partition("=")[0] not in ("run.name", "run.fresh")]
    return [*kept, f"run.name={name}"]


def find(text: str, parent: Path = Path("runs")) -> Path:
    """The directory of an existing run, by its name in `parent` or by its path.

    Raises:
        ConfigError: there is none.
    """
    for path in (parent / text, Path(text).expanduser()):
        if is_run(path):
            return path
    place = Path(text).parent if "/" in text else parent
    known = sorted(path.name for path in place.glob("*") if is_run(path))
    near = None
    close = difflib.get_close_matches(Path(text).name, known, n=1)
    if close:
        near = str(place / close[0]) if "/" in text else close[0]
        fix = f"did you mean {near}?"
    elif known:
        fix = f"there are {', '.join(known[:8])}{', ...' if len(known) > 8 else ''}"
    else:
        fix = "give the path of a run directory, as a training prints it at its end"
    raise ConfigError(
        f"there is no run {text!r} in {place}", fix, instead=([text], [near]) if near is not None else None
    )


def _free(parent: Path, name: str) -> Path:
    candidates = (parent / (name if number == 1 else f"{name}-{number}") for number in count(1))
    return next(path for path in candidates if not os.path.lexists(path))
