"""Which code runs: commit and uncommitted changes of a checkout, kept with a run without secrets. No torch."""

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.run.secrets import redact
from trainer.rundir import RunDir, write_atomic

DIFF_LIMIT = 1 << 20
"""Bytes of uncommitted changes that are kept with a run."""

_GIT_TIMEOUT_S = 5
_NAMED_FILES = 20
# Whatever the user's own settings are, `git apply` takes it; what is changed in submodules is in it.
_DIFF = [
    *("diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv", "--no-relative"),
    *("--binary", "--submodule=diff", "--src-prefix=a/", "--dst-prefix=b/"),
]
_QUERY = re.compile(r"[?#].*")


class _NoAnswer(Exception):
    """What git, or the lack of it, says instead; empty outside of a checkout."""


def note(run: RunDir, folder: Path, attempt: int) -> tuple[dict[str, Any] | None, str]:
    """Notes down the checkout that a folder is in; the uncommitted changes are written into the run directory.

    Returns:
        What job.json says of it; None where there is no checkout, or where that cannot be told, and then why.

    Raises:
        OSError: the run directory cannot be written.
    """
    if "site-packages" in folder.parts:
        # Installed, it is what `packages` says; what may have changed is the user's own.
        folder = Path.cwd()
    try:
        commit, root = (_line(folder, "rev-parse", what) for what in ("HEAD", "--show-toplevel"))
    except _NoAnswer as error:
        return None, str(error)
    top = Path(root)
    found: dict[str, Any] = {"root": root, "commit": commit, "remote": _remote(folder)}
    try:
        diff, untracked = _uncommitted(folder), _untracked(run, top)
    except _NoAnswer as error:
        unknown = dict.fromkeys(("dirty", "diff", "diff_bytes", "untracked", "untracked_files"))
        return {**found, **unknown}, f"what is not committed is not known: {error}"
    return {
        **found,
        "dirty": bool(diff or untracked),
        "diff": _keep(run, diff, attempt),
        "diff_bytes": len(diff),
        "untracked": untracked[:_NAMED_FILES],
        "untracked_files": len(untracked),
    }, ""


def changes(run: RunDir, code: Mapping[str, Any] | None) -> Iterator[str]:
    """What is no longer as an attempt noted it down, in words; nothing where that cannot be told.

    Args:
        run: the run.
        code: of the attempt's row in job.json.
    """
    ours, noted = Path(__file__).parent.parent, Path(code["root"]) if code else None
    if code is None or noted is None:
        return
    # It is the user's checkout, or else our own, which may lie elsewhere by now.
    folder = noted if noted.is_dir() and not (noted / "trainer" / "__main__.py").exists() else ours
    if "site-packages" in folder.parts:
        return
    try:
        commit = _line(folder, "rev-parse", "HEAD")
        if commit != code["commit"]:
            yield f"code: it was commit {code['commit'][:12]} then and is {commit[:12]} now"
        elif code["diff"] or code["diff_bytes"] == 0:  # else there was too much of it to be kept, or it is not known
            before = (run.path / code["diff"]).read_bytes() if code["diff"] else b""
            if before != _uncommitted(folder):
                yield f"code: what is not committed was {code['diff'] or 'nothing'} then, and is something else now"
    except _NoAnswer:
        return


def _uncommitted(folder: Path) -> bytes:
    """The changes of tracked files of a checkout, without secrets as far as they can be kept."""
    diff = _git(folder, *_DIFF)
    if len(diff) > DIFF_LIMIT:
        return diff
    return redact(diff.decode(errors="surrogateescape")).encode(errors="surrogateescape")


def _keep(run: RunDir, diff: bytes, attempt: int) -> str | None:
    """Writes the changes beside the run's, or the attempt's if they differ; returns the file's name in the run."""
    if not diff or len(diff) > DIFF_LIMIT:
        return None
    path = run.code_diff
    if path.exists() and path.read_bytes() != diff:
        path = run.attempt_code_diff(attempt)
    write_atomic(path, diff)
    return str(path.relative_to(run.path))


def _untracked(run: RunDir, top: Path) -> list[str]:
    """Files of a checkout that git neither tracks nor ignores; the directory of runs is no code."""
    listed = _git(top, "ls-files", "--others", "--exclude-standard", "-z")
    runs = run.path.resolve().parent
    if not runs.is_relative_to(top) or runs == top:
        runs = run.path.resolve()
    names = [os.fsdecode(name) for name in listed.split(b"\0") if name]
    return [name for name in names if not (top / name).is_relative_to(runs)]


def _remote(folder: Path) -> str | None:
    """Where the checkout came from, without what its address may hold of passwords."""
    try:
        # As it is written there: `git remote get-url` would put in what the user's settings add, tokens among it.
        return _QUERY.sub("", redact(_line(folder, "config", "--get", "remote.origin.url")))
    except _NoAnswer:
        return None


def _line(folder: Path, *arguments: str) -> str:
    return os.fsdecode(_git(folder, *arguments)).rstrip("\n")


def _git(folder: Path, *arguments: str) -> bytes:
    # Variables of a hook that called us would mean another repository.
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            timeout=_GIT_TIMEOUT_S,
            check=True,
            env={**surroundings, "LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise _NoAnswer("git is not installed") from None
    except subprocess.TimeoutExpired:
        raise _NoAnswer(f"git has not answered within {_GIT_TIMEOUT_S} s") from None
    except OSError as error:
        raise _NoAnswer(f"git cannot be started: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        nowhere = not said or "not a git repository" in said[0]
        raise _NoAnswer("" if nowhere else f"git: {said[0].removeprefix('fatal: ')}") from None
    return done.stdout
