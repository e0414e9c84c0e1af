"""Cores, memory, /dev/shm, the limits of this user and of the control group, and the clock."""

import ctypes
import resource
import shutil
import time
from contextlib import suppress
from pathlib import Path

import psutil

from launcher.doctor.finding import FAIL, PASS, WARN, Check, Finding, check
from launcher.doctor.surroundings import Surroundings
from launcher.ending.memory import memory_left, memory_limit
from trainer import wording
from trainer.cores import count_cpus
from trainer.data.shared_memory import WAYS_OUT

_LEAST_SHM = 1 << 30
_LEAST_FILES, _GOOD_FILES = 1024, 65536
_LEAST_PROCESSES = 1024
_MEMORY_PER_WORKER = 2 << 30
_INFINIBAND = Path("/sys/class/infiniband")
_CGROUPS, _MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_TIME_ERROR = 5
_OLDEST = 1.75e9
"""A UNIX time that has passed: a clock before it is wrong."""


@check("cores")
def cores(here: Surroundings) -> Finding:
    """Cores for the workers and their data workers."""
    count, workers = count_cpus(), here.workers
    text = f"{wording.plural(count, 'core')} for {wording.plural(workers, 'worker')}"
    if count < workers:
        return Finding("cores", WARN, f"{text}: they will wait for each other", f"cluster.gpus_per_node={count}")
    asked = here.config.data.workers
    if asked is not None and asked * workers > 2 * count:
        return Finding(
            "cores", WARN, f"{text} with {asked} data workers each", f"data.workers={max(1, count // workers)}"
        )
    return Finding("cores", PASS, text)


@check("memory")
def memory(here: Surroundings) -> Finding:
    """Host memory, as this machine and its container allow."""
    limit, left = memory_limit(), memory_left()
    free = psutil.virtual_memory().available
    room = free if left is None else min(free, left)
    text = f"{wording.size(room)} available" + ("" if limit is None else f" (limit {wording.size(limit)})")
    workers = here.workers
    if room < workers * _MEMORY_PER_WORKER:
        for_whom = f"{text} for {wording.plural(workers, 'worker')}"
        return Finding("memory", WARN, for_whom, "cluster.gpus_per_node=1, fewer data.workers, or data.prefetch=1")
    return Finding("memory", PASS, text)


@check("/dev/shm")
def shared_memory(here: Surroundings) -> Finding:
    """Data workers hand their batches over in /dev/shm."""
    try:
        free = shutil.disk_usage("/dev/shm").free
    except FileNotFoundError:
        return Finding("/dev/shm", FAIL, "there is none", "sudo mount -t tmpfs -o mode=1777 tmpfs /dev/shm")
    if free < _LEAST_SHM and here.config.data.workers != 0:
        text = f"{wording.size(free)} free: too small for many data workers"
        return Finding("/dev/shm", WARN, text, WAYS_OUT)
    return Finding("/dev/shm", PASS, f"{wording.size(free)} free")


@check("open files")
def open_files(here: Surroundings) -> Finding:
    """Every worker and data worker needs some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return Finding("open files", PASS, "unlimited")
    if soft < _LEAST_FILES:
        may_raise = hard == resource.RLIM_INFINITY or hard >= _LEAST_FILES
        wanted = _GOOD_FILES if hard == resource.RLIM_INFINITY else min(hard, _GOOD_FILES)
        fix = (
            f"ulimit -n {wanted}" if may_raise else f"docker run --ulimit nofile={_GOOD_FILES}, or limits.conf as root"
        )
        return Finding("open files", WARN, f"at most {soft:,}", fix)
    return Finding("open files", PASS, f"at most {soft:,}")


@check("processes")
def processes(here: Surroundings) -> Finding:
    """Threads count, too; a container has a limit of its own."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    own, group = None if soft == resource.RLIM_INFINITY else soft, _pids_limit()
    most = min((limit for limit in (own, group) if limit is not None), default=None)
    if most is not None and most < _LEAST_PROCESSES:
        fix = "docker run --pids-limit=4096, or TasksMax= of the service" if most == group else "ulimit -u 4096"
        return Finding("processes", WARN, f"at most {most:,}, threads included", fix)
    return Finding("processes", PASS, "unlimited" if most is None else f"at most {most:,}")


@check("locked memory")
def locked_memory(here: Surroundings) -> Finding:
    """InfiniBand locks the buffers that it sends from."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    text = "unlimited" if soft == resource.RLIM_INFINITY else f"at most {wording.size(soft)}"
    if soft != resource.RLIM_INFINITY and _INFINIBAND.is_dir() and any(_INFINIBAND.iterdir()):
        return Finding(
            "locked memory", WARN, f"{text}, and there is InfiniBand: NCCL may fail on it", "ulimit -l unlimited"
        )
    return Finding("locked memory", PASS, text)


@check("clock")
def clock(here: Surroundings) -> Finding:
    """The machine's clock: attempts, logs and nodes are ordered by it."""
    if time.time() < _OLDEST:
        return Finding("clock", WARN, f"says {time.strftime('%Y-%m-%d %H:%M')}", "set it (chrony, NTP)")
    room = ctypes.create_string_buffer(512)
    # Asked with no change in mind: `modes`, its first field, is 0.
    synchronised = ctypes.CDLL(None).adjtimex(room) not in (-1, _TIME_ERROR)
    if synchronised:
        return Finding("clock", PASS, "synchronised")
    state = WARN if here.config.cluster.nodes > 1 else PASS
    return Finding("clock", state, "not known to be synchronised", "chrony or NTP on every node")


def _pids_limit() -> int | None:
    """The smallest of this process's control group and of those above it; None without one."""
    limits = []
    with suppress(OSError):
        for line in _MEMBERSHIP.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers not in ("", "pids"):
                continue
            group = _CGROUPS / controllers / path.lstrip("/")
            for folder in (group, *group.parents):
                with suppress(OSError, ValueError):
                    limits.append(int((folder / "pids.max").read_text()))
    return min(limits, default=None)


CHECKS: tuple[Check[Surroundings], ...] = (
    cores,
    memory,
    shared_memory,
    open_files,
    processes,
    locked_memory,
    clock,
)
