"""Jobs among names, files and streams that are not as one would have them."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launcher.conftest import DEADLINE_S, ROOT, Job
from trainer.rundir import RunDir, read_json, write_json

PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2

NOT_UTF_8 = os.fsdecode(b"caf\xe9")

NAMED_ODDLY = r"""
import ctypes, sys
ctypes.CDLL(None).prctl(15, b"caf\xe9", 0, 0, 0)
print("named", flush=True)
sys.stdin.read()
"""
"""A process whose name is no UTF-8, as one that was cut at its 15th byte."""


def test_names_that_are_no_utf_8_and_an_error_of_70_mb_are_nothing_special(make_job: Callable[[str], Job]) -> None:
    job = make_job(
        """
import os, sys
assert os.environ["NCCL_ODD"] == sys.argv[1]
if os.environ["RANK"] == "1":
    raise ValueError(sys.argv[1] + "x" * 70_000_000)
"""
    )
    job.script = job.script.rename(job.folder / f"{NOT_UTF_8}.py")
    neighbour = subprocess.Popen(
        [sys.executable, "-c", NAMED_ODDLY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    with neighbour:
        assert neighbour.stdout is not None
        assert neighbour.stdout.readline() == b"named\n"
        # Two nodes: the error is sent, too.
        code, _, err = job.go("cluster.nodes=2", "cluster.gpus_per_node=1", arguments=(NOT_UTF_8,), NCCL_ODD=NOT_UTF_8)
        neighbour.kill()
    assert code == 1
    assert "✗ failed: ValueError on rank 1" in err
    assert len(err) < 3_000, err
    assert (job.failure["type"], job.failure["message"][:5]) == ("ValueError", f"{NOT_UTF_8}x")
    assert read_json(job.run.job)["argv"][-1] == NOT_UTF_8


@pytest.mark.parametrize("done", ["sys.stdout.close()", "sys.stdout = None"])
def test_who_starts_without_streams_or_closes_its_own_has_done_nothing_wrong(
    make_job: Callable[[str], Job], done: str
) -> None:
    job = make_job(f"import sys; print('here'); sys.stderr.write('there\\n'); {done}")
    command = [*job.command, "run", "run.name=job", "cluster.gpus_per_node=2", "device=cpu", "--", "script.py"]
    closed = subprocess.run(
        ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", *command],
        cwd=job.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=DEADLINE_S,
        check=False,
    )
    assert closed.returncode == 0
    assert sorted(job.run.log(0, 0).read_text().split()) == job.run.log(0, 1).read_text().split() == ["here", "there"]


def test_orphans_that_have_ended_do_not_pile_up_below_the_agent(make_job: Callable[[str], Job]) -> None:
    job = make_job(
        """
import os, time
from contextlib import suppress
from pathlib import Path
def orphan():
    if os.fork() == 0:
        if os.fork() == 0:
            os._exit(0)
        os._exit(0)
    os.wait()
def dead():
    count = 0
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            count += file.read_bytes().rpartition(b")")[2].split()[:2] == [b"Z", b"%d" % os.getppid()]
    return count
if os.environ["RANK"] == "0":
    for _ in range(50):
        orphan()
    deadline = time.monotonic() + 20
    while dead() > 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    print(dead() <= 5)
"""
    )
    assert job.go() == (0, "True\n", "2 workers, run directory runs/job\n")


def test_what_no_agent_foresees_is_the_jobs_error_and_no_run_claims_to_run(
    make_job: Callable[[str], Job],
) -> None:
    job = make_job("")
    (job.folder / "broken").mkdir()
    (job.folder / "broken" / "torch.py").write_text("raise RuntimeError('out of order')")
    code, _, err = job.go(PYTHONPATH=f"{job.folder / 'broken'}:{ROOT}")
    told = "the agent cannot go on: RuntimeError: out of order"
    assert code == 1
    assert f"error: {told}\n" in err
    assert (job.run.read_status()["state"], job.failure["message"]) == ("failed", told)


def test_a_working_directory_that_was_deleted_is_told(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    command = [str(Path(sys.executable).with_name("paceline")), "status"]
    done = subprocess.run(
        ["sh", "-c", 'rmdir ../gone; exec "$@"', "sh", *command],
        cwd=tmp_path / "gone",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (2, "error: the current directory has been deleted\n  cd to another one\n")


def without_privileges() -> None:
    """Has the permissions of files hold for root, too; for who is not root they do."""
    libc = ctypes.CDLL(None)
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def test_what_belongs_to_another_user_is_told_in_two_lines_and_hides_no_other_run(tmp_path: Path) -> None:
    for name in ("mine", "closed", "locked"):
        write_json(RunDir(tmp_path / name).status, {"state": "finished", "step": 7, "time": 0.0})
        write_json(RunDir(tmp_path / name).job, {"argv": ["paceline", "run", "epochs=2"]})
    RunDir(tmp_path / "locked").lock.touch(mode=0)
    for path in (RunDir(tmp_path / "closed").status, RunDir(tmp_path / "closed").job):
        path.chmod(0)

    def paceline(*words: str) -> tuple[int, str, list[str]]:
        command = [sys.executable, "-m", "launcher", *words]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60, preexec_fn=without_privileges
        )
        return done.returncode, done.stdout, done.stderr.splitlines()

    code, out, err = paceline("status", "--dir", str(tmp_path))
    rows = {line.split()[0]: line.split()[1] for line in out.splitlines()[1:]}
    assert (code, rows, err) == (0, {"mine": "finished", "closed": "unreadable", "locked": "unreadable"}, [])
    code, out, err = paceline("status", "closed", "--dir", str(tmp_path))
    assert (code, err) == (0, [])
    assert "Permission denied" in out
    for name, file in (("closed", "status.json"), ("locked", ".lock")):
        code, out, err = paceline("run", f"run.name={name}", f"run.dir={tmp_path}")
        assert (code, err[0]) == (3, f"error: {tmp_path / name / file}: no permission to use it")
        assert [line.strip() for line in err[1:]] == ["is it another user's?", "nothing was started"]


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_that_takes_nothing_is_told_in_a_line(unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "launcher", "--help"],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (1, "error: cannot write to standard output: No space left on device\n")
