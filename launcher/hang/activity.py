"""Signs of life of workers that do not tell: what they print, compute and read, and whether their stacks change."""

import os
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from launcher.hang.spinning import Spin
from launcher.hang.stacks import Frame, Stacks
from launcher.hang.waiting import waits_for_others

_BUSY_SHARE = 0.02
_BUSY_BESIDE_SHARE = 0.1
_BUSY_BYTES_PER_S = 200_000
_LEAST_BUSY_S = 0.03
"""The kernel counts in hundredths of a second, of which one falls to an idle process now and then."""

_PERIODS_S = (1.0, 5.0)
_LEAST_PROBE_S = 1.0
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Effort:
    """What a worker has done, or did in some time.

    Attributes:
        main_s: CPU seconds of its main thread.
        beside_s: CPU seconds of its other threads and of the processes below it.
        moved: bytes that it has read and written.
    """

    main_s: float = 0.0
    beside_s: float = 0.0
    moved: int = 0

    def since(self, before: "Effort") -> "Effort":
        """The difference."""
        return Effort(self.main_s - before.main_s, self.beside_s - before.beside_s, self.moved - before.moved)

    def is_work(self, past_s: float) -> bool:
        """Whether so much in so many seconds is a sign of life.

        A main thread that waits uses next to nothing. Beside one that waits something may tick all the same: monitors,
        progress bars, a library that polls. Those must use a tenth of a core; loading processes do.
        """
        return (
            self.main_s >= max(_BUSY_SHARE * past_s, _LEAST_BUSY_S)
            or self.beside_s >= max(_BUSY_BESIDE_SHARE * past_s, _LEAST_BUSY_S)
            or self.moved >= _BUSY_BYTES_PER_S * past_s
        )


@dataclass(slots=True)
class _Worker:
    effort: Effort = Effort()
    printed: int = 0
    marks: int = 0
    busy: bool = False
    frames: tuple[Frame, ...] = ()
    waits: bool = False
    spin: Spin | None = None


class Activity:
    """Counts signs of life of workers, seen from outside.

    Output is one, and so is work, in the worker or in what it has started; see `Effort.is_work`. A worker
    that spins in a collective, or in a wait for its device, computes nothing, though: where nothing has been printed
    for a while, its stack is looked at, and it counts as waiting while that does not change. A stack that does change
    is a sign of life itself.

    Args:
        limit_s: the silence that is granted.
        take: pids -> stacks, Python's calls alone; must not halt the processes.
        look_closely: begins to look, for so many seconds, whether a process stays in one wait for its device.
    """

    def __init__(
        self,
        limit_s: float,
        take: Callable[[Collection[int]], dict[int, Stacks]],
        look_closely: Callable[[int, float], Spin | None],
    ) -> None:
        self._take, self._look_closely = take, look_closely
        self._period_s = min(max(limit_s / 40, _PERIODS_S[0]), _PERIODS_S[1])
        self._probe_s = max(limit_s / 4, _LEAST_PROBE_S)
        self._workers: dict[int, _Worker] = {}
        self._looked = self._probed = 0.0
        self._measured = time.monotonic() - self._period_s

    def look(self, now: float, pids: Mapping[int, int], logs: Mapping[int, Path]) -> dict[int, int]:
        """Signs of life so far, by rank.

        Args:
            now: of a `Clock`.
            pids: rank -> pid, of workers that have not ended.
            logs: rank -> where its output goes.
        """
        if now - self._looked >= self._period_s or not self._workers.keys() >= pids.keys():
            self._looked = now
            self._measure(pids, logs)
            if now - self._probed >= self._probe_s:
                self._probed = now
                self._compare(pids)
        return {rank: self._workers[rank].marks for rank in pids}

    def is_busy(self, rank: int) -> bool:
        """Whether a worker was computing when it was last looked at."""
        return rank in self._workers and self._workers[rank].busy

    def _measure(self, pids: Mapping[int, int], logs: Mapping[int, Path]) -> None:
        # The time that workers had to do it in, which goes on while their stacks are taken: a `Clock` hardly does.
        last, self._measured = self._measured, time.monotonic()
        used = _used_by_trees(pids)
        for rank, pid in pids.items():
            worker = self._workers.setdefault(rank, _Worker())
            before, printed_before = worker.effort, worker.printed
            main_s = _used_by_main_thread(pid)
            worker.effort = Effort(main_s, used[pid] - main_s, _moved(pid))
            worker.printed = _size(logs[rank])
            worker.busy = worker.effort.since(before).is_work(self._measured - last)
            printed = worker.printed != printed_before
            if printed:
                # Who prints need not be looked into; nobody waits for ever while another one prints.
                worker.frames, worker.waits, worker.spin = (), False, None
                self._probed = self._looked
            if printed or (worker.busy and not worker.waits):
                worker.marks += 1

    def _compare(self, pids: Mapping[int, int]) -> None:
        seen = self._take(pids.values())
        for rank, pid in pids.items():
            worker, frames = self._workers[rank], seen[pid].main
            if worker.frames and frames and frames != worker.frames:
                worker.marks += 1
            stays = bool(frames) and frames == worker.frames
            worker.waits = stays and (waits_for_others(frames) or self._spins(worker, pid))
            worker.frames = frames

    def _spins(self, worker: _Worker, pid: int) -> bool:
        """Whether all that it computes is a wait for its device, as far as is known by now."""
        has_stayed = worker.spin.has_stayed() if worker.spin is not None else False
        if has_stayed is None:
            return worker.waits
        worker.spin = self._look_closely(pid, self._probe_s) if worker.busy else None
        return has_stayed and worker.spin is not None


def _used_by_trees(pids: Mapping[int, int]) -> dict[int, float]:
    """CPU seconds used so far by each of these processes and all below it."""
    parents: dict[int, int] = {}
    seconds: dict[int, float] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            parents[int(folder.name)] = int(fields[1])
            # With what children have used that were waited for: it stays when they go.
            seconds[int(folder.name)] = sum(map(int, fields[11:15])) * _TICK_S
    roots, used = set(pids.values()), dict.fromkeys(pids.values(), 0.0)
    for process, spent in seconds.items():
        root = process
        while root not in roots and root in parents:
            root = parents[root]
        if root in roots:
            used[root] += spent
    return used


def _used_by_main_thread(pid: int) -> float:
    """CPU seconds used so far; 0 of a process that has ended."""
    try:
        fields = Path(f"/proc/{pid}/task/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:13])) * _TICK_S


def _moved(pid: int) -> int:
    """Bytes that a process has read and written so far; 0 where that is not to be seen."""
    try:
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("rchar", "wchar")))


def _size(log: Path) -> int:
    try:
        return log.stat().st_size
    except OSError:
        return 0
