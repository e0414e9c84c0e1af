"""How many CPU cores this process may use: its affinity, cut by the quotas of its control groups."""

import math
import os
from collections.abc import Callable
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


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
