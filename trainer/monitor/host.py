"""Host figures: processor, memory, disk, network and shared memory, through psutil and the cgroup files."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

Report = Callable[[str, str], None]
"""Called with what could not be read and why."""

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_SHARED_MEMORY = "/dev/shm"

# Looking for new child processes reads all of /proc; workers and their data loaders come and go rarely.
_TREE_REFRESH_S = 10.0


class Host:
    """This machine, and this job's processes on it.

    To be made and sampled in one thread: psutil keeps the last processor times per thread.

    Args:
        report: told once for every kind of failure.
        root_pid: the process whose tree is the job's; by default the parent when it started several workers,
            else this process.
        clock: seconds, steadily rising.
    """

    def __init__(
        self, report: Report, *, root_pid: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._report = report
        self._clock = clock
        self._told: set[str] = set()
        self._rates = _Rates(clock)
        self._root_pid = root_pid if root_pid is not None else _job_root()
        self._cpu_count = _cores_of(self._root_pid)
        self._tree: dict[int, psutil.Process] = {}
        self._tree_until = float("-inf")
        self._cpu_seconds: dict[int, float] = {}
        self._cpu_time = clock()
        self._cgroup = memory_cgroup(Path("/proc/self/cgroup"), _CGROUP_ROOT)
        self._parts: dict[str, Callable[[], dict[str, float]]] = {
            "cpu": self._cpu,
            "processes": self._processes,
            "memory": self._memory,
            "disk": self._disk,
            "network": self._network,
            "shared memory": self._shared_memory,
        }
        self._is_marked = False

    def sample(self) -> dict[str, float]:
        """Reads every figure once; rates are since the last sample, so the first one has none.

        Returns:
            `host/` and `cpu_percent` (0-100, of all cores together), `cpu_count` (cores that the job may use),
            `job_cpu_percent` (100 is one core), `memory_used_bytes` and `memory_total_bytes` (the
            cgroup's where its limit is lower), `disk_read_bytes_per_second`, `disk_write_bytes_per_second`,
            `network_received_bytes_per_second`, `network_sent_bytes_per_second` (all interfaces but
            loopback), `shm_used_bytes`, `shm_total_bytes`. What cannot be read is absent.
        """
        figures: dict[str, float] = {}
        for name in self._parts:
            figures.update(self._read(name))
        return {f"host/{name}": value for name, value in figures.items()}

    def _read(self, name: str) -> dict[str, float]:
        try:
            return self._parts[name]()
        except (OSError, ValueError, RuntimeError, psutil.Error) as error:
            if name not in self._told:
                self._told.add(name)
                self._report(f"host {name}", f"{type(error).__name__}: {error}")
            return {}

    def _cpu(self) -> dict[str, float]:
        # The first call only sets the mark that the next one counts from.
        percent, is_first, self._is_marked = psutil.cpu_percent(), not self._is_marked, True
        return {**({} if is_first else {"cpu_percent": percent}), "cpu_count": self._cpu_count}

    def _processes(self) -> dict[str, float]:
        now = self._clock()
        if now >= self._tree_until:
            self._refresh_tree()
            self._tree_until = now + _TREE_REFRESH_S
        seconds: dict[int, float] = {}
        for pid, process in list(self._tree.items()):
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                del self._tree[pid]
                continue
            seconds[pid] = times.user + times.system
        before, self._cpu_seconds = self._cpu_seconds, seconds
        elapsed, self._cpu_time = now - self._cpu_time, now
        if not before or elapsed <= 0:
            return {}
        # A process that is new in the tree has no mark to count from; it counts from the next sample on.
        spent = sum(value - before[pid] for pid, value in seconds.items() if pid in before)
        return {"job_cpu_percent": round(100 * spent / elapsed, 1)}

    def _refresh_tree(self) -> None:
        root = psutil.Process(self._root_pid)
        found = {p.pid: p for p in [root, *root.children(recursive=True)]}
        self._tree = {pid: self._tree.get(pid, process) for pid, process in found.items()}

    def _memory(self) -> dict[str, float]:
        machine = psutil.virtual_memory()
        used, total = machine.total - machine.available, machine.total
        if self._cgroup is not None:
            limit = _number(self._cgroup / "memory.max")
            if limit is not None and limit < total:
                used, total = _cgroup_used(self._cgroup), limit
        return {"memory_used_bytes": used, "memory_total_bytes": total}

    def _disk(self) -> dict[str, float]:
        # None in containers and on machines without a disk of their own.
        counters = psutil.disk_io_counters()
        if counters is None:
            return {}
        totals = {"disk_read_bytes": counters.read_bytes, "disk_write_bytes": counters.write_bytes}
        return self._rates.since_last("disk", totals)

    def _network(self) -> dict[str, float]:
        links = [link for name, link in psutil.net_io_counters(pernic=True).items() if name != "lo"]
        totals = {
            "network_received_bytes": sum(link.bytes_recv for link in links),
            "network_sent_bytes": sum(link.bytes_sent for link in links),
        }
        return self._rates.since_last("network", totals)

    def _shared_memory(self) -> dict[str, float]:
        usage = shutil.disk_usage(_SHARED_MEMORY)
        return {"shm_used_bytes": usage.used, "shm_total_bytes": usage.total}


def _cores_of(root_pid: int) -> int:
    """Cores of a job, of which this worker may be bound to some."""
    try:
        return len(os.sched_getaffinity(root_pid))
    except OSError:
        return len(os.sched_getaffinity(0))


class _Rates:
    """Turns counters that only rise into amounts per second."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: dict[str, tuple[float, dict[str, int]]] = {}

    def since_last(self, group: str, totals: dict[str, int]) -> dict[str, float]:
        """The rates since the last call for this group; empty for the first."""
        now = self._clock()
        last = self._last.get(group)
        self._last[group] = (now, totals)
        if last is None or now <= last[0]:
            return {}
        elapsed = now - last[0]
        # A counter that fell was reset, with a device that went away.
        return {f"{name}_per_second": round(max(0, value - last[1][name]) / elapsed) for name, value in totals.items()}


def memory_cgroup(membership: Path, root: Path) -> Path | None:
    """The cgroup (version 2) with the lowest memory limit among a process's own and its parents.

    Args:
        membership: the process's /proc/.../cgroup.
        root: where the hierarchy is mounted.

    Returns:
        Its directory, or None where no limit is set or the files cannot be read.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    own = next((line.removeprefix("0::").lstrip("/") for line in lines if line.startswith("0::")), None)
    if own is None:
        return None
    # A container sees its own cgroup as the root, whatever path the file names.
    places = [place for place in [root / own, *(root / own).parents] if place.is_relative_to(root)]
    limits = [(limit, place) for place in places if (limit := _number(place / "memory.max")) is not None]
    return min(limits, key=lambda pair: pair[0])[1] if limits else None


def _cgroup_used(cgroup: Path) -> int:
    """Memory of a cgroup without the file cache that the kernel would give back at once."""
    used = _number(cgroup / "memory.current") or 0
    for line in (cgroup / "memory.stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == "inactive_file":
            return max(0, used - int(value))
    return used


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _job_root() -> int:
    several: Any = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return os.getppid() if several.isdigit() and int(several) > 1 else os.getpid()
