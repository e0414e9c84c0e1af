"""What ranks have told of their errors, as `paceline logs --errors` shows it."""

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.cli import main
from launcher.ending.told import errors
from trainer.rundir import RunDir, error_beside, write_json

TRACE = "Traceback (most recent call last):\n  File ...\nValueError: boom\n"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "x")
    write_json(run.status, {"state": "failed", "attempt": 0})
    return run


def tell(run: RunDir, rank: int, *, attempt: int = 0, **row: Any) -> None:
    run.log(attempt, rank).parent.mkdir(parents=True, exist_ok=True)
    run.log(attempt, rank).write_text(f"rank {rank}\n")
    write_json(error_beside(run.log(attempt, rank)), {"host": "a", "type": "RuntimeError", "message": "lost", **row})


def test_an_error_is_told_once_for_all_its_ranks_and_the_verdicts_comes_first(run: RunDir) -> None:
    for rank in (0, 1, 2, 4):
        tell(run, rank, time=100.0 + rank)
    tell(run, 3, time=110.0, type="ValueError", message="boom", traceback=TRACE)
    write_json(run.failure, {"attempt": 0, "rank": 3, "host": "a", "type": "ValueError", "message": "boom"})
    first, second = errors(run, 0)
    assert (first.ranks, first.type, first.traceback) == ((3,), "ValueError", TRACE)
    assert (second.ranks, second.time) == ((0, 1, 2, 4), 100.0)
    assert second.lines()[0].startswith("ranks 0-2, 4, a, ")
    assert second.lines()[1:] == ["  RuntimeError: lost"]


def test_a_rank_that_was_killed_is_told_by_the_verdict(run: RunDir) -> None:
    write_json(run.failure, {"attempt": 0, "rank": 5, "host": "b", "type": "SIGKILL", "message": "out of memory"})
    (only,) = errors(run, 0)
    assert only.lines() == ["rank 5, b", "  SIGKILL: out of memory"]


def test_what_is_no_record_of_an_error_is_passed_over(run: RunDir) -> None:
    tell(run, 0)
    for name, text in (("rank-x.error.json", "{}"), ("rank-1.error.json", "{"), ("rank-2.error.json", "[]")):
        run.log(0, 0).with_name(name).write_text(text)
    assert [told.ranks for told in errors(run, 0)] == [(0,)]


def test_errors_and_logs_are_shown_and_listed_by_attempt(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    tell(run, 1, attempt=1, type="ValueError", message="boom", traceback=TRACE)
    tell(run, 0, attempt=0)
    assert main(["logs", str(run.path), "--errors"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == ["rank 1, a", *(f"  {line}" for line in TRACE.splitlines())]
    assert err == ""
    assert main(["logs", str(run.path), "--json"]) == 0
    listing = json.loads(capsys.readouterr().out)
    assert (listing["version"], listing["attempt"]) == (1, 1)
    assert listing["logs"] == [{"rank": 1, "path": str(run.log(1, 1)), "bytes": 7}]
    assert [error["ranks"] for error in listing["errors"]] == [[1]]
    assert main(["logs", str(run.path), "--attempt", "0", "-q"]) == 0
    assert capsys.readouterr().out == f"{run.log(0, 0)}\n"
    assert main(["logs", str(run.path), "--attempt", "2", "--errors"]) == 0
    assert capsys.readouterr() == ("", "no rank has told an error in attempt 2 of run x\n")


def test_a_job_that_came_to_nothing_without_a_terminal_has_its_words_there(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    run.terminal_log(0).parent.mkdir(parents=True)
    run.terminal_log(0).write_text("error: no port\n")
    assert main(["logs", str(run.path)]) == 0
    assert capsys.readouterr().out == "error: no port\n"
