"""Host memory as the control groups of this process tell it: its limit, and whether the kernel has killed for it."""

from dataclasses import dataclass
from pathlib import Path

from trainer import wording

_ROOT = Path("/sys/fs/cgroup")
_PROC = Path("/proc")
_NO_LIMIT = 1 << 60


@dataclass(frozen=True, slots=True)
class Kills:
    """How often the kernel has ended a process for want of memory.

    Attributes:
        here: in this process's control group.
        anywhere: on this machine, in other groups too.
    """

    here: int
    anywhere: int


def count_kills(root: Path = _ROOT, proc: Path = _PROC) -> Kills:
    """The counts until now; what cannot be read counts as none.

    Args:
        root: where the control groups are mounted.
        proc: where the kernel's files are.
    """
    here = 0
    for folder in _groups(root, proc)[:1]:
        here = _field(folder / "memory.events", "oom_kill") + _field(folder / "memory.oom_control", "oom_kill")
    return Kills(here, _field(proc / "vmstat", "oom_kill"))


def meaning(
    before: Kills, after: Kills, limit_bytes: int | None, *, rank: int | None = None, peak_bytes: int | None = None
) -> str:
    """What a SIGKILL between the two counts means; empty where the kernel had nothing to do with it.

    Args:
        before: when the attempt began.
        after: now.
        limit_bytes: the control group's; None without one.
        rank: who was killed.
        peak_bytes: the most memory that it had resident, where that is known.
    """
    held = "" if peak_bytes is None else f"; rank {rank} held up to {wording.size(peak_bytes)}"
    if after.here > before.here:
        limit = "its limit" if limit_bytes is None else f"the limit of {wording.size(limit_bytes)}"
        return f"OOM-killed: the kernel ended it, since this job's memory had reached {limit}{held}"
    if after.anywhere > before.anywhere:
        return f"most likely OOM-killed: the kernel ended a process, since this machine had run out of memory{held}"
    return ""


def memory_limit(root: Path = _ROOT, proc: Path = _PROC) -> int | None:
    """The smallest limit in bytes from this process's control group up to the root; None without one."""
    limits = []
    for folder in _groups(root, proc):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _read(folder / name).strip()
            # Version 1 says "none" with a number near 2^63.
            if text.isdigit() and int(text) < _NO_LIMIT:
                limits.append(int(text))
    return min(limits, default=None)


def memory_left(root: Path = _ROOT, proc: Path = _PROC) -> int | None:
    """Bytes until one of those limits is reached, where what the kernel would give back is free; None without one."""
    left = []
    for folder in _groups(root, proc):
        for limit, used, freed in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            most, taken = _read(folder / limit).strip(), _read(folder / used).strip()
            if most.isdigit() and taken.isdigit() and int(most) < _NO_LIMIT:
                left.append(max(0, int(most) - int(taken) + _field(folder / "memory.stat", freed)))
    return min(left, default=None)


def _groups(root: Path, proc: Path) -> list[Path]:
    """The folders of this process's memory group and of those above it, its own first."""
    for line in sorted(_read(proc / "self" / "cgroup").splitlines(), key=lambda line: ":memory:" not in line):
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            mount = root / controllers
            group = mount / path.lstrip("/")
            return [folder for folder in (group, *group.parents) if folder.is_relative_to(mount)]
    return []


def _field(file: Path, name: str) -> int:
    words = (line.split() for line in _read(file).splitlines())
    return next((int(found[1]) for found in words if len(found) == 2 and found[0] == name), 0)


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
