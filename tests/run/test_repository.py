"""What job.json says of the code: true whatever git is, has or lacks, and enough to make the tree again."""

import os
import shutil
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from trainer.config import Config
from trainer.run import provenance, repository
from trainer.rundir import RunDir, read_json

IDENTITY = ("-c", "user.name=n", "-c", "user.email=e@e", "-c", "protocol.file.allow=always")
TOKEN = "a-token-that-is-nobodys-business"


def git(folder: Path, *words: str) -> str:
    return subprocess.run(
        ["git", *IDENTITY, *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout  # fmt: skip


def make(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    git(folder, "init", "-q")
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def noted(run: RunDir, folder: Path) -> dict[str, Any]:
    provenance.begin(run, Config(), attempt=0, argv=[], folder=folder, nodes=1, world_size=1)
    return read_json(run.job)


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and ".git" not in path.relative_to(folder).parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_commit_and_diff_make_the_tree_again_with_submodules_and_binary_files_whatever_the_users_settings_are(
    tmp_path: Path,
) -> None:
    library = make(tmp_path / "library", lib="one\n")
    top = make(tmp_path / "top", train="one\n", gone="x\n")
    (top / "weights.bin").write_bytes(bytes(range(256)))
    git(top, "submodule", "add", "-q", str(library), "lib")
    git(top, "add", ".")
    git(top, "commit", "-q", "-m", "second")
    for setting in ("diff.noprefix", "diff.relative", "color.ui"):
        git(top, "config", setting, "always" if setting == "color.ui" else "true")
    git(top, "config", "diff.external", "false")
    (top / "train.py").write_text("two\n")
    (top / "gone.py").unlink()
    (top / "weights.bin").write_bytes(bytes(reversed(range(256))))
    (top / "lib" / "lib.py").write_text("two\n")
    (top / "folder").mkdir()
    run = RunDir(tmp_path / "runs" / "x")
    code = noted(run, top / "folder")["code"]
    assert (code["dirty"], code["diff"]) == (True, "code.diff")
    again = tmp_path / "again"
    git(tmp_path, "clone", "-q", "--recurse-submodules", str(top), str(again))
    git(again, "checkout", "-q", code["commit"])
    git(again, "apply", str(run.code_diff))
    assert content(again) == content(top)
    # The commit of a submodule alone.
    git(top, "checkout", "-q", "HEAD", "--", ".")
    git(top / "lib", "commit", "-qam", "second")
    assert noted(RunDir(tmp_path / "runs" / "y"), top)["code"]["dirty"] is True


def test_where_a_checkout_came_from_is_kept_without_its_token(tmp_path: Path) -> None:
    top = make(tmp_path / "top", train="one\n")
    assert noted(RunDir(tmp_path / "0"), top)["code"]["remote"] is None
    for number, (address, kept) in enumerate(
        {
            f"https://{TOKEN}@host/me/code.git": "https://***@host/me/code.git",
            f"https://me:{TOKEN}@host/me/code.git": "https://me:***@host/me/code.git",
            f"https://host/code.git?private_token={TOKEN}": "https://host/code.git",
            "git@host:me/code.git": "git@host:me/code.git",
        }.items(),
        start=1,
    ):
        git(top, "config", "remote.origin.url", address)
        run = RunDir(tmp_path / str(number))
        assert noted(run, top)["code"]["remote"] == kept
        assert not [path for path in run.path.rglob("*") if path.is_file() and TOKEN in path.read_text()]


def test_a_huge_change_is_known_by_its_size_and_not_kept(tmp_path: Path) -> None:
    top = make(tmp_path / "top", train="one\n")
    (top / "train.py").write_text("x" * (repository.DIFF_LIMIT + 1))
    run = RunDir(tmp_path / "run")
    code = noted(run, top)["code"]
    assert (code["dirty"], code["diff"]) == (True, None)
    assert code["diff_bytes"] > repository.DIFF_LIMIT
    assert not run.code_diff.exists()


def test_what_git_does_not_tell_is_unknown_and_never_taken_for_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top, number = make(tmp_path / "top", train="one\n"), 0

    def found(folder: Path = top) -> tuple[Any, Any]:
        nonlocal number
        number += 1
        job = noted(RunDir(tmp_path / str(number)), folder)
        return job["code"], job.get("code_problem")

    assert found(tmp_path) == (None, None), "no checkout is no problem"
    empty = tmp_path / "empty"
    empty.mkdir()
    git(empty, "init", "-q")
    code, problem = found(empty)
    assert code is None
    assert problem.startswith("git: ambiguous argument 'HEAD'")
    # A git that does not answer the longer questions.
    real, fake = shutil.which("git"), tmp_path / "bin" / "git"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\ncase "$*" in *diff*) exec sleep 60;; esac\nexec {real} "$@"\n')
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(repository, "_GIT_TIMEOUT_S", 0.5)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    began = time.monotonic()
    code, problem = found()
    assert time.monotonic() - began < 5
    assert (len(code["commit"]), code["dirty"], code["diff"], code["diff_bytes"]) == (40, None, None, None)
    assert problem == "what is not committed is not known: git has not answered within 0.5 s"
    assert list(repository.changes(RunDir(tmp_path / str(number)), code)) == []
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert found() == (None, "git is not installed")
