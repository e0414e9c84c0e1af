"""`paceline status`, `logs` and `stop`: from another terminal, from files alone, and truthful."""

import fcntl
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from launcher import runs
from launcher.cli import main
from tests.launcher.conftest import ROOT, TELLS, Job
from trainer.run import launches
from trainer.run.rows import append_json_line
from trainer.rundir import RELEASED, RunDir, write_json

MakeJob = Callable[[str], Job]
HERE = socket.gethostname()


def make_run(
    folder: Path, name: str, *, state: str = "", host: str = HERE, age_s: float = 0.0, **status: object
) -> RunDir:
    run = RunDir(folder / name)
    row = {"attempt": 2, "argv": ["paceline", "run"], "time": time.time() - age_s - 5, "host": host, "job_id": None}
    write_json(run.job, {"argv": row["argv"], "attempts": [row]})
    if state:
        write_json(run.status, {"state": state, "attempt": 2, "time": time.time() - age_s, **status})
    return run


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    ("status", "held", "state"),
    [
        ({"state": "running"}, True, "running"),
        ({"state": "running"}, False, "lost"),
        ({"state": "running", "host": "elsewhere"}, False, "running"),
        ({"state": "running", "host": "elsewhere", "age_s": 3600}, False, "lost"),
        ({"state": "preempted"}, True, "running"),
        ({"state": "preempted"}, False, "preempted"),
        ({"state": "finished", "age_s": 1e7}, False, "finished"),
        ({}, False, "pending"),
        ({"age_s": 3600}, False, "lost"),
    ],
)
def test_the_state_is_what_the_lock_and_the_clock_say(
    status: dict[str, object], held: bool, state: str, tmp_path: Path
) -> None:
    run = make_run(tmp_path, "x", **status)  # type: ignore[arg-type]
    with run.lock.open("w") as lock:
        if held:
            fcntl.flock(lock, fcntl.LOCK_EX)
        assert runs.look(run, now=time.time()).state == state


def test_one_byte_that_is_no_text_does_not_hide_the_other_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path, "good", state="finished")
    for name in ("status", "job", "holder", "metrics"):
        run = make_run(tmp_path, f"bad-{name}", state="finished")
        path: Path = getattr(run, name)
        path.write_bytes(b'{"val/accuracy": 1, "\x93": 1}')
    code, out, err = said(capsys, "status", "--dir", str(tmp_path))
    assert code == 0, err
    assert len([line for line in out.splitlines() if "good" in line or "bad-" in line]) == 5


def test_a_run_elsewhere_lives_as_long_as_its_holder_renews_its_record(tmp_path: Path) -> None:
    run = make_run(tmp_path, "x", state="running", host="elsewhere", age_s=3600)
    run.holder.touch()
    assert runs.look(run, now=time.time()).state == "running"
    assert runs.look(run, now=time.time() + 3600).state == "lost"
    write_json(run.holder, {RELEASED: time.time()})
    assert runs.look(run, now=time.time()).state == "lost"


def test_a_new_attempt_that_has_said_nothing_yet_is_pending_and_not_what_the_last_one_was(tmp_path: Path) -> None:
    run = make_run(tmp_path, "x", state="failed", age_s=100)
    write_json(run.job, {"attempts": [{"attempt": 3, "time": time.time() - 10, "host": HERE}]})
    assert runs.look(run, now=time.time()).state == "pending"
    assert runs.look(run, now=time.time() + 3600).state == "lost"


def test_one_elsewhere_that_goes_on_and_has_not_said_so_yet_is_pending_though_it_has_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path, "x", state="preempted", age_s=100)
    write_json(run.job, {"attempts": [{"attempt": 3, "time": time.time() - 10, "host": "elsewhere"}]})
    run.holder.touch()
    assert runs.look(run, now=time.time()).is_live


def test_a_restart_is_an_attempt_of_the_run_and_a_launch_that_found_it_taken_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(tmp_path / "x")
    for attempt, is_launch in ((0, True), (1, False), (2, True)):
        log = run.log(attempt, 0)
        log.parent.mkdir(parents=True)
        log.write_text(f"said in {attempt}\n")
        if is_launch:
            launches.note(run, {"attempt": attempt, "argv": [], "time": time.time() + attempt, "host": f"h{attempt}"})
    run.update_status(state="running", attempt=0)
    write_json(run.failure, {"attempt": 1, "type": "ValueError", "message": "no"})
    with run.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        view = runs.look(run)
        assert (view.state, view.attempt, view.host) == ("running", 1, "h0")
        assert said(capsys, "logs", "x", "--dir", str(tmp_path))[1] == "said in 1\n"
    write_json(run.status, {**run.read_status(), "state": "failed", "time": time.time() + 10})
    assert runs.look(run).failure["type"] == "ValueError"


def test_the_table_has_a_line_a_run_the_latest_first_and_the_error_of_a_failed_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "no run").mkdir()
    make_run(tmp_path, "done", state="finished", step=936, total_steps=936, best_accuracy=0.918)
    failed = make_run(tmp_path, "failed", state="failed", step=1210, total_steps=9000)
    write_json(failed.failure, {"rank": 1, "attempt": 2, "type": "ValueError", "message": "broken on purpose\nmore"})
    figures = {"images_per_second": 21_400.0, "gpu_percent": 97.0, "eta_s": 7500.0}
    live = make_run(tmp_path, "live", state="running", step=61_200, total_steps=112_590, **figures)
    append_json_line(live.metrics, {"step": 100, "val/accuracy": 0.5})
    append_json_line(live.metrics, {"step": 200, "val/accuracy": 0.713})
    append_json_line(live.metrics, {"step": 300, "train/loss": 1.0})
    latest = time.time() + 10
    os.utime(live.status, (latest, latest))
    with live.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, out, err = said(capsys, "status", "--dir", str(tmp_path))
        as_json = json.loads(said(capsys, "status", "live", "--dir", str(tmp_path), "--json")[1])
        detail = said(capsys, "status", "live", "--dir", str(tmp_path))[1]
    assert (code, err) == (0, "")
    lines = [line.rstrip() for line in out.splitlines()]
    assert lines[0].split() == ["RUN", "STATE", "STEP", "VAL", "ACC", "IMAGES/S", "GPU", "ETA", "WHERE"]
    assert len(lines) == 4
    assert lines[1].startswith("live ")
    for word in ("running", "61,200/112,590", "71.3 %", "21,400", "97 %", "2 h 0", f"{HERE}, attempt 2"):
        assert word in lines[1]
    rows = {line.split()[0]: line for line in lines}
    assert rows["failed"].endswith("ValueError on rank 1: broken on purpose")
    # The best one of a run that has ended, the latest one of a live one.
    assert "91.8 % best" in rows["done"]
    assert "best" not in rows["live"]
    assert "\x1b" not in out
    (row,) = as_json["runs"]
    assert as_json["version"] == 1
    assert (row["name"], row["state"], row["step"], row["accuracy"]) == ("live", "running", 61_200, 0.713)
    assert "paceline stop live" in detail.replace(str(Path(sys.executable).parent) + "/", "")
    assert said(capsys, "status", "-q", "--dir", str(tmp_path))[1].splitlines()[0] == "live"


@pytest.mark.parametrize(
    ("state", "held", "seen"), [("running", True, (69, 0.5, False)), ("failed", False, (138, 0.898, True))]
)
def test_a_run_that_was_killed_has_its_best_accuracy_and_no_step_before_its_last_checkpoint(
    tmp_path: Path, state: str, held: bool, seen: tuple[int, float, bool]
) -> None:
    run = make_run(tmp_path, "x", state=state, step=69, best_accuracy=0.898)
    append_json_line(run.metrics, {"step": 69, "val/accuracy": 0.5})
    run.checkpoint(138).mkdir(parents=True)
    with run.lock.open("w") as lock:
        if held:
            fcntl.flock(lock, fcntl.LOCK_EX)
        view = runs.look(run)
    assert (view.step, view.accuracy, view.is_best) == seen


@pytest.mark.parametrize("width", [80, 100, 140])
def test_a_long_reason_or_name_takes_no_room_from_state_and_step_on_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    for number, state in enumerate(("failed", "stopped")):
        reason = "asked to stop " + "x" * 400
        run = make_run(tmp_path, f"{number}-{'r' * 30}", state=state, step=12_345, total_steps=120_000, reason=reason)
        write_json(run.failure, {"rank": 1, "attempt": 2, "type": "ValueError", "message": "y" * 400})
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, _ = said(capsys, "status", "--dir", str(tmp_path))
    heading, *lines = re.sub(r"\x1b\[\d*m", "", out).splitlines()
    assert code == 0
    assert heading.split()[:3] == ["RUN", "STATE", "STEP"]
    assert len(lines) == 2
    assert max(map(len, (heading, *lines))) <= width
    step = "12,345/120,000, nothing saved"
    assert any("  stopped  " + step in line and "asked t" in line for line in lines)
    assert any("  failed   12,345, nothing saved" in line and "ValueEr" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["status", "lvie"], "no run 'lvie'"),
        (["status", "liv"], "paceline status live"),
        (["logs"], "logs takes one run"),
        (["logs", "live"], "has no logs of attempt 2"),
        (["logs", "live", "--rank", "x"], "--rank x is not a number"),
        (["stop", "x", "y"], "stop takes one run"),
        (["ps"], "Did you mean status?"),
    ],
)
def test_a_mistake_is_exit_2(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs", "live", state="finished")
    code, out, err = said(capsys, *arguments)
    assert (code, out) == (2, "")
    assert words in err


def test_nothing_is_asked_of_a_run_that_has_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, "x", state="finished")
    code, _, err = said(capsys, "stop", str(run.path))
    assert (code, err) == (0, "run x is finished: there is nothing to stop\n")
    assert not run.stop.exists()


def test_looking_imports_no_torch_and_no_hydra(tmp_path: Path) -> None:
    make_run(tmp_path, "x", state="finished")
    script = (
        f"import sys; from launcher.cli import main; main(['status', '--dir', {str(tmp_path)!r}]); "
        "print(sorted({'torch', 'hydra', 'omegaconf', 'numpy', 'wandb'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True)
    table, imported = done.stdout.strip().rsplit("\n", 1)
    assert "finished" in table
    assert imported == "[]"


def test_a_job_is_followed_and_stopped_from_another_terminal_and_lost_when_it_was_killed(make_job: MakeJob) -> None:
    job = make_job(
        TELLS
        + """
def end(*_):
    print("saved", rank, flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, end)
print("up", rank, os.environ["PACELINE_ATTEMPT"], flush=True)
tell("up")
time.sleep(600)
"""
    )

    def paceline(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "launcher", *words]
        surroundings = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            command, cwd=job.folder, env=surroundings, capture_output=True, text=True, timeout=60, check=False
        )

    process = job.start()
    job.hears("up")
    follower = subprocess.Popen(
        [sys.executable, "-m", "launcher", "logs", "job", "-f", "--rank", "1"],
        cwd=job.folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert follower.stdout is not None
    assert follower.stdout.readline() == "up 1 0\n"
    assert "running" in paceline("status").stdout
    second = job.start()
    code, _, err = job.finish(second)
    assert (code, "is being trained by another job" in err) == (2, True)
    stopped = paceline("stop", "job", "--wait")
    assert stopped.returncode == 0, stopped.stderr
    assert "asked run job to stop; its workers get SIGTERM\n" in stopped.stderr
    assert "run job is stopped" in stopped.stderr
    assert "asked to stop (stop in the run directory)" in paceline("status", "job").stdout
    assert job.finish(process)[0] == 75
    assert follower.communicate(timeout=20)[0] == "saved 1\n"
    assert paceline("logs", "job").stdout == "up 0 0\nsaved 0\n"
    process = job.start()
    job.hears("up")
    process.send_signal(signal.SIGKILL)
    job.finish(process)
    job.check_gone(deadline_s=10)
    (line,) = [line for line in paceline("status").stdout.splitlines() if line.startswith("job")]
    assert "lost" in line
    assert "attempt 1" in line
    assert paceline("logs", "job", "--attempt", "1").stdout == "up 0 1\n"


def test_a_run_that_ended_early_says_how_and_from_where_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, "x", state="stopped", step=20)
    write_json(run.job, {"argv": ["paceline", "run", "recipe=digits", "run.name=old", "--", "train.py", "--lr", "1"]})
    for step in (8, 20):
        run.checkpoint(step).mkdir(parents=True)
    _, out, _ = said(capsys, "status", "x", "--dir", str(tmp_path))
    assert "paceline run recipe=digits run.name=x -- train.py --lr 1   (from step 20)" in out
    run.update_status(step=25, total_steps=40)
    assert re.search(r"step +25/40, saved up to 20\n", said(capsys, "status", "x", "--dir", str(tmp_path))[1])
    (saved,) = json.loads(said(capsys, "status", "x", "--dir", str(tmp_path), "--json")[1])["runs"]
    assert (saved["step"], saved["saved_step"]) == (25, 20)
    write_json(run.job, {"argv": ["paceline", "run", "recipe=digits", "run.fresh=true"]})
    write_json(run.status, {"state": "failed", "attempt": 0, "time": time.time()})
    for code, label in ((1, "again"), (3, "then"), (2, None)):
        write_json(run.failure, {"attempt": 0, "type": "ConfigError", "message": "no", "exit_code": code})
        _, out, _ = said(capsys, "status", "x", "--dir", str(tmp_path))
        told = {line.split()[0] for line in out.splitlines()[1:]}
        assert [name for name in ("again", "then") if name in told] == ([label] if label else [])
    write_json(run.status, {"state": "finished", "attempt": 0, "time": time.time() - 90})
    write_json(run.summary, {"seconds": 68.2})
    run.metrics.touch()
    shown = said(capsys, "status", "x", "--dir", str(tmp_path))[1]
    assert "again" not in shown
    assert "finished 1 m 3" in shown
    assert re.search(r"took +1 m 08 s", shown)
    assert f"metrics    {run.metrics}" in shown


def test_colours_are_for_those_who_want_them_and_a_state_is_a_word_without_them(tmp_path: Path) -> None:
    make_run(tmp_path, "x", state="failed")

    def shown(**environment: str) -> bytes:
        pid, terminal = pty.fork()
        if pid == 0:
            command = [sys.executable, "-m", "launcher", "status", "--dir", str(tmp_path)]
            os.execve(command[0], command, {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], **environment})
        seen = b""
        with suppress(OSError):
            while data := os.read(terminal, 1 << 16):
                seen += data
        os.close(terminal)
        os.waitpid(pid, 0)
        return seen

    assert b"\x1b[31mfailed" in shown(TERM="xterm")
    plain = shown(TERM="xterm", NO_COLOR="1")
    assert b"  failed " in plain
    assert not re.search(rb"\x1b\[3\dm", plain)
    assert b"\x1b" not in shown(TERM="dumb")
