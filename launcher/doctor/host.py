"""Cores, memory, /dev/shm, the limits of this user and of the control group, and the clock."""

import ctypes
import resource
import shutil
import time
from contextlib import suppress
from pathlib import Path

import psutil

from launcher.doctor.finding import PASS, WARN, Check, Finding
from launcher.doctor.surroundings import Surroundings
from launcher.ending.memory import memory_limit
from trainer import wording
from trainer.cores import count_cpus
from trainer.data.shared_memory import WAYS_OUT

_LEAST_SHM = 1 << 30
_LEAST_FILES = 4096
_LEAST_PROCESSES = 1024
_MEMORY_PER_WORKER = 2 << 30
_INFINIBAND = Path("/sys/class/infiniband")
_CGROUPS = Path("/sys/fs/cgroup")
_TIME_ERROR = 5
_OLDEST = 1.75e9
"""A UNIX time that has passed: a clock before it is wrong."""


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


def memory(here: Surroundings) -> Finding:
    """Host memory, as this machine and its container allow."""
    free, limit = psutil.virtual_memory().available, memory_limit()
    room = free if limit is None else min(free, limit)
    text = f"{wording.size(room)} available" + ("" if limit is None else f" (limit {wording.size(limit)})")
    workers = here.workers
    if room < workers * _MEMORY_PER_WORKER:
        return Finding("memory", WARN, f"{text} for {workers} workers", "fewer data.workers, a smaller data.prefetch")
    return Finding("memory", PASS, text)


def shared_memory(here: Surroundings) -> Finding:
    """Data workers hand their batches over in /dev/shm."""
    free = shutil.disk_usage("/dev/shm").free
    if free < _LEAST_SHM:
        text = f"{wording.size(free)} free: too small for many data workers"
        return Finding("/dev/shm", WARN, text, WAYS_OUT)
    return Finding("/dev/shm", PASS, f"{wording.size(free)} free")


def open_files(here: Surroundings) -> Finding:
    """Every worker and data worker needs some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _LEAST_FILES:
        most = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
        return Finding(
            "open files",
            WARN,
            f"at most {soft:,}",
            f"ulimit -n {min(hard, 65536) if hard > 0 else 65536} (the hard limit is {most})",
        )
    return Finding("open files", PASS, f"at most {soft:,}")


def processes(here: Surroundings) -> Finding:
    """Threads count, too; a container has a limit of its own."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    limits = [] if soft == resource.RLIM_INFINITY else [soft]
    for folder in _CGROUPS, _CGROUPS / "pids":
        with suppress(OSError, ValueError):
            limits.append(int((folder / "pids.max").read_text()))
    most = min(limits, default=None)
    if most is not None and most < _LEAST_PROCESSES:
        return Finding("processes", WARN, f"at most {most:,}", "ulimit -u 4096, docker run --pids-limit=4096")
    return Finding("processes", PASS, "unlimited" if most is None else f"at most {most:,}")


def locked_memory(here: Surroundings) -> Finding:
    """InfiniBand locks the buffers that it sends from."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    text = "unlimited" if soft == resource.RLIM_INFINITY else f"at most {wording.size(soft)}"
    if soft != resource.RLIM_INFINITY and _INFINIBAND.is_dir() and any(_INFINIBAND.iterdir()):
        return Finding(
            "locked memory", WARN, f"{text}, and there is InfiniBand: NCCL may fail on it", "ulimit -l unlimited"
        )
    return Finding("locked memory", PASS, text)


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


CHECKS: tuple[Check[Surroundings], ...] = (
    cores,
    memory,
    shared_memory,
    open_files,
    processes,
    locked_memory,
    clock,
)
