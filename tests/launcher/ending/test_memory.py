"""Memory limits, and the kernel's part in the end of a worker."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.ending.memory import Kills, count_kills, meaning, memory_left, memory_limit
from tests.launcher.conftest import ROOT, Job
from tests.launcher.test_launch import MakeJob

GROUPS = Path("/sys/fs/cgroup/memory")
LIMIT = 1 << 30


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group of 1 GiB, which takes root and version 1 to make."""
    folder = GROUPS / f"paceline-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(LIMIT))
    except OSError:
        pytest.skip("making a memory control group of version 1 is not allowed here")
    yield folder
    folder.rmdir()


def lay_out(folder: Path, membership: str, files: dict[str, str]) -> tuple[Path, Path]:
    for name, text in {"proc/self/cgroup": membership, **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder / "cgroup", folder / "proc"


def test_version_2_is_read_along_the_groups(tmp_path: Path) -> None:
    files = {
        "cgroup/a/b/memory.max": "max\n",
        "cgroup/a/memory.max": "4096\n",
        "cgroup/a/memory.current": "3000\n",
        "cgroup/a/memory.stat": "anon 900\ninactive_file 100\n",
        "cgroup/a/b/memory.events": "low 0\noom 3\noom_kill 2\noom_group_kill 9\n",
        "proc/vmstat": "nr_free_pages 5\noom_kill 7\n",
    }
    assert memory_limit(*lay_out(tmp_path, "0::/a/b\n", files)) == 4096
    assert memory_left(tmp_path / "cgroup", tmp_path / "proc") == 4096 - 3000 + 100
    assert count_kills(tmp_path / "cgroup", tmp_path / "proc") == Kills(2, 7)


def test_version_1_is_read_and_nothing_is_no_error(tmp_path: Path) -> None:
    files = {
        "cgroup/memory/job/memory.limit_in_bytes": "8192\n",
        "cgroup/memory/job/memory.usage_in_bytes": "9000\n",
        "cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "cgroup/memory/job/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
    }
    assert memory_limit(*lay_out(tmp_path, "4:memory:/job\n1:cpu:/\n0::/\n", files)) == 8192
    assert count_kills(tmp_path / "cgroup", tmp_path / "proc") == Kills(1, 0)
    assert memory_left(tmp_path / "cgroup", tmp_path / "proc") == 0
    assert memory_limit(tmp_path / "no", tmp_path / "no") is None
    assert memory_left(tmp_path / "no", tmp_path / "no") is None
    assert count_kills(tmp_path / "no", tmp_path / "no") == Kills(0, 0)


def test_what_a_kill_means() -> None:
    assert "had reached the limit of 1.0 GiB" in meaning(Kills(0, 0), Kills(1, 1), LIMIT)
    assert meaning(Kills(0, 0), Kills(1, 1), None, rank=3, peak_bytes=LIMIT).endswith(
        "its limit; rank 3 held up to 1.0 GiB"
    )
    assert meaning(Kills(1, 1), Kills(1, 2), None).startswith("most likely OOM-killed")
    assert meaning(Kills(1, 1), Kills(1, 1), LIMIT) == ""


def test_a_worker_that_the_kernel_ends_for_want_of_memory_is_told_from_one_that_somebody_killed(
    make_job: MakeJob, small_group: Path
) -> None:
    job: Job = make_job(
        """
import os, time
kept = []
while os.environ["RANK"] == "1":
    kept.append(bytearray(os.urandom(1 << 20) * 64))
time.sleep(600)
"""
    )
    # The command itself joins the group before it starts, as a scheduler's or a container's would be in it.
    procs = str(small_group / "cgroup.procs")
    join = f"import os, sys; open({procs!r}, 'w').write('0'); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    words = ["-m", "launcher", "run", "run.name=job", "cluster.gpus_per_node=2", "device=cpu", "--", "script.py"]
    done = subprocess.run(
        [sys.executable, "-c", join, *words],
        cwd=job.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 128 + 9, done.stderr
    assert "failed: killed by SIGKILL on rank 1" in done.stderr
    assert "OOM-killed: the kernel ended it, since this job's memory had reached the limit of 1.0 GiB" in done.stderr
    held = re.search(r"rank 1 held up to ([\d.]+) MiB$", job.failure["meaning"])
    assert held is not None
    assert 300 < float(held[1]) < 1024
