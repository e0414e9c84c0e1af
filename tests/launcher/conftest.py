"""Real jobs for the launcher's tests: the command itself, its processes, and scripts that behave as asked."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.mounts import mounted
from trainer.rundir import RunDir, read_json

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 90.0

TELLS = """
import os, sys, select, signal, time
from pathlib import Path
rank = int(os.environ["RANK"])
def tell(word):
    with open("told", "w") as pipe:
        pipe.write(f"{word} {rank} {os.getpid()}\\n")
"""
"""The beginning of a script whose workers can tell the test where they are; see `Job.hears`."""

ENDS_BY_FORCE = (
    TELLS
    + """
signal.signal(signal.SIGTERM, lambda *_: tell("asked"))
tell("up")
while True:
    signal.pause()
"""
)
"""A script whose workers tell that they are asked to stop, and go on."""


@pytest.fixture(autouse=True)
def hangups_are_heard() -> None:
    """The tests themselves may run under nohup, or have run a command in this process; their jobs would inherit it."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


class Job:
    """`paceline run ... -- script.py` in a directory of its own, as the run `job`."""

    def __init__(self, folder: Path, script: str) -> None:
        self.folder = folder
        self.script = folder / "script.py"
        self.script.write_text(script)
        self.run = RunDir(folder / "runs" / "job")
        self.command = [sys.executable, "-m", "launcher"]
        os.mkfifo(folder / "told")
        # For writing, too: the workers do not wait for a reader then, and it does not end between two of them.
        self._told = os.open(folder / "told", os.O_RDWR)
        self._heard: list[list[str]] = []
        self._processes: list[subprocess.Popen[str]] = []

    def start(self, *overrides: str, arguments: tuple[str, ...] = (), **environment: str) -> subprocess.Popen[str]:
        command = [*self.command, "run", "run.name=job", "cluster.gpus_per_node=2", "device=cpu"]
        process = subprocess.Popen(
            [*command, *overrides, "--", self.script.name, *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._processes.append(process)
        return process

    def finish(self, process: subprocess.Popen[str]) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        out, err = process.communicate(timeout=DEADLINE_S)
        return process.returncode, out, err

    def go(self, *overrides: str, arguments: tuple[str, ...] = (), **environment: str) -> tuple[int, str, str]:
        return self.finish(self.start(*overrides, arguments=arguments, **environment))

    def hears(self, word: str, *, workers: int = 2) -> list[int]:
        """Waits until so many workers have told the word; their pids, by rank."""
        pids: dict[int, int] = {}
        while len(pids) < workers:
            if not self._heard:
                assert select.select([self._told], [], [], DEADLINE_S)[0], f"not within {DEADLINE_S} s: {word}"
                self._heard = [line.split() for line in os.read(self._told, 1 << 16).decode().splitlines()]
            said, rank, pid = self._heard.pop(0)
            assert said == word
            pids[int(rank)] = int(pid)
        return [pid for _, pid in sorted(pids.items())]

    def alive(self) -> list[int]:
        """Every process of this job that is still there; a zombie has no environment left."""
        mark = f"PACELINE_RUN_DIR={self.run.path}".encode()
        return [
            int(folder.name)
            for folder in Path("/proc").glob("[0-9]*")
            if mark in _bytes(folder / "environ").split(b"\0")
        ]

    def check_gone(self, deadline_s: float) -> None:
        """Waits for the end of every process of this job, which must not take longer."""
        deadline = time.monotonic() + deadline_s
        while left := self.alive():
            with suppress(ProcessLookupError):
                ends = os.pidfd_open(left[0])
                in_time, _, _ = select.select([ends], [], [], max(0.0, deadline - time.monotonic()))
                os.close(ends)
                assert in_time, f"left after {deadline_s} s: {left}"

    @property
    def failure(self) -> dict[str, Any]:
        return read_json(self.run.failure)

    def close(self) -> None:
        os.close(self._told)
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.communicate()


@pytest.fixture
def make_job(tmp_path: Path) -> Iterator[Callable[[str], Job]]:
    jobs: list[Job] = []

    def make(script: str) -> Job:
        jobs.append(Job(tmp_path, script))
        return jobs[-1]

    yield make
    for job in jobs:
        job.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    with mounted(tmp_path / "disk", size="64k") as place:
        yield place
