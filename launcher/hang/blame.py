"""Which rank of a silent job is the cause: ranks at the same place are grouped, and who is elsewhere is named. Pure."""

from collections.abc import Sequence

from launcher.ending.folding import spans
from launcher.hang.sighting import Below, Sighting, groups
from launcher.hang.stacks import Frame
from launcher.hang.waiting import waits_for_device
from launcher.verdict import HANG, Exit
from trainer import wording
from trainer.heartbeat import Phase
from trainer.trouble.frames import is_theirs

_GRANTED = "where that may take so long: cluster.hang_timeout=30m, or 0 for no watch"
_SHOWN_LINES = 3


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
        [one.ended is not None for one in seen],
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


def judge(seen: Sequence[Sighting], silent_s: float | None, *, now: float, stacks: str, collectives: str = "") -> Exit:
    """The hang as the end of the rank that is its cause.

    Args:
        seen: the job's ranks.
        silent_s: how long nothing has gone on; None: a rank gave up waiting.
        now: UNIX seconds.
        stacks: the file that has everybody's stacks.
        collectives: what sets ranks apart in the collectives that they have begun, in words, where that is known.
    """
    named = culprits(seen)
    one = next(one for one in seen if one.rank in named or not named)
    in_order = sorted(groups(seen), key=lambda group: not any(member.rank in named for member in group))
    first, *others = map(_line, in_order)
    lines = [first, *_lines_below(one.below), *others]
    if len(lines) > _SHOWN_LINES:
        lines[_SHOWN_LINES - 1 :] = [f"and {len(lines) - _SHOWN_LINES + 1} more, see the stacks"]
    meaning, advice = _explain(one, named, seen)
    return Exit(
        one.rank,
        HANG,
        host=one.host,
        time=now,
        type="Hang",
        message="\n".join([_headline(one, named, silent_s), *lines]),
        traceback=_text(one.frames),
        place="" if one.waits else _own_place(one),
        meaning=f"{meaning}; {collectives}" if collectives else meaning,
        advice=advice,
        stacks=stacks,
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
        for member in group:
            for below in member.below:
                heading = f"  process {below.pid}, started by rank {member.rank}, {below.what}"
                parts.append(f"{heading}\n{_text(below.stacks.started, '    ')}")
    return "\n".join(parts)


def _line(group: Sequence[Sighting]) -> str:
    return f"{spans([one.rank for one in group])}: {group[0].what(of_many=len(group) > 1)}"


def _lines_below(below: Sequence[Below]) -> list[str]:
    """What the processes that a rank has started are at, in a line: those that do not only wait for work."""
    at_work = sorted((one for one in below if not one.is_at_rest), key=lambda one: one.stacks.state not in "TD")
    if at_work:
        more = f", and {len(below) - 1} more, see the stacks" if len(below) > 1 else ""
        return [f"    its process {at_work[0].pid} {at_work[0].what}{more}"]
    return [f"    its loading processes ({len(below)}) wait for work"] if below else []


def _own_place(one: Sighting) -> str:
    """Where in the user's own code a rank is, or what it waits for below it."""
    at_work = [frame for below in one.below if not below.is_at_rest for frame in below.stacks.started]
    python = [frame for frame in one.frames if not frame.is_native]
    theirs = (frame for frame in (*at_work, *python) if is_theirs(frame.file))
    own = next(theirs, next(iter(python), None))
    return f"{own.file}:{own.line} in {own.function}" if own else ""


def _headline(one: Sighting, named: Sequence[int], silent_s: float | None) -> str:
    who = spans(named) if named else "all ranks"
    hang = "hangs" if len(named) == 1 else "hang"
    if silent_s is None:
        return f"{who} {'has' if len(named) == 1 else 'have'} not answered in time"
    after = f" after step {one.step:,}" if one.step else ""
    missing = {
        None: "no output and no work",
        Phase.START: "no output and no work at the start",
        Phase.STEP: f"no step{after}",
        Phase.EVALUATION: f"nothing new in the evaluation{after}",
        Phase.CHECKPOINT: f"nothing new in saving{after}",
        Phase.END: "no output and no work at the end",
    }
    return f"{who} {hang}: {missing[one.phase]} for {wording.duration(silent_s)}"


def _explain(one: Sighting, named: Sequence[int], seen: Sequence[Sighting]) -> tuple[str, str]:
    """(meaning, advice)."""
    others = [other for other in seen if other.rank not in named]
    waiting = [other.rank for other in others if other.waits]
    wait = f"{spans(waiting)} {'wait' if len(waiting) > 1 else 'waits'} for it" if waiting else ""
    if not named:
        meaning = "every rank waits for the others: not all have reached the same collectives, or a device hangs"
        return meaning, "all ranks must reach the same collectives in the same order; the stacks have everybody's place"
    if one.ended is not None:
        return "it ended while others had work to share", "all ranks must take the same number of steps"
    if one.is_stopped:
        meaning = "somebody, or a batch system, has stopped the process with SIGSTOP"
        return f"{meaning}; {wait}" if wait else meaning, "kill -CONT lets a stopped process go on, while it is there"
    if one.stacks.state == "D":
        meaning = "the kernel waits for a device: a disk, a network file system, a GPU's driver"
        return f"{meaning}; {wait}" if wait else meaning, f"see to that device; {_GRANTED}"
    if waits_for_device(one.frames):
        what = "what its device was given to do does not end: a collective that others did not reach, or a kernel"
        return what, "the stacks have everybody's place"
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
