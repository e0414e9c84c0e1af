"""SIGKILL, ENOSPC and EIO at every system call of a save: the newest committed checkpoint always loads."""

import itertools
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults.tracing import Call, calls, load, needs_strace, prepare, save
from trainer import checkpoint
from trainer.rundir import RunDir

pytestmark = needs_strace


def template(tmp_path: Path, *steps: int) -> RunDir:
    """A run directory with these checkpoints, to be copied for every try."""
    run = RunDir(tmp_path / "template" / "run")
    run.path.mkdir(parents=True)
    prepare(run, *steps)
    return run


def copy(run: RunDir, number: int) -> RunDir:
    """A directory of its own for a try; as long a path as the template's, so that the calls are the same."""
    place = run.path.parent.parent / f"try-{number:04d}"
    shutil.copytree(run.path.parent, place)
    return RunDir(place / "run")


def tries(run: RunDir, step: int) -> Iterator[tuple[Call, RunDir]]:
    """Every system call of a save, with a run directory to try it in."""
    found = calls(copy(run, 0), step)
    for number, call in enumerate(found, start=1):
        yield call, copy(run, number)


@pytest.mark.parametrize("existing", [(1,), (1, 2)], ids=["a new step", "a step that is there already"])
def test_killed_at_any_system_call_the_newest_committed_checkpoint_loads(
    tmp_path: Path, existing: tuple[int, ...]
) -> None:
    def kill(tried: tuple[Call, RunDir]) -> tuple[str, bool, int, list[str]]:
        call, run = tried
        done = save(run, 2, "-e", f"inject={call.name}:signal=KILL:when={call.number}")
        assert done.returncode != 0, call
        step = load(run)
        checkpoint.remove_unfinished(run)
        left = [path.name for path in run.checkpoints.iterdir() if not path.name.startswith("step-")]
        # The run goes on from there.
        prepare(run, 3)
        assert load(run) == 3
        return call.text, done.stdout == "saved", step, left

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(kill, tries(template(tmp_path, *existing), 2)))
    for text, said, step, left in outcomes:
        assert step == 2 if said or 2 in existing else step in (1, 2), text
        assert left == [], text
    steps = [step for _, _, step, _ in outcomes]
    assert {said for _, said, _, _ in outcomes} == {True, False}
    if existing == (1,):
        assert steps == sorted(steps), "once it is committed it stays"
        assert set(steps) == {1, 2}


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
def test_whatever_call_fails_the_old_one_is_intact_and_a_failed_fsync_is_not_repeated(
    tmp_path: Path, error: str
) -> None:
    failing = {"openat", "write", "fsync", "rename", "mkdir"}

    def fail(tried: tuple[Call, RunDir]) -> None:
        call, run = tried
        log = run.path.parent / "trace"
        done = save(run, 2, "-e", f"inject={call.name}:error={error}:when={call.number}", log=log)
        assert "Traceback" not in done.stderr, (call, done.stderr)
        if done.stdout == "saved":
            # Where it does not matter, such as in syncing what is above the run.
            assert load(run) == 2, call
            return
        assert done.returncode == 1, call
        step = load(run)
        assert step in (1, 2), call
        # Nothing of it remains, as a full disk needs its room, unless it was whole already or nothing can be removed.
        assert step == 2 or not list(run.checkpoints.glob(".*")), call
        lines = log.read_text().splitlines()
        failed = next(number for number, line in enumerate(lines) if "(INJECTED)" in line)
        if call.name == "fsync":
            path = lines[failed].split("<", 1)[1].split(">", 1)[0]
            assert not any("fsync(" in line and f"<{path}>" in line for line in lines[failed + 1 :]), call

    until_saved = itertools.takewhile(lambda tried: '"saved"' not in tried[0].text, tries(template(tmp_path, 1), 2))
    sweep = (tried for tried in until_saved if tried[0].name in failing)
    with ThreadPoolExecutor(2) as pool:
        assert len(list(pool.map(fail, sweep))) > 15
