"""W&B for real, offline, each case in its own process: the library changes the one that imports it."""

import importlib
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from trainer.config import Config, WandbConfig
from trainer.rundir import RunDir
from trainer.tracking.wandb import WandbTracker, has_api_key

_HEAD = """
import json, os, signal, sys, threading, time
import psutil
from pathlib import Path
from trainer.config import Config, WandbConfig
from trainer.rundir import RunDir
from trainer.tracking.wandb import WandbTracker

said = []
hooks = sys.exit, sys.excepthook
folder = Path(sys.argv[1])

def tracker(attempt=0, mode="auto", **more):
    options = WandbConfig(project="tests", tags=["a"], mode=mode)
    return WandbTracker(
        options, RunDir(folder), config=Config(seed=7), attempt=attempt, warn=said.append, **more
    )

def helpers():
    return [p for p in psutil.Process().children() if p.name().startswith("wandb")]
"""


def _run(folder: Path, script: str, **environment: str) -> Any:
    """Runs a script that prints JSON in its last line; adds how long the process took to end afterwards."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    # A home without a .netrc, and no terminal: whoever runs the tests may have an account.
    clean |= {"HOME": str(folder), **environment}
    process = subprocess.Popen(
        [sys.executable, "-c", _HEAD + script, str(folder)],
        env=clean,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    # The helper process has our pipe too: reading to the end also shows that it is gone.
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    result = json.loads(output.splitlines()[-1])
    result["exit_seconds"] = time.time() - result.pop("end")
    return result


def _records(file: Path) -> Iterator[Any]:
    """The records of a .wandb file: a 7-byte header, then LevelDB's log format in blocks of 32 KiB."""
    protocol = importlib.import_module("wandb.proto.wandb_internal_pb2")

    data = file.read_bytes()
    position, message = 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        message += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield protocol.Record.FromString(message)
            message = b""


def _plain(items: Any) -> dict[str, Any]:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


@pytest.fixture(scope="module")
def two_attempts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("runs") / "my run"
    folder.mkdir()
    script = """
result = {}
for attempt in range(2):
    t = tracker(attempt)
    t.monitor({"time": 0.0, "node": 1, "host": "b", "gpu/0/power_watts": 300.0, "gpu/0/throttle": []})
    result.setdefault("imported before the first step", "wandb" in sys.modules)
    result.setdefault("command before", t.sync_command())
    for step in (50, 100, 150):
        t.metrics({"step": 1000 * attempt + step, "time": 1.0, "train/loss": 1 / step})
    t.monitor({"time": 5.0, "node": 1, "gpu/0/power_watts": 1.0})
    t.monitor({"time": 11.0, "node": 1, "gpu/0/power_watts": 301.0})
    t.finish({"val/accuracy": 0.9, "nested": {}})
    result["command"], result["hint"] = t.sync_command(), t.hint()
    result["helpers"] = len(helpers())
result["hooks"] = hooks == (sys.exit, sys.excepthook)
result["said"] = said
print(json.dumps(result | {"end": time.time()}))
"""
    return folder, _run(folder, script)


def test_rows_arrive_with_our_steps(two_attempts: tuple[Path, Any]) -> None:
    folder, result = two_attempts
    files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2
    assert result["said"] == []
    for attempt, file in enumerate(files):
        rows = [_plain(r.history.item) for r in _records(file) if r.WhichOneof("record_type") == "history"]
        losses = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
        assert losses == {1000 * attempt + step: 1 / step for step in (50, 100, 150)}
        watts = {row["step"]: row["node1/gpu/0/power_watts"] for row in rows if "node1/gpu/0/power_watts" in row}
        # The sample between the two came less than ten seconds after the first.
        assert watts == {0: 300, 1000 * attempt + 150: 301}


def test_our_step_is_the_axis_of_every_chart(two_attempts: tuple[Path, Any]) -> None:
    folder, _ = two_attempts
    file = next(folder.glob("wandb/offline-run-*/run-*.wandb"))
    metrics = [r.metric for r in _records(file) if r.WhichOneof("record_type") == "metric"]
    assert ("*", "step") in {(metric.glob_name, metric.step_metric) for metric in metrics}


def test_configuration_name_and_summary_are_stored(two_attempts: tuple[Path, Any]) -> None:
    folder, _ = two_attempts
    file = max(folder.glob("wandb/offline-run-*/run-*.wandb"))
    run = next(r.run for r in _records(file) if r.WhichOneof("record_type") == "run")
    config = _plain(run.config.update)
    assert run.display_name == "my run"
    assert run.project == "tests"
    assert list(run.tags) == ["a"]
    assert (config["seed"], config["attempt"], config["optim"]["lr"]) == (7, 1, 0.1)
    summary = {}
    for record in _records(file):
        if record.WhichOneof("record_type") == "summary":
            summary |= _plain(record.summary.update)
    assert summary["val/accuracy"] == 0.9


def test_the_id_stays_the_same_over_attempts(two_attempts: tuple[Path, Any]) -> None:
    folder, _ = two_attempts
    names = [path.name for path in folder.glob("wandb/offline-run-*/run-*.wandb")]
    assert names == 2 * [f"run-{(folder / 'wandb' / 'run_id').read_text()}.wandb"]


def test_the_sync_command_names_every_attempt(two_attempts: tuple[Path, Any]) -> None:
    import shlex

    folder, result = two_attempts
    assert result["command before"] is None
    words = shlex.split(result["command"])
    assert (Path(words[0]).name, words[1]) == ("wandb", "sync")
    assert {Path(word) for word in words[2:]} == set(folder.glob("wandb/offline-run-*"))
    assert result["hint"] == f"W&B (offline): {result['command']}"


def test_the_library_is_imported_late_and_leaves_no_trace(two_attempts: tuple[Path, Any]) -> None:
    _, result = two_attempts
    assert result["imported before the first step"] is False
    assert result["hooks"] is True
    assert result["helpers"] == 0
    assert result["exit_seconds"] < 5


@pytest.mark.parametrize("sent", ["SIGKILL", "SIGSTOP"])
def test_a_helper_that_dies_or_hangs_holds_up_neither_training_nor_the_end(tmp_path: Path, sent: str) -> None:
    script = f"""
t = tracker(finish_s=1.0, queue_rows=500)
send, is_open = t._send, threading.Event()
t._send = lambda run: (is_open.set(), send(run))
t.metrics({{"step": 0}})
assert is_open.wait(30), said
helper = helpers()[0]
helper.send_signal(signal.{sent})
slowest = 0.0
for step in range(1, 3000):
    begin = time.monotonic()
    t.metrics({{"step": step, "train/loss": 1.0}})
    t.monitor({{"node": 0, "time": 100.0 * step, "gpu/0/power_watts": 1.0}})
    slowest = max(slowest, time.monotonic() - begin)
begin = time.monotonic()
t.finish({{"val/accuracy": 0.9}})
result = {{"finish_seconds": time.monotonic() - begin, "slowest": slowest}}
result |= {{"said": said, "helper": helper.pid}}
print(json.dumps(result | {{"end": time.time()}}))
"""
    result = _run(tmp_path, script)
    assert result["slowest"] < 1
    assert result["finish_seconds"] < 6
    assert result["exit_seconds"] < 5
    assert not _runs(result["helper"])
    if sent == "SIGKILL":
        assert "W&B has failed, training goes on without it" in " ".join(result["said"])
    else:
        assert result["said"][0].startswith("W&B does not keep up")
        assert "did not finish in 1 s and is left behind" in " ".join(result["said"])
        assert "rows did not reach W&B" in result["said"][-1]


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("asked", ["override", "environment"])
def test_online_without_a_key_asks_nobody_and_goes_offline(tmp_path: Path, asked: str) -> None:
    mode = "online" if asked == "override" else "auto"
    script = f"""
t = tracker(mode={mode!r})
t.metrics({{"step": 1}})
t.finish({{}})
print(json.dumps({{"said": said, "command": t.sync_command(), "end": time.time()}}))
"""
    environment = {"WANDB_MODE": "online"} if asked == "environment" else {}
    result = _run(tmp_path, script, **environment)
    assert len(result["said"]) == 1
    assert result["said"][0].startswith("W&B cannot go online")
    assert result["command"].partition(" sync ")[0].endswith("wandb")
    file = next(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    # The summary was empty: the run failed.
    assert [r.exit.exit_code for r in _records(file) if r.WhichOneof("record_type") == "exit"] == [1]


def test_the_users_wandb_mode_wins(tmp_path: Path) -> None:
    script = """
t = tracker(mode="offline")
t.metrics({"step": 1})
t.finish({"val/accuracy": 0.9})
print(json.dumps({"said": said, "hint": t.hint(), "end": time.time()}))
"""
    result = _run(tmp_path, script, WANDB_MODE="disabled")
    assert result["said"] == []
    assert result["hint"] is None
    assert list(tmp_path.glob("wandb/*run-*")) == []


def test_a_run_without_a_row_of_metrics_starts_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    tracker = WandbTracker(WandbConfig(), RunDir(tmp_path), config=Config(), attempt=0, warn=said.append)
    tracker.monitor({"node": 0, "time": 1.0, "gpu/0/power_watts": 1.0})
    tracker.finish({})
    assert said == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("environment", "netrc", "expected"),
    [
        ({}, "", False),
        ({"WANDB_API_KEY": "k"}, "", True),
        ({}, "machine api.wandb.ai login user password k\n", True),
        ({}, "machine example.org login user password k\n", False),
        ({"WANDB_BASE_URL": "https://example.org"}, "machine example.org login user password k\n", True),
        ({}, "machine api.wandb.ai login", False),
    ],
)
def test_an_api_key_is_found_where_the_library_would_find_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], netrc: str, expected: bool
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if netrc:
        (tmp_path / ".netrc").write_text(netrc)
    assert has_api_key() is expected
