"""What the first worker prints: on the terminal as if nothing were between, and in its log as plain lines."""

import fcntl
import io
import os
import pty
import re
import subprocess
import sys
import termios
import threading
import tty
from collections.abc import Callable
from pathlib import Path

import rich.console
import rich.progress

from launcher.workers import copier
from launcher.workers.copier import PlainLines
from tests.launcher.conftest import Job
from tests.trainer_command import ROOT, environment
from tests.waiting import until
from trainer.rundir import RunDir

MakeJob = Callable[[str], Job]


def plain(data: bytes, *, chunk: int = 1 << 20) -> str:
    lines = PlainLines()
    parts = [lines.feed(data[start : start + chunk]) for start in range(0, len(data), chunk)]
    return b"".join([*parts, lines.rest()]).decode()


def test_what_was_drawn_over_is_left_out_of_the_log_however_it_arrives() -> None:
    bar = b"first\n 10%|#\r 20%|##\r\x1b[31m100%|###\x1b[0m\r\nlast \xe2\x9c\x97 without end"
    for chunk in (1, 2, 3, 7, 1 << 20):
        assert plain(bar, chunk=chunk) == "first\n100%|###\nlast ✗ without end\n"


def test_a_live_display_of_several_rows_leaves_its_last_state_and_what_was_printed_above_it() -> None:
    screen = io.StringIO()
    console = rich.console.Console(file=screen, force_terminal=True, width=60)
    columns = (rich.progress.TextColumn("{task.description} {task.completed}"),)
    with rich.progress.Progress(*columns, console=console, auto_refresh=False) as progress:
        tasks = [progress.add_task(name, total=9) for name in ("one", "two", "three")]
        for done in range(1, 10):
            for task in tasks:
                progress.update(task, completed=done)
            progress.refresh()
            if done == 5:
                console.print("[bold]said[/bold] in between")
    for chunk in (1, 5, 1 << 20):
        lines = [line.strip() for line in plain(screen.getvalue().encode(), chunk=chunk).splitlines()]
        *first, said, one, two, three = [line for line in lines if line]
        assert [said, one, two, three] == ["said in between", "one 9", "two 9", "three 9"]
        # How far it moves up is learnt from its growing first frames.
        assert set(first) <= {"one 0", "two 0"}
        assert len(first) <= 3


def test_lines_are_handed_out_as_they_come_and_a_bar_without_end_does_not_grow() -> None:
    lines = PlainLines()
    assert lines.feed(b"one\ntw") == b"one\n"
    assert lines.feed(b"o\n") == b"two\n"
    for _ in range(10_000):
        assert lines.feed(b"\r" + bytes(100)) == b""
    assert len(lines._part) < 1000


def test_a_number_of_any_length_in_a_strange_code_ends_nothing() -> None:
    """Python refuses to read one of more than 4,300 digits."""
    assert plain(b"before\n\x1b[" + b"9" * 5000 + b"Aafter\n", chunk=1 << 20) == "before\nafter\n"


def test_rank_0_keeps_a_log_of_python_and_native_output_up_to_the_last_words_of_a_crash(make_job: MakeJob) -> None:
    job = make_job(
        """
import ctypes, os, sys
print("to stdout")
sys.stderr.write("to stderr\\n")
os.write(1, b"from native code\\n")
if os.environ["RANK"] == "0":
    ctypes.string_at(0)
import time; time.sleep(600)
"""
    )
    code, out, err = job.go()
    assert code == 128 + 11
    assert out == "to stdout\nfrom native code\n"
    log = job.run.log(0, 0).read_text()
    assert {"to stdout", "to stderr", "from native code"} <= set(log.splitlines())
    assert "Fatal Python error: Segmentation fault" in log
    assert "script.py" in log
    assert err.index("Fatal Python error") < err.index("✗ failed: killed by SIGSEGV on rank 0")
    assert job.failure["log"] == str(job.run.log(0, 0))
    assert "to stdout" in job.run.log(0, 1).read_text()


def test_each_attempt_has_its_log_and_output_that_nobody_reads_any_more_ends_nothing(make_job: MakeJob) -> None:
    job = make_job(
        """
import os, sys, time
attempt = os.environ["PACELINE_ATTEMPT"]
for number in range(2000):
    print(attempt, number, "x" * 100)
sys.exit(1 if attempt == "0" else 0)
"""
    )
    process = job.start("cluster.max_restarts=1")
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        stream.close()
    assert process.wait(60) == 0
    for attempt in (0, 1):
        lines = job.run.log(attempt, 0).read_text().splitlines()
        assert [line.split()[:2] for line in lines[:2000]] == [[str(attempt), str(number)] for number in range(2000)]
        assert lines[2000:2001] == (["Traceback (most recent call last):"] if attempt == 0 else [])


def test_on_a_terminal_a_script_finds_a_terminal_and_its_log_is_plain(make_job: MakeJob) -> None:
    job = make_job(
        """
import os, sys
import rich.console
import rich.progress
if os.environ["RANK"] != "0":
    sys.exit(0)
print(sys.stdout.isatty(), sys.stderr.isatty(), os.get_terminal_size(2))
with rich.progress.Progress() as progress:
    for _ in progress.track(range(3), description="work"):
        progress.refresh()
rich.console.Console(stderr=True).print("[red]coloured[/red]")
"""
    )
    ours, theirs = pty.openpty()
    subprocess.run(["stty", "rows", "37", "columns", "91"], stdin=theirs, check=True)
    command = [sys.executable, "-m", "launcher", "run", "run.name=job", "device=cpu", "--", "script.py"]
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
    surroundings.pop("NO_COLOR", None)
    process = subprocess.Popen(command, cwd=job.folder, env=surroundings, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = _read_all(ours).decode()
    assert process.wait(60) == 0
    assert "True True os.terminal_size(columns=91, lines=37)" in shown
    assert "\x1b[31mcoloured\x1b[0m" in shown
    assert shown.count("work") > 1
    log = job.run.log(0, 0).read_text()
    assert "\x1b" not in log
    assert "\ncoloured\n" in log
    assert log.count("work") == 1
    assert "100%" in log


def test_a_terminal_that_takes_nothing_keeps_neither_the_log_nor_the_job_from_its_end(make_job: MakeJob) -> None:
    job = make_job(
        """
import os
if os.environ["RANK"] == "0":
    print("up", flush=True)
    for number in range(20_000):
        print(number, "x" * 100)
"""
    )
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "launcher", "run", "run.name=job", "device=cpu", "--", "script.py"]
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=job.folder, env=surroundings, stdout=theirs, stderr=theirs)
    os.close(theirs)
    try:
        seen = b""
        while b"up" not in seen:
            seen += os.read(ours, 1 << 10)
        # And nothing more is read.
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert [line.split()[0] for line in job.run.log(0, 0).read_text().splitlines()[1:]] == [*map(str, range(20_000))]


def test_a_job_outlives_the_terminal_that_is_closed_and_loses_nothing_of_what_it_says(
    make_job: MakeJob,
) -> None:
    job = make_job(
        """
import os, time
from pathlib import Path
number = 0
while not Path("closed").exists() or number % 100:
    number += 1
    if os.environ["RANK"] == "0":
        print(f"up {number}", flush=True)
    time.sleep(0.001)
"""
    )

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "launcher", "run", "run.name=job", "device=cpu", "--", "script.py"],
        cwd=job.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=take_terminal,
    )
    os.close(theirs)
    try:
        seen = b""
        while b"up" not in seen:
            seen += os.read(ours, 1 << 10)
    finally:
        # The kernel sends SIGHUP to the session's leader, which the command is.
        os.close(ours)
    (job.folder / "closed").touch()
    assert process.wait(30) == 0
    assert job.run.read_status()["state"] == "finished"
    said = job.run.log(0, 0).read_text().splitlines()
    assert said == [f"up {number + 1}" for number in range(len(said))]


def copying(log: Path, target: int) -> "tuple[subprocess.Popen[bytes], int]":
    """A copier to a target, which becomes its own, and where to write."""
    source, worker = os.pipe()
    command = [sys.executable, "-I", "-S", copier.__file__, str(log), f"{source}:{target}"]
    process = subprocess.Popen(command, pass_fds=(source, target))
    os.close(source)
    os.close(target)
    return process, worker


def writing(descriptor: int, data: bytes, *, close: bool = False) -> threading.Thread:
    def write() -> None:
        left = memoryview(data)
        while left:
            left = left[os.write(descriptor, left) :]
        if close:
            os.close(descriptor)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    return thread


def test_what_a_terminal_has_not_taken_is_counted_when_it_takes_lines_again(tmp_path: Path) -> None:
    ours, target = pty.openpty()
    tty.setraw(target)
    log = tmp_path / "log"
    process, worker = copying(log, target)
    lines = [f"{number} {'x' * 100}\n".encode() for number in range(50_000)]
    data = b"".join(lines)
    writer = writing(worker, data)
    writer.join(30)
    assert not writer.is_alive(), "the worker waits for somebody who does not look"
    until(lambda: log.stat().st_size == len(data), "all is in the log", process)
    memory = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
    assert memory is not None
    assert int(memory[1]) < 40_000
    seen = b""
    while lines[-1] not in seen:
        seen += os.read(ours, 1 << 16)
    os.write(worker, b"again\n")
    os.close(worker)
    seen += _read_all(ours)
    assert process.wait(10) == 0
    before, count, after = re.split(rb"\n\[(\d+) lines not shown while this took nothing: [^\n]+ has all\]\n", seen)
    assert after.endswith(lines[-1] + b"again\n")
    after = after.removesuffix(b"again\n")
    assert data.startswith(before)
    assert data.endswith(b"\n" + after)
    assert data[len(before) : -len(after)].count(b"\n") == int(count) > 45_000


def test_who_reads_slowly_gets_everything(tmp_path: Path) -> None:
    ours, target = os.pipe()
    process, worker = copying(tmp_path / "log", target)
    data = os.urandom(1 << 21)
    writer = writing(worker, data, close=True)
    writer.join(1)
    assert writer.is_alive(), "the worker does not wait for its reader"
    seen = bytearray()
    while piece := os.read(ours, 1 << 13):
        seen += piece
    assert process.wait(10) == 0
    os.close(ours)
    assert seen == data


def _read_all(terminal: int) -> bytes:
    data = b""
    while True:
        try:
            data += os.read(terminal, 1 << 16)
        except OSError:
            return data


def test_what_our_trainer_says_is_in_the_log_once(tmp_path: Path) -> None:
    arguments = ["recipe=digits", "tracking=none", "device=cpu", "max_steps=2", f"run.dir={tmp_path}", "run.name=d"]
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "run", *arguments],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    log = RunDir(tmp_path / "d").log(0, 0).read_text().splitlines()
    said = [line for line in done.stderr.splitlines() if line.strip()]
    assert [line for line in log if line.strip()] == said[-len([line for line in log if line.strip()]) :]
    assert sum("Done in" in line for line in log) == 1


def test_a_terminal_gets_its_cursor_back_and_a_file_nothing(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    tidy = [sys.executable, "-c", "from launcher.workers.output import tidy_terminal; tidy_terminal()"]
    subprocess.run(tidy, stderr=theirs, check=True, cwd=ROOT)
    assert b"\x1b[?25h" in os.read(ours, 100)
    assert subprocess.run(tidy, capture_output=True, check=True, cwd=ROOT).stderr == b""
