"""A terminal that takes nothing (Ctrl-S, a pager, tmux's copy mode) keeps no row of metrics from its file."""

import errno
import os
import pty
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.trainer_command import DIGITS, TRAINER, environment
from trainer.run.rows import read_json_lines
from trainer.rundir import RunDir
from trainer.terminal.console import open_console
from trainer.tracking import NullTrackers
from trainer.training import recorder
from trainer.training.recorder import Recorder

STEPS = 40


def fill(terminal: int) -> None:
    """Writes to a pseudo-terminal until it takes nothing more."""
    # A descriptor of its own: who shares the other one is to wait when it writes.
    own = os.open(os.ttyname(terminal), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        while True:
            os.write(own, b"x" * 64)
    except BlockingIOError:
        os.close(own)


def test_a_run_on_a_terminal_that_takes_nothing_comes_to_its_end_with_every_row(tmp_path: Path) -> None:
    master, terminal = pty.openpty()
    fill(terminal)
    arguments = [f"run.dir={tmp_path}", "run.name=a", f"max_steps={STEPS}", "log_every_steps=1", "data.workers=0"]
    process = subprocess.Popen(
        [*TRAINER, *DIGITS, *arguments],
        env={**environment(), "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=terminal,
    )
    os.close(terminal)
    try:
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)
    run = RunDir(tmp_path / "a")
    rows = [row["step"] for row in read_json_lines(run.metrics) if "train/loss" in row]
    assert rows == list(range(1, STEPS + 1))
    assert run.read_status()["state"] == "finished"


def test_a_save_whose_rows_do_not_get_written_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "_CLOSE_LIMIT_S", 0.1)
    answers = threading.Event()

    class Hanging(NullTrackers):
        def event(self, row: Mapping[str, Any]) -> None:
            answers.wait()

    console = open_console(is_rank_zero=True, log=None)
    recording = Recorder(RunDir(tmp_path), Hanging(), console, total_steps=1, epochs=1, gpu_percent=lambda: None)
    recording.event(event="x")
    with pytest.raises(OSError, match="were not written") as raised:
        recording.flush()
    assert raised.value.errno == errno.ETIMEDOUT
    answers.set()
    monkeypatch.undo()
    recording.flush()
    recording.close()
