"""A loading process that dies or hangs is named, with what it was reading."""

from pathlib import Path

import pytest

from tests.data.dying import FATAL
from tests.trainer_command import DIGITS, TRAINER, run
from trainer.data import failure
from trainer.data.bench import AtWork
from trainer.rundir import read_json


def fails(folder: Path, how: str, *further: str) -> tuple[str, dict[str, object]]:
    """What is said, and failure.json's details."""
    arguments = [
        *DIGITS[1:],
        "data._target_=tests.data.dying.build",
        f"data.args={{how: {how}}}",
        "data.augment=none",
        "data.workers=2",
        "global_batch_size=8",
        "epochs=3",
        f"run.dir={folder}",
        "run.name=r",
    ]
    done = run(TRAINER, *arguments, *further)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    row = read_json(folder / "r" / "failure.json")
    assert (row["type"], row["exit_code"]) == ("TrainingError", 1)
    details = row["details"]
    assert details["samples"] == [FATAL]
    assert details["paths"] == [f"/far/{FATAL}.png"]
    return done.stderr, details


def test_a_killed_loading_process_is_named_with_its_sample(tmp_path: Path) -> None:
    said, details = fails(tmp_path, "SIGKILL")
    assert f"was ended by SIGKILL at sample {FATAL} (/far/{FATAL}.png)" in said
    assert "out of memory?" in said
    assert details["exit_code"] == -9


def test_a_hanging_loading_process_is_named_with_its_sample(tmp_path: Path) -> None:
    said, _ = fails(tmp_path, "hang", "data.timeout_s=4")
    assert "gave no batch for data.timeout_s=4 seconds: process" in said
    assert f"at sample {FATAL} (/far/{FATAL}.png), for " in said


BUSY = [AtWork(0, 100, 3, 0.2), AtWork(1, 101, None, 9.0)]


@pytest.mark.parametrize(
    ("text", "codes", "says"),
    [
        ("DataLoader worker (pid 100) is killed by signal: Bus error. ", [-7, None], "was ended by SIGBUS at sample 3"),
        (
            "DataLoader worker (pid(s) 101, 100) exited unexpectedly",
            [7, 7],
            "0 (pid 100) has exited with code 7",
        ),
        ("DataLoader worker (pid(s) 101) exited unexpectedly", [None, -15], "by SIGTERM while it waited for work"),
        ("DataLoader timed out after 5 seconds", [None, None], "process 0 (pid 100) at sample 3, for 0.2 s"),
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", [None, None], None),
        ("CUDA error", [None, None], None),
    ],
)
def test_what_torch_says_is_told_with_names(text: str, codes: list[int | None], says: str | None) -> None:
    named = failure.explain(RuntimeError(text), [0] * 9, BUSY, codes, timeout_s=5)
    assert (named is None) == (says is None)
    assert says is None or says in str(named)
