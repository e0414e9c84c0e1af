"""How many CPU cores this process may use: its affinity, cut by the quotas of its control groups."""

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path

MOST_LOADING = 8
"""Loading processes of a worker, where nobody asks for more."""

_ROOT = Path("/sys/fs/cgroup")


def from_list(text: str) -> set[int]:
    """Cores as the kernel lists them: 0-3,8."""
    ends = [part.partition("-")[::2] for part in text.strip().split(",") if part]
    return {core for first, last in ends for core in range(int(first), int(last or first) + 1)}


def as_list(cores: Iterable[int]) -> str:
    """The inverse of `from_list`."""
    runs = [[core for _, core in run] for _, run in groupby(enumerate(sorted(cores)), lambda pair: pair[1] - pair[0])]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def allowed() -> str:
    """The cores that this process may run on."""
    return as_list(os.sched_getaffinity(0))


def per_worker(mine: str, everyones: Sequence[str], quota: float | None = None) -> int:
    """Cores that a worker has to itself, at least 0, where those that share cores divide them evenly.

    Args:
        mine: the cores that it may run on.
        everyones: those of each worker of its machine, it among them.
        quota: cores that all of them may keep busy; None: no limit.
    """
    users = Counter[int]()
    for cores, count in Counter(everyones).items():
        users.update(dict.fromkeys(from_list(cores), count))
    # A thousandth, since thirds do not add up.
    own = math.floor(sum(1 / users[core] for core in from_list(mine)) + 1e-3)
    return own if quota is None else min(own, math.ceil(quota) // len(everyones))


def count_cpus() -> int:
    """Cores this process may keep busy, at least 1: the smaller of its affinity and its container's quota."""
    affinity = len(os.sched_getaffinity(0))
    quota = cgroup_quota()
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


def cgroup_quota(root: Path = _ROOT, membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """The CPU quota in cores, the smallest from this process's control group up to the root; None: no limit.

    Args:
        root: where the control groups are mounted.
        membership: the file that says which groups this process is in.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    quotas: list[float] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            quotas += _along(root, path, _quota_v2)
        elif "cpu" in controllers.split(","):
            quotas += _along(root / "cpu", path, _quota_v1)
    return min(quotas, default=None)


def _along(mount: Path, path: str, read: Callable[[Path], float | None]) -> list[float]:
    group = mount / path.lstrip("/")
    found = [read(folder) for folder in (group, *group.parents) if folder.is_relative_to(mount)]
    return [cores for cores in found if cores is not None]


def _quota_v2(folder: Path) -> float | None:
    words = _words(folder / "cpu.max")
    return int(words[0]) / int(words[1]) if len(words) == 2 and words[0] != "max" else None


def _quota_v1(folder: Path) -> float | None:
    quota, period = _words(folder / "cpu.cfs_quota_us"), _words(folder / "cpu.cfs_period_us")
    return int(quota[0]) / int(period[0]) if quota and period and int(quota[0]) > 0 else None


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []
