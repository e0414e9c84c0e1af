"""Where a process is, seen from outside: py-spy's view, or what Python itself writes where that is forbidden."""

import json
import os
import re
import shutil
import signal
import subprocess
import sysconfig
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.processes import catches, descendants

STACKS_SIGNAL = signal.SIGRTMIN + 6
"""Makes a worker write its stacks, through faulthandler: without Python's lock, whatever the process does."""

_SPY_LIMIT_S = 5.0
_WRITTEN_LIMIT_S = 2.0
_turns: defaultdict[int, threading.Lock] = defaultdict(threading.Lock)
_HEADING = re.compile(r"^(Current thread|Thread) 0x[0-9a-f]+(?: \[(?P<name>[^\]]*)\])?")
_WRITTEN_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+|\?\?\?) in (?P<function>.*)$')
_NATIVE = (".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".rs", ".so")
_BOOTSTRAP = "multiprocessing/process.py"
_MOST_BELOW = 32
_WORKER = str(Path(__file__).parents[1] / "workers" / "worker.py")


@dataclass(frozen=True, slots=True)
class Frame:
    """A call that has not returned.

    Attributes:
        function: its name.
        file: of Python code its file, of native code its library.
        line: 0 where unknown, as in native code.
    """

    function: str
    file: str
    line: int

    @property
    def is_native(self) -> bool:
        """Whether this is compiled code."""
        return self.file.endswith(_NATIVE) or not (self.line or self.file.endswith(".py"))


@dataclass(frozen=True, slots=True)
class Thread:
    """A thread of a process.

    Attributes:
        name: Python's name of it.
        frames: innermost first.
    """

    name: str
    frames: tuple[Frame, ...]


@dataclass(frozen=True, slots=True)
class Stacks:
    """What was seen of a process.

    Attributes:
        state: the kernel's letter: R runs, S sleeps, D waits for a device, T was stopped, t is traced; empty: gone.
        traced: whether a debugger holds it.
        threads: the main thread first; empty where it could not be seen.
        why_not: why it could not.
    """

    state: str
    traced: bool = False
    threads: tuple[Thread, ...] = ()
    why_not: str = ""

    @property
    def main(self) -> tuple[Frame, ...]:
        """The main thread's frames, innermost first, without those of the launch."""
        frames = self.threads[0].frames if self.threads else ()
        own = next((index for index, frame in enumerate(frames) if frame.file == _WORKER), len(frames))
        # What is left of `runpy`, which started the script.
        while own and ("runpy" in frames[own - 1].file or frames[own - 1].is_native) and own < len(frames):
            own -= 1
        return frames[:own]

    @property
    def started(self) -> tuple[Frame, ...]:
        """Of a process that Python's multiprocessing has started: the main thread's frames from there on."""
        frames = self.threads[0].frames if self.threads else ()
        begin = next((index for index, frame in enumerate(frames) if frame.file.endswith(_BOOTSTRAP)), 0)
        return frames[:begin]

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Stacks":
        """What `dataclasses.asdict` and JSON have made of one."""
        threads = (Thread(one["name"], tuple(Frame(**frame) for frame in one["frames"])) for one in values["threads"])
        given: dict[str, Any] = {**values, "threads": tuple(threads)}
        return Stacks(**given)


def take(pids: Collection[int], written: Mapping[int, int], *, native: bool) -> dict[int, Stacks]:
    """The stacks of processes, all at once.

    Args:
        pids: the processes.
        written: pid -> where it writes its stacks when it gets STACKS_SIGNAL; see `Stacks`.
        native: with the calls in compiled code, which takes ten times as long and halts the process meanwhile.
    """
    with ThreadPoolExecutor(max(1, len(pids))) as pool:
        return dict(zip(pids, pool.map(lambda pid: _stacks(pid, written.get(pid), native=native), pids), strict=True))


def below(pid: int, written: int) -> dict[int, Stacks]:
    """The stacks of what a worker has started by Python's multiprocessing, by pid: its loading processes, most likely.

    Args:
        pid: the worker.
        written: as in `take`; what it has forked inherits that.
    """
    started = descendants(root=pid)[:_MOST_BELOW]
    seen = take(started, dict.fromkeys(started, written), native=False)
    return {child: stacks for child, stacks in seen.items() if stacks.started}


def _stacks(pid: int, written: int | None, *, native: bool) -> Stacks:
    state, traced = state_of(pid)
    if not state:
        return Stacks("", why_not="the process has ended")
    # One that is stopped, traced or in the kernel's hands cannot be halted: py-spy would wait for that.
    answers = state not in "TtD" and not traced
    ways = [["--native"]] if native and answers else []
    threads, why_not = (), ""
    for way in [*ways, ["--nonblocking"]]:
        threads, why_not = _spied(pid, way)
        if threads:
            break
    if not threads and written is not None and answers:
        threads = _asked(pid, written)
    return Stacks(state, traced, threads, "" if threads else why_not)


def state_of(pid: int) -> tuple[str, bool]:
    """The kernel's letter for what a process does, empty of one that has ended; whether a debugger holds it."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        return "", False
    fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    state = fields.get("State", "")[:1]
    return ("" if state in "ZX" else state), fields.get("TracerPid", "0") != "0"


def spy() -> str:
    """py-spy's command.

    Raises:
        FileNotFoundError: it is not installed.
    """
    # Beside this Python, which need not be the one that PATH finds.
    found = shutil.which("py-spy", path=f"{sysconfig.get_path('scripts')}:{os.environ.get('PATH', '')}")
    if found is None:
        raise FileNotFoundError("py-spy is not installed")
    return found


def _spied(pid: int, options: list[str]) -> tuple[tuple[Thread, ...], str]:
    """(threads, why there are none)."""
    try:
        command = [spy(), "dump", "--pid", str(pid), "--json", *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SPY_LIMIT_S, check=False)
        rows = json.loads(done.stdout) if done.returncode == 0 else None
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return (), str(error)
    if not rows:
        return (), next(iter(done.stderr.strip().splitlines()), "py-spy saw nothing")
    # The main thread is the one that has the process's own number.
    rows.sort(key=lambda row: row.get("os_thread_id") != pid)
    return tuple(
        Thread(
            str(row.get("thread_name") or ""),
            tuple(Frame(one["name"], one["filename"], one["line"] or 0) for one in row["frames"]),
        )
        for row in rows
    ), ""


def _asked(pid: int, descriptor: int) -> tuple[Thread, ...]:
    """What the process writes itself when it is asked to."""
    if not catches(pid, STACKS_SIGNAL):
        # It would die of it.
        return ()
    # A worker and what it has forked write to the same place.
    with _turns[descriptor]:
        begin = os.fstat(descriptor).st_size
        with suppress(OSError):
            os.kill(pid, STACKS_SIGNAL)
        deadline, size = time.monotonic() + _WRITTEN_LIMIT_S, begin
        while time.monotonic() < deadline:
            time.sleep(0.05)
            before, size = size, os.fstat(descriptor).st_size
            if size == before > begin:
                break
        return parse_written(os.pread(descriptor, size - begin, begin).decode(errors="replace"))


def parse_written(text: str) -> tuple[Thread, ...]:
    """The threads in what faulthandler writes, the main thread first: it comes last there."""
    threads: list[tuple[str, list[Frame]]] = []
    for line in text.splitlines():
        if heading := _HEADING.match(line):
            threads.append((heading["name"] or "", []))
        elif threads and (frame := _WRITTEN_FRAME.match(line)):
            number = int(frame["line"]) if frame["line"].isdecimal() else 0
            threads[-1][1].append(Frame(frame["function"], frame["file"], number))
    return tuple(Thread(name, tuple(frames)) for name, frames in reversed(threads))
