"""Runs whose files are half written, damaged or another program's: told as far as they say something."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher import runs
from launcher.cli import main
from launcher.verbs.status import details
from tests.launcher.conftest import ROOT
from trainer.rundir import RunDir, write_json

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)
STATUS = ("state", "step", "total_steps", "time", "attempt", "images_per_second", "eta_s", "best_accuracy", "exit_code")
JOB = ("argv", "host", "job_id", "time", "attempt", "attempts")
FAILURE = ("attempt", "rank", "type", "message", "exit_code", "meaning", "advice", "override")


def record(*names: str) -> st.SearchStrategy[Any]:
    """A JSON object with some of these keys, or anything."""
    known = st.fixed_dictionaries({}, optional=dict.fromkeys(names, ANYTHING))
    likely = known.map(lambda row: {**row, "state": "running"}) | known.map(lambda row: {**row, "state": "failed"})
    return known | likely | ANYTHING


@settings(max_examples=300, deadline=None)
@given(record(*STATUS), record(*JOB), record(*FAILURE), record("event", "time", "step"), st.integers(0, 400))
def test_whatever_the_files_hold_a_run_is_told(
    tmp_path_factory: pytest.TempPathFactory, status: Any, job: Any, failure: Any, event: Any, cut: int
) -> None:
    run = RunDir(tmp_path_factory.getbasetemp() / "damaged")
    run.path.mkdir(exist_ok=True)
    for path, value in ((run.status, status), (run.job, job), (run.failure, failure), (run.events, event)):
        path.write_text(json.dumps(value)[: cut or None] + "\n")
    view = runs.look(run)
    assert details(view)[0] == "damaged"
    json.dumps(view.to_json())
    runs.is_script(run)
    runs.is_launched(run)


def test_what_cannot_be_read_hides_no_other_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(RunDir(tmp_path / "good").status, {"state": "finished", "time": time.time()})
    broken = RunDir(tmp_path / "broken")
    broken.status.mkdir(parents=True)
    broken.config.touch()
    (tmp_path / "foreign" / "src").mkdir(parents=True)
    (tmp_path / "file.txt").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    assert main(["status", "--dir", str(tmp_path)]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert rows.keys() == {"RUN", "good", "broken"}
    assert "unreadable" in rows["broken"]
    assert "Is a directory" in rows["broken"]
    assert main(["status", "broken", "--dir", str(tmp_path)]) == 0
    assert "unreadable" in capsys.readouterr().out
    assert main(["status", "--dir", str(tmp_path), "-q"]) == 0
    assert set(capsys.readouterr().out.split()) == {"good", "broken"}


def test_a_job_of_another_boot_or_another_host_is_judged_without_its_pids(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "x")
    run.path.mkdir()
    write_json(run.job, {"host": socket.gethostname(), "time": time.time() - 60})
    write_json(run.status, {"state": "running", "time": time.time() - 30})
    # Of a process that lives, but in another boot, or on another machine: nobody holds the lock.
    write_json(run.holder, {"host": socket.gethostname(), "pid": os.getpid(), "boot": "another"})
    run.lock.touch()
    assert runs.look(run).state == "lost"
    write_json(run.job, {"host": "elsewhere", "time": time.time() - 60})
    assert runs.look(run).state == "running"
    assert runs.look(run, now=time.time() + runs.SILENT_S + 60).state == "lost"


def test_a_thousand_runs_are_a_matter_of_a_moment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(1000):
        run = RunDir(tmp_path / f"run-{number:04}")
        run.path.mkdir()
        row = {"attempt": 0, "host": "h", "time": 1.0, "packages": {f"package-{n}": "1.0" for n in range(60)}}
        run.job.write_text(json.dumps({**row, "attempts": [row]}))
        run.status.write_text(json.dumps({"state": ("running", "finished")[number % 2], "step": 5, "time": 2.0}))
        run.metrics.write_text('{"step": 1, "val/accuracy": 0.5, "time": 0}\n' * 1000)
    began = time.process_time()
    assert main(["status", "--dir", str(tmp_path)]) == 0
    # Half a second on an idle machine; every read is one of files that do not grow with the run.
    assert time.process_time() - began < 3
    assert len(capsys.readouterr().out.splitlines()) == 1001


def test_the_last_event_of_a_run_that_lives_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDir(tmp_path / "x")
    write_json(run.status, {"state": "running", "time": time.time()})
    write_json(run.job, {"host": "elsewhere", "time": time.time() - 5})
    rows = ({"event": "start", "time": 1}, {"event": "checkpoint", "step": 1380, "time": time.time() - 120})
    run.events.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"event": "loss_sp')
    assert main(["status", "--dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith("  elsewhere, checkpoint at step 1,380, 2 m 00 s ago\n")


def test_what_others_have_written_does_not_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(tmp_path / "x")
    write_json(run.status, {"state": "stopped", "time": time.time(), "reason": "\x1b[2Jwiped\r\n"})
    assert main(["status", "--dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith("  ?[2Jwiped??\n")


def strict(text: str) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(word)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_name_that_is_no_text_is_shown_and_listed_and_json_parses_whatever_it_tells(
    tmp_path: Path, encoding: str
) -> None:
    run = RunDir(tmp_path / os.fsdecode(b"caf\xe9"))
    write_json(run.status, {"state": "running", "time": time.time()})
    write_json(run.job, {"host": "elsewhere", "time": time.time() - 5})
    run.events.write_text('{"event": "nonfinite", "loss": NaN, "step": 3}\n')

    def said(*options: str) -> bytes:
        command = [sys.executable, "-m", "launcher", "status", "--dir", str(tmp_path), *options]
        strictly = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": f"{encoding}:strict"}
        return subprocess.run(command, env=strictly, cwd=tmp_path, check=True, capture_output=True).stdout

    assert said("-q") == (b"caf\xe9\n" if encoding == "utf-8" else b"caf\\udce9\n")
    assert said().splitlines()[1].startswith(b"caf")
    (row,) = strict(said("--json").decode("ascii"))["runs"]
    assert (row["name"], row["event"]["loss"]) == (run.name, None)
