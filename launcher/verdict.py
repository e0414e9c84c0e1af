"""How a job ended: of all workers' exits the one that came first, and the exit code. Pure."""

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from launcher.stop import STOP_SIGNALS
from trainer.errors import STOPPED, ConfigError, UnfitError
from trainer.trouble import peers

_KEPT = (2, 3, STOPPED, 124)

# What a worker may say, too, when another one has gone; it can also be an error of its own.
_LIKELY_ECHO = re.compile(
    r"Connection (closed|reset|refused)|gloo/transport"
    r"|NCCL (error|communicator)|Socket(Timeout)? ?(error|closed)|failed to (recv|send)|recvValue"
    r"|ProcessGroup(NCCL|Gloo).*(abort|timed? ?out)",
    re.IGNORECASE,
)
_ECHO_TYPES = ("DistBackendError", "DistNetworkError", "DistStoreError")

_SILENCE_MEANING = "another worker did not answer in time: it hangs, or is much slower than the rest"
_SILENCE_ADVICE = "the workers' logs show which of them went no further"

_MEMORY_MEANING = "this machine, or this container, did not have as much memory (not the GPU's) as was asked for"
_MEMORY_ADVICE = "the line above says where; each worker takes its own share, so fewer or smaller copies help"

_SIGNAL_MEANING = {
    signal.SIGKILL: "somebody sent SIGKILL, or the kernel did when memory ran out",
    signal.SIGSEGV: "native code touched memory that is not its own; the log has Python's stacks",
    signal.SIGBUS: "native code lost a memory mapping: a file was truncated, or /dev/shm is full",
    signal.SIGABRT: "native code gave up; the log's last lines say why",
}
_SIGNAL_ADVICE = {
    signal.SIGKILL: "`dmesg | grep -i oom` tells; fewer data.workers or less data.prefetch save memory",
    signal.SIGBUS: "`df -h /dev/shm` tells; fewer data.workers need less of it",
}


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
        meaning: what the end means, where more is known than its signal says.
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
    meaning: str = ""

    @property
    def is_silence(self) -> bool:
        """Whether it says that another worker did not answer: the first sign of one that hangs."""
        return self.code > 0 and peers.is_silent(self.message)

    @property
    def is_echo(self) -> bool:
        """Whether this looks like the consequence of another worker's end."""
        if self.code < 0:
            # NCCL's watchdog aborts a process whose peers have gone.
            return self.code == -signal.SIGABRT
        if self.is_silence:
            return False
        likely = self.type in _ECHO_TYPES or _LIKELY_ECHO.search(self.message) is not None
        return likely or peers.is_gone(self.message)

    @property
    def is_untold(self) -> bool:
        """Whether nothing is known but the exit code."""
        return self.code > 0 and not self.type

    @property
    def what(self) -> str:
        """The exception's type, or the signal, or the exit code, in words."""
        if self.code < 0:
            return f"killed by {signal_name(-self.code)}"
        return self.type or f"exit code {self.code}"


def first_failure(exits: Sequence[Exit]) -> Exit | None:
    """The failure that caused the others; None when nobody failed.

    The earliest that is a worker's own; without one, the earliest of those that say that another worker does not
    answer; then echoes of an end.
    """
    failed = [exit for exit in exits if exit.code not in (0, STOPPED)]
    # A worker that left no time behind did not get to notice another one's end either.
    return min(failed, key=lambda exit: (exit.is_echo, exit.is_silence, exit.is_untold, exit.time or 0.0), default=None)


def not_asked_for(exits: Sequence[Exit], killed: Sequence[int] = ()) -> list[Exit]:
    """The exits that a request to stop does not explain: exceptions of a worker's own, and crashes.

    Args:
        exits: how workers ended after they were asked to stop.
        killed: ranks that were ended by force, since they did not stop in time.
    """
    return [exit for exit in exits if exit.rank not in killed and not _is_as_asked(exit)]


def _is_as_asked(exit: Exit) -> bool:
    if exit.code == -signal.SIGABRT:
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
        early: ranks that had ended with exit code 0 before the first failure.
    """
    echo = first_failure(exits)
    if echo is None or not (echo.is_echo or echo.is_silence) or not early:
        return list(exits)
    ranks = f"rank{'s' if len(early) > 1 else ''} {', '.join(map(str, sorted(early)))}"
    cause = Exit(
        min(early),
        1,
        host=next((exit.host for exit in exits if exit.rank == min(early)), ""),
        time=0.0,
        type="EarlyExit",
        message=f"{ranks} ended with exit code 0 while rank {echo.rank} still had work to share",
        advice="all ranks must take the same number of steps and reach the same collectives",
    )
    return [cause, *(exit for exit in exits if exit.rank != cause.rank)]


def with_the_trainers_word(exits: Sequence[Exit], row: dict[str, Any]) -> list[Exit]:
    """The exits, with what the trainer wrote to failure.json about one of them."""
    words: dict[str, Any] = {name: str(row.get(name, "")) for name in ("type", "message", "traceback", "advice")}
    return [replace(exit, **words) if exit.rank == row.get("rank") and exit.code > 0 else exit for exit in exits]


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


def failure_row(exit: Exit, *, attempt: int, code: int, log: str) -> dict[str, Any]:
    """The content of failure.json."""
    number = signal.Signals(-exit.code) if _is_signal(-exit.code) else None
    meaning, advice = "", ""
    if exit.is_silence:
        meaning, advice = _SILENCE_MEANING, _SILENCE_ADVICE
    elif exit.type == "MemoryError":
        meaning, advice = _MEMORY_MEANING, _MEMORY_ADVICE
    elif number is not None:
        meaning, advice = _SIGNAL_MEANING.get(number, ""), _SIGNAL_ADVICE.get(number, "")
    return {
        "rank": exit.rank,
        "host": exit.host,
        "attempt": attempt,
        "type": exit.type or (signal_name(-exit.code) if exit.code < 0 else exit.what),
        "message": exit.message or (ended_with(exit.code) if exit.is_untold else exit.what),
        "place": exit.place,
        "traceback": exit.traceback,
        "meaning": exit.meaning or meaning,
        "advice": exit.advice or advice,
        "exit_code": code,
        "log": log,
    }


def next_step(code: int, again: str, *, ours: bool) -> dict[str, str]:
    """The command that goes on, labelled: at once, or once the cause is mended; none where it must fail again.

    Args:
        code: the job's exit code.
        again: the command.
        ours: whether our trainer ran, which gives 2 and 3 a meaning.
    """
    if ours and code == ConfigError.exit_code:
        return {}
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
        lines += [f"    {line}" for line in message.strip().splitlines()[:4]]
    if row.get("place"):
        lines.append(f"    {row['place']}")
    # An error of ours carries its meaning and its remedy in its message.
    told = {"why": row.get("meaning"), "do": row.get("advice")}
    labelled = {
        **{
            label: text
            for label, text in told.items()
            if text and text not in message and (not message or message not in text)
        },
        "log": row.get("log"),
        **next_step(row["exit_code"], again, ours=ours),
    }
    lines += [f"  {label:<7} {text}" for label, text in labelled.items() if text]
    return "\n".join(lines)


def signal_name(number: int) -> str:
    """`SIGKILL` for 9; `signal 99` for a number without a name."""
    return signal.Signals(number).name if _is_signal(number) else f"signal {number}"


def _is_signal(number: int) -> bool:
    return number in {entry.value for entry in signal.Signals}
