"""What the watch of one machine sees of its workers, in a form that agents can send. Pure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from launcher.hang.stacks import Frame, Stacks
from launcher.hang.waiting import is_in_backward, key, place, rests, waits_for_device, waits_for_others
from trainer.heartbeat import Phase

_LONGEST_SAID = 120
_SOURCE = re.compile(r"^\[[^]]*:\d+\] ")


@dataclass(frozen=True, slots=True)
class Below:
    """A process that a worker has started, as a DataLoader does.

    Attributes:
        pid: its number.
        stacks: where it was seen.
    """

    pid: int
    stacks: Stacks

    @property
    def is_at_rest(self) -> bool:
        """Whether it only waits for work."""
        return self.stacks.state not in "TD" and rests(self.stacks.started)

    @property
    def what(self) -> str:
        """What it does, in words."""
        where = place(self.stacks.started)
        if self.stacks.state == "T":
            return f"is stopped (SIGSTOP) in {where}"
        return "waits for work" if self.is_at_rest else f"is in {where}"


@dataclass(frozen=True, slots=True)
class Sighting:
    """What is known of one rank of a job that hangs.

    Attributes:
        rank: its global rank.
        stacks: where it was seen.
        host: the name of its machine.
        phase: what it is at; None of a program that does not tell.
        beats: its signs of life; None of a program that does not tell.
        step: the last step that it has taken; None where unknown.
        busy: whether it was computing.
        missing: whether it has not begun a collective that others have.
        gave_up: what it said before it ended for want of an answer; empty of one that is still there.
        ended: the exit code with which it had ended well before; None where it had not.
        below: its loading processes, of one that does not wait for others.
    """

    rank: int
    stacks: Stacks
    host: str = ""
    phase: Phase | None = None
    beats: int | None = None
    step: int | None = None
    busy: bool = False
    missing: bool = False
    gave_up: str = ""
    ended: int | None = None
    below: tuple[Below, ...] = ()

    @property
    def frames(self) -> tuple[Frame, ...]:
        """Where its main thread was, innermost call first."""
        return self.stacks.main

    @property
    def waits(self) -> bool:
        """Whether it waits for other ranks, or did so until it gave up."""
        idle_in_backward = not self.busy and is_in_backward(self.frames)
        return bool(self.gave_up) or waits_for_others(self.frames) or idle_in_backward

    @property
    def is_stopped(self) -> bool:
        """Whether it is the kernel that does not let it go on, by somebody's SIGSTOP."""
        return self.stacks.state == "T"

    @property
    def gets_on(self) -> bool:
        """Whether it may only be slow: it computes, and not in a wait, or the kernel serves it, as a slow disk does."""
        return self.stacks.state == "D" or (self.busy and not self.waits and not self.is_stopped)

    def what(self, *, of_many: bool = False) -> str:
        """What it does, in words; `of_many`: and others as well."""
        if self.ended is not None:
            return f"had ended with exit code {self.ended}"
        if self.gave_up:
            said = _SOURCE.sub("", self.gave_up.splitlines()[0])
            return f"gave up waiting: {said[:_LONGEST_SAID]}"
        if self.stacks.why_not and not self.is_stopped:
            return f"could not be looked into ({self.stacks.why_not})"
        where, be = place(self.frames), "are" if of_many else "is"
        if self.is_stopped:
            return f"{be} stopped (SIGSTOP)" + (f" in {where}" if self.frames else "")
        if self.waits:
            device = " for the device" if waits_for_device(self.frames) else ""
            return f"{'wait' if of_many else 'waits'}{device} in {where}"
        return f"{be} in {where}"


@dataclass(frozen=True, slots=True)
class Findings:
    """What one machine's watch has seen when workers fell silent or gave up waiting.

    Attributes:
        seen: the workers there.
        silent_s: for how long none of them had given a sign of life when that was found to be a hang; None: workers,
            here or elsewhere, have ended before.
    """

    seen: tuple[Sighting, ...]
    silent_s: float | None

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Findings":
        """What `dataclasses.asdict` and JSON have made of one."""
        return Findings(tuple(map(_sighting, values["seen"])), values["silent_s"])


def groups(seen: Sequence[Sighting]) -> list[list[Sighting]]:
    """The ranks by what they do, the largest group first."""
    found: dict[tuple[object, ...], list[Sighting]] = {}
    for one in seen:
        same = one.ended, bool(one.gave_up), one.is_stopped, one.waits, key(one.frames)
        found.setdefault(same, []).append(one)
    return sorted(found.values(), key=lambda group: -len(group))


def thinned(seen: Sequence[Sighting]) -> tuple[Sighting, ...]:
    """Without the other threads of ranks that are where another one is: a report has room for one's."""
    first = {group[0].rank for group in groups(seen)}
    return tuple(
        one if one.rank in first else replace(one, stacks=replace(one.stacks, threads=one.stacks.threads[:1]))
        for one in seen
    )


def _sighting(values: dict[str, Any]) -> Sighting:
    given: dict[str, Any] = {**values, "stacks": Stacks.from_json(values["stacks"])}
    given["phase"] = None if given["phase"] is None else Phase(given["phase"])
    given["below"] = tuple(Below(one["pid"], Stacks.from_json(one["stacks"])) for one in given["below"])
    return Sighting(**given)
