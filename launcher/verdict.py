"""How a job ended: of all workers' exits the one that came first, and the exit code. Pure."""

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from launcher.stop import STOP_SIGNALS
from trainer.errors import STOPPED, ConfigError, UnfitError
from trainer.trouble import meaning, peers
from trainer.trouble.words import shortened

HANG = 124
"""The exit code of a job that hung and was ended."""

_KEPT = (2, 3, STOPPED, HANG)
_WIDEST = 400

# What a worker may say, too, when another one has gone; it can also be an error of its own.
_LIKELY_ECHO = re.compile(
    r"Connection (closed|reset|refused)|gloo/transport"
    r"|NCCL (error|communicator)|Socket(Timeout)? ?(error|closed)|failed to (recv|send)|recvValue"
    r"|ProcessGroup(NCCL|Gloo).*(abort|timed? ?out)",
    re.IGNORECASE,
)
_ECHO_TYPES = ("DistBackendError", "DistNetworkError", "DistStoreError")


@dataclass(frozen=True, slots=True)
class Exit:
    """How one worker ended.

    Attributes:
        rank: its global rank.
        code: exit status; negative: the signal that ended it.
        host: the name of its machine; empty where nobody has said.
        time: UNIX seconds at which its exception reached the top; None if it could not say.
        type: the exception's type, empty without one.
        message: the exception's text.
        traceback: as Python prints it.
        place: `file:line in function`, the innermost in the user's own code.
        advice: what to try, where the exception says so.
        override: with which the same command works, where the exception knows one.
        meaning: what the end means, where more is known than its signal says.
        stacks: the file with the stacks of all ranks, of one that hung; else empty.
    """

    rank: int
    code: int
    host: str = ""
    time: float | None = None
    type: str = ""
    message: str = ""
    traceback: str = ""
    place: str = ""
    advice: str = ""
    override: str = ""
    meaning: str = ""
    stacks: str = ""

    @property
    def is_silence(self) -> bool:
        """Whether it says that another worker did not answer: the first sign of one that hangs."""
        return (self.code > 0 or self.is_abort) and self.code != HANG and peers.is_silent(self.message)

    @property
    def is_echo(self) -> bool:
        """Whether this looks like the consequence of another worker's end."""
        if self.is_silence or self.code == HANG or (self.code < 0 and not self.is_abort):
            return False
        return self.type in _ECHO_TYPES or speaks_of_peers(self.message)

    @property
    def is_abort(self) -> bool:
        """Whether native code gave up; NCCL's watchdog does that to a process whose peers have gone or are silent."""
        return self.code == -signal.SIGABRT

    @property
    def is_untold(self) -> bool:
        """Whether nothing is known but the exit code."""
        return (self.code > 0 or self.is_abort) and not self.type

    @property
    def what(self) -> str:
        """The exception's type, or the signal, or the exit code, in words."""
        if self.code < 0:
            return f"killed by {signal_name(-self.code)}"
        return self.type or f"exit code {self.code}"


def speaks_of_peers(text: str) -> bool:
    """Whether words may come from a worker that has lost others."""
    return _LIKELY_ECHO.search(text) is not None or peers.is_gone(text) or peers.is_silent(text)


def first_failure(exits: Sequence[Exit]) -> Exit | None:
    """The failure that caused the others; None when nobody failed.

    The earliest that is a worker's own; without one, the earliest of those that say that another worker does not
    answer; then echoes of an end.
    """
    # A worker that left no time behind did not get to notice another one's end either.
    return min(
        filter(is_failure, exits),
        key=lambda exit: (exit.is_echo, exit.is_silence, exit.is_untold, exit.time or 0.0, exit.rank),
        default=None,
    )


def as_rank_zero_says(exits: Sequence[Exit], first: Exit) -> Exit:
    """The first failure, by rank 0 where that says the same: what all ranks find out together it has told already."""
    told = (first.code, first.type, first.message)
    same = (exit for exit in exits if exit.rank == 0 and exit.type and (exit.code, exit.type, exit.message) == told)
    return next(same, first)


def is_failure(exit: Exit) -> bool:
    """Whether a worker did not end well."""
    return exit.code not in (0, STOPPED)


def would_come_again(exit: Exit) -> bool:
    """Whether another attempt would meet this error at the same place: an exception of the program's own."""
    if exit.code != 1 or exit.type in ("", "SystemExit", "KeyboardInterrupt") or exit.is_echo or exit.is_silence:
        return False
    return not meaning.may_pass(exit.type, exit.message)


def not_asked_for(exits: Sequence[Exit], killed: Sequence[int] = ()) -> list[Exit]:
    """The exits that a request to stop does not explain: exceptions of a worker's own, and crashes.

    Args:
        exits: how workers ended after they were asked to stop.
        killed: ranks that were ended by force, since they did not stop in time.
    """
    return [exit for exit in exits if exit.rank not in killed and not _is_as_asked(exit)]


def _is_as_asked(exit: Exit) -> bool:
    if exit.is_abort:
        # One whose peers have stopped may be aborted for that: what it said before decides.
        return _is_as_asked(replace(exit, code=1))
    if exit.code < 0:
        return -exit.code in STOP_SIGNALS
    by_itself = exit.code in (0, STOPPED) or exit.type in ("", "SystemExit", "KeyboardInterrupt")
    return by_itself or exit.is_echo or exit.is_silence


def with_early_end(exits: Sequence[Exit], early: Sequence[int]) -> list[Exit]:
    """The exits, with the true cause where workers only failed because others had ended before them, and well.

    Args:
        exits: how the workers ended.
        early: ranks that had ended well before the first failure, without having been asked to.
    """
    echo = first_failure(exits)
    if echo is None or not (echo.is_echo or echo.is_silence) or not early:
        return list(exits)
    ranks = f"rank{'s' if len(early) > 1 else ''} {', '.join(map(str, sorted(early)))}"
    codes = " and ".join(map(str, sorted({exit.code for exit in exits if exit.rank in early} or {0})))
    cause = Exit(
        min(early),
        1,
        host=next((exit.host for exit in exits if exit.rank == min(early)), ""),
        time=0.0,
        type="EarlyExit",
        message=f"{ranks} ended with exit code {codes} while rank {echo.rank} still had work to share",
        advice="all ranks must take the same number of steps and reach the same collectives",
    )
    return [cause, *(exit for exit in exits if exit.rank != cause.rank)]


def exit_code(exits: Sequence[Exit], stopped_by: int | None = None) -> int:
    """The job's exit code (DESIGN's table).

    Args:
        exits: of the workers; after a failure without those that the agent ended because of it.
        stopped_by: the signal by which the job was asked to stop.
    """
    codes = {exit.code for exit in exits}
    if codes == {0}:
        return 0
    if stopped_by is not None:
        return STOPPED if codes and codes <= {0, STOPPED} else 128 + stopped_by
    if not codes:
        # Nobody knows how the workers ended: that is no success.
        return 1
    first = first_failure(exits)
    if first is None:
        return STOPPED
    if first.code < 0:
        return 128 - first.code
    return first.code if first.code in _KEPT else 1


def ended_with(code: int) -> str:
    """What happened to a script that ended by itself, in words."""
    return f"the script ended with exit code {code}"


def failure_row(exit: Exit, *, attempt: int, code: int, log: str, ours: bool) -> dict[str, Any]:
    """The content of failure.json.

    Args:
        exit: the first failure.
        attempt: the attempt's number.
        code: the job's exit code.
        log: what the worker has printed.
        ours: whether our trainer ran, whose configuration keys may be advised.
    """
    if exit.code < 0:
        known = meaning.of_signal(-exit.code, ours=ours)
    else:
        known = meaning.of_error(exit.type, exit.message, ours=ours)
    return {
        "rank": exit.rank,
        "host": exit.host,
        "attempt": attempt,
        "type": exit.type or (signal_name(-exit.code) if exit.code < 0 else exit.what),
        "message": exit.message or (exit.what if exit.type or exit.code < 0 else ended_with(exit.code)),
        "place": exit.place,
        "traceback": exit.traceback,
        "meaning": exit.meaning or (known.meaning if known else ""),
        "advice": exit.advice or (known.advice if known else ""),
        "exit_code": code,
        "log": log,
        **({"stacks": exit.stacks} if exit.stacks else {}),
        **({"override": exit.override} if exit.override else {}),
    }


def next_step(code: int, again: str, *, ours: bool, override: str = "") -> dict[str, str]:
    """The command that goes on, labelled: at once, or once the cause is mended; none where it must fail again.

    Args:
        code: the job's exit code; 2 says, also of a script by argparse, that its arguments are wrong.
        again: the command.
        ours: whether our trainer ran, which gives 3 a meaning.
        override: with which the command works without mending anything.
    """
    if code == ConfigError.exit_code:
        return {}
    if ours and override:
        return {"again": f"{again} {override}"}
    return {"then" if ours and code == UnfitError.exit_code else "again": again}


def panel(row: dict[str, Any], *, again: str, ours: bool) -> str:
    """A failure in a few lines for the terminal.

    Args:
        row: the content of failure.json.
        again: the command that continues the run.
        ours: whether our trainer ran.
    """
    killed = str(row["type"]).startswith("SIG")
    message = str(row["message"])
    what = f"killed by {row['type']}" if killed else row["type"]
    lines = [f"✗ failed: {what} on rank {row['rank']}, {row['host']}"]
    # Python's own MemoryError has no message.
    if not killed and message != row["type"]:
        lines += [f"    {shortened(line, _WIDEST)}" for line in message.strip().splitlines()[:4]]
    # Of one that hangs the message says it.
    if row.get("place") and not row.get("stacks"):
        lines.append(f"    {row['place']}")
    if row.get("others"):
        lines.append(f"    {row['others']}")
    # An error of ours carries its meaning and its remedy in its message.
    told = {"why": row.get("meaning"), "do": row.get("advice")}
    labelled = {
        **{
            label: text
            for label, text in told.items()
            if text and text not in message and (not message or message not in text)
        },
        "log": row.get("log"),
        "stacks": row.get("stacks"),
        **next_step(row["exit_code"], again, ours=ours, override=row.get("override", "")),
    }
    lines += [f"  {label:<7} {text}" for label, text in labelled.items() if text]
    return "\n".join(lines)


def signal_name(number: int) -> str:
    """`SIGKILL` for 9; `signal 99` for a number without a name."""
    return signal.Signals(number).name if _is_signal(number) else f"signal {number}"


def _is_signal(number: int) -> bool:
    return number in {entry.value for entry in signal.Signals}
