"""Which rank of a silent job is the cause: ranks at the same place are grouped, and who is elsewhere is named. Pure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from launcher.ending.folding import spans
from launcher.hang.stacks import Frame, Stacks
from launcher.hang.waiting import is_in_backward, key, place, waits_for_others
from launcher.hang.watchdog import Silence
from launcher.verdict import HANG, Exit
from trainer import wording
from trainer.heartbeat import Phase
from trainer.trouble.frames import is_theirs

_GRANTED = "where that may take so long: cluster.hang_timeout=30m, or 0 for no watch"
_SHOWN_GROUPS = 3
_LONGEST_SAID = 120
_SOURCE = re.compile(r"^\[[^]]*:\d+\] ")


@dataclass(frozen=True, slots=True)
class Sighting:
    """What is known of one rank of a job that hangs.

    Attributes:
        rank: its global rank.
        stacks: where it was seen.
        beats: its signs of life; None of a program that does not tell.
        step: the last step that it has taken; None where unknown.
        busy: whether it was computing.
        missing: whether it has not begun a collective that others have.
        gave_up: what it said before it ended for want of an answer; empty of one that is still there.
        ended: whether it had ended well before.
    """

    rank: int
    stacks: Stacks
    beats: int | None = None
    step: int | None = None
    busy: bool = False
    missing: bool = False
    gave_up: str = ""
    ended: bool = False

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

    def what(self, *, of_many: bool = False) -> str:
        """What it does, in words; `of_many`: and others as well."""
        if self.ended:
            return "had ended with exit code 0"
        if self.gave_up:
            said = _SOURCE.sub("", self.gave_up.splitlines()[0])
            return f"gave up waiting: {said[:_LONGEST_SAID]}"
        if self.stacks.why_not and not self.is_stopped:
            return f"could not be looked into ({self.stacks.why_not})"
        where, be = place(self.frames), "are" if of_many else "is"
        if self.is_stopped:
            return f"{be} stopped (SIGSTOP)" + (f" in {where}" if self.frames else "")
        if self.waits:
            return f"{'wait' if of_many else 'waits'} in {where}"
        return f"{be} in {where}"


def culprits(seen: Sequence[Sighting]) -> list[int]:
    """The ranks for which the others wait; empty where that cannot be told.

    By the surest sign that sets some apart: ended; stopped; a collective that they have not begun; fewer signs of life;
    not waiting for others while the rest does; at another place than most; computing.
    """
    beats = [one.beats for one in seen if one.beats is not None and not one.gave_up]
    most = max(beats, default=0)
    sizes = {group[0].rank: len(group) for group in groups(seen)}
    largest = max(sizes.values(), default=0)
    by_place = {one.rank: sizes[group[0].rank] < largest for group in groups(seen) for one in group}
    tests = (
        [one.ended for one in seen],
        [one.is_stopped for one in seen],
        [one.missing for one in seen],
        [one.beats is not None and not one.gave_up and one.beats < most for one in seen],
        [not one.waits for one in seen],
        [by_place[one.rank] for one in seen],
        [one.busy for one in seen],
    )
    for test in tests:
        if any(test) and not all(test):
            return [one.rank for one, apart in zip(seen, test, strict=True) if apart]
    return [] if any(one.waits for one in seen) else [one.rank for one in seen]


def groups(seen: Sequence[Sighting]) -> list[list[Sighting]]:
    """The ranks by what they do, the largest group first."""
    found: dict[tuple[object, ...], list[Sighting]] = {}
    for one in seen:
        same = one.ended, bool(one.gave_up), one.is_stopped, one.waits, key(one.frames)
        found.setdefault(same, []).append(one)
    return sorted(found.values(), key=lambda group: -len(group))


def judge(
    seen: Sequence[Sighting], silence: Silence | None, *, now: float, host: str, stacks: str, collectives: str = ""
) -> Exit:
    """The hang as the end of the rank that is its cause.

    Args:
        seen: the ranks of this machine.
        silence: how nothing has gone on; None: a rank gave up waiting.
        now: UNIX seconds.
        host: the name of this machine.
        stacks: the file that has everybody's stacks.
        collectives: what sets ranks apart in the collectives that they have begun, in words, where that is known.
    """
    named = culprits(seen)
    one = next(one for one in seen if one.rank in named or not named)
    in_order = sorted(groups(seen), key=lambda group: not any(member.rank in named for member in group))
    lines = [_line(group) for group in in_order]
    more = [f"and {len(lines) - _SHOWN_GROUPS} more, see the stacks"] if len(lines) > _SHOWN_GROUPS else []
    meaning, advice = _explain(one, named, seen)
    python = [frame for frame in one.frames if not frame.is_native]
    own = next((frame for frame in python if is_theirs(frame.file)), next(iter(python), None))
    return Exit(
        one.rank,
        HANG,
        host=host,
        time=now,
        type="Hang",
        message="\n".join([_headline(one, named, silence), *lines[:_SHOWN_GROUPS], *more]),
        traceback=_text(one.frames),
        place=f"{own.file}:{own.line} in {own.function}" if own and not one.waits else "",
        meaning=f"{meaning}; {collectives}" if collectives else meaning,
        advice=advice,
        stacks=stacks,
        is_vague=not named,
    )


def report(seen: Sequence[Sighting]) -> str:
    """Everybody's stacks for a file: the ranks at the same place once, with all their threads."""
    parts = []
    for group in groups(seen):
        one = group[0]
        parts.append(f"{_line(group)}\n")
        for number, thread in enumerate(one.stacks.threads):
            frames = thread.frames if number else one.frames
            parts.append(f"  thread {thread.name or number}, innermost call first\n{_text(frames, '    ')}")
    return "\n".join(parts)


def _line(group: Sequence[Sighting]) -> str:
    return f"{spans([one.rank for one in group])}: {group[0].what(of_many=len(group) > 1)}"


def _headline(one: Sighting, named: Sequence[int], silence: Silence | None) -> str:
    who = spans(named) if named else "all ranks"
    hang = "hangs" if len(named) == 1 else "hang"
    if silence is None:
        return f"{who} {'has' if len(named) == 1 else 'have'} not answered in time"
    phase, past = silence.phases.get(one.rank), wording.duration(silence.seconds)
    after = f" after step {one.step:,}" if one.step else ""
    missing = {
        None: "no output and no work",
        Phase.START: "no output and no work at the start",
        Phase.STEP: f"no step{after}",
        Phase.EVALUATION: f"nothing new in the evaluation{after}",
        Phase.CHECKPOINT: f"nothing new in saving{after}",
        Phase.END: "no output and no work at the end",
    }
    return f"{who} {hang}: {missing[phase]} for {past}"


def _explain(one: Sighting, named: Sequence[int], seen: Sequence[Sighting]) -> tuple[str, str]:
    """(meaning, advice)."""
    others = [other for other in seen if other.rank not in named]
    waiting = [other.rank for other in others if other.waits]
    wait = f"{spans(waiting)} {'wait' if len(waiting) > 1 else 'waits'} for it" if waiting else ""
    if not named:
        meaning = "every rank waits for the others: not all have reached the same collectives, or a device hangs"
        return meaning, "all ranks must reach the same collectives in the same order; the stacks have everybody's place"
    if one.ended:
        return "it ended while others had work to share", "all ranks must take the same number of steps"
    if one.is_stopped:
        meaning = "somebody, or a batch system, has stopped the process with SIGSTOP"
        return f"{meaning}; {wait}" if wait else meaning, "kill -CONT lets a stopped process go on, while it is there"
    if one.stacks.state == "D":
        meaning = "the kernel waits for a device: a disk, a network file system, a GPU's driver"
        return f"{meaning}; {wait}" if wait else meaning, f"see to that device; {_GRANTED}"
    if one.waits:
        return (
            f"it waits in another collective than {spans([other.rank for other in others])}",
            "all ranks must reach the same collectives in the same order",
        )
    return wait or "it does not come back from there", f"see what it does there; {_GRANTED}"


def _text(frames: Sequence[Frame], indent: str = "") -> str:
    return "".join(f"{indent}{frame.function} ({_where(frame)})\n" for frame in frames)


def _where(frame: Frame) -> str:
    return frame.file.rpartition("/")[2] if frame.is_native else f"{frame.file}:{frame.line}"
