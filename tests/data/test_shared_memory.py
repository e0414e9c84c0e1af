"""Shared memory that is too small for the loading processes' batches is found at once, and told with the ways out."""

import errno
import signal
import subprocess
from collections import namedtuple
from pathlib import Path

import pytest

from tests.trainer_command import DIGITS, TRAINER, run
from trainer.data import failure, shared_memory
from trainer.data.bench import AtWork
from trainer.errors import UnfitError

USAGE = namedtuple("USAGE", ("total", "used", "free"))
FULL = RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)")


def with_shared_memory(size: str) -> list[str]:
    """What runs a command with so much of it, as in a container; where that is not allowed the test is skipped."""
    command = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"', "sh"]
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small file system is not allowed here")
    return command


@pytest.mark.parametrize("size", ["300k", "32k"])
def test_a_run_whose_shared_memory_is_full_ends_at_once_and_says_so(tmp_path: Path, size: str) -> None:
    own = ["data._target_=tests.data.dying.build_large", "data.augment=none", "data.workers=2"]
    small = with_shared_memory(size)
    done = run([*small, *TRAINER], *DIGITS[1:], *own, "global_batch_size=20", f"run.dir={tmp_path}", "run.name=r")
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    told = f"error: the shared memory of this machine or container is full (/dev/shm, {size[:-1]}.0 KiB)"
    assert told in done.stderr
    assert "--shm-size=8g (or --ipc=host), fewer data.workers, data.prefetch=1, or data.workers=0" in done.stderr
    assert "free, and the batches that the loading processes keep ready take up to" in done.stderr


def test_it_is_warned_of_shared_memory_that_cannot_hold_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory.shutil, "disk_usage", lambda _: USAGE(64 << 20, 32 << 20, 32 << 20))
    assert shared_memory.shortage(32 << 20) is None
    said = shared_memory.shortage(3 << 30)
    assert said is not None
    assert "/dev/shm has 32.0 MiB free" in said
    assert "up to 3.0 GiB" in said


def test_a_bus_error_is_explained_with_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory.shutil, "disk_usage", lambda _: USAGE(64 << 20, 64 << 20, 0))
    died = RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. ")
    named = str(failure.explain(died, [0] * 9, [AtWork(0, 7, 3, 0.1)], [-signal.SIGBUS]))
    assert "was ended by SIGBUS at sample 3" in named
    assert "is /dev/shm full (0 bytes free now of 64.0 MiB)? docker run --shm-size=8g" in named


def test_only_what_is_about_shared_memory_is_told_as_such() -> None:
    def told(error: Exception) -> type[BaseException]:
        with pytest.raises(Exception) as raised, shared_memory.told_when_full():  # noqa: PT011  # which is the question
            raise error
        return raised.type

    assert told(FULL) is told(OSError(errno.ENOSPC, "No space left on device")) is UnfitError
    assert told(RuntimeError("No space left on device")) is RuntimeError
    assert told(OSError(errno.EACCES, "Permission denied")) is PermissionError


@pytest.mark.parametrize(
    ("error", "problem", "fix"),
    [
        (FULL, "container is full (/dev/shm", "--shm-size"),
        (RuntimeError("unable to open file </torch_1>: Too many open files (24)"), "too many open files", "ulimit -n"),
        (ValueError("odd"), "cannot hand a batch over: odd", "data.workers=0"),
    ],
)
def test_what_a_loading_process_cannot_hand_over_is_told(error: Exception, problem: str, fix: str) -> None:
    unfit = shared_memory.unsent(error)
    assert problem in unfit.problem
    assert fix in unfit.fix
