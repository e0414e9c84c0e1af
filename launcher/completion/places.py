"""Files, folders, runs and their logs, for a shell."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from launcher.completion.word import Word
from trainer.run import runname
from trainer.rundir import RunDir, is_number


def paths(current: str, *, suffixes: tuple[str, ...] | None = ("",)) -> Iterator[Word]:
    """Files and folders that begin as `current` does; hidden ones only where that says so.

    Args:
        current: a path that is being written, `~` as one's home.
        suffixes: how files end; None for folders alone.
    """
    folder, slash, start = current.rpartition("/")
    try:
        with os.scandir(Path(folder + slash).expanduser()) as found:
            entries = sorted(found, key=lambda entry: entry.name)
            for entry in entries:
                if not entry.name.startswith(start) or (entry.name[0] == "." and not start):
                    continue
                if entry.is_dir():
                    yield Word(f"{folder}{slash}{entry.name}/")
                elif suffixes is not None and entry.name.endswith(suffixes):
                    yield Word(f"{folder}{slash}{entry.name}")
    except (OSError, RuntimeError):
        # No such folder, or nobody's home.
        return


def runs(given: Sequence[str], current: str, *, live: bool = False) -> Iterator[Word]:
    """Runs by their names, or by their paths once one is being written.

    Args:
        given: the words before, which may say where the runs are.
        current: the word at the cursor.
        live: only those that say that they run, or wait.
    """
    if "/" in current:
        yield from paths(current, suffixes=None)
        return
    try:
        found = sorted(path for path in _place(given).iterdir() if runname.is_run(path))
    except OSError:
        return
    for path in found:
        state = str(RunDir(path).read_status().get("state", "pending")) if live else ""
        if path.name not in given and (not live or state in ("pending", "running")):
            yield Word(path.name, state)


def logged(given: Sequence[str], option: str) -> Iterator[Word]:
    """The ranks, or the attempts, of which the run that is named has logs."""
    name = next((word for word in given if not word.startswith("-")), "")
    folder = _place(given) / name / "logs"
    if option == "--rank":
        found = {path.stem.removeprefix("rank-") for path in folder.glob("attempt-*/rank-*.log")}
    elif option == "--attempt":
        found = {path.name.removeprefix("attempt-") for path in folder.glob("attempt-*")}
    else:
        return
    yield from (Word(number) for number in sorted(filter(is_number, found), key=int))


def _place(given: Sequence[str]) -> Path:
    """Where the runs are, as far as the command line says it."""
    settings = {key: value for key, _, value in (word.partition("=") for word in given)}
    return Path(settings.get("--dir") or settings.get("run.dir") or "runs").expanduser()
