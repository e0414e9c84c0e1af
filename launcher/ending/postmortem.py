"""What the kernel and a log's end tell of a worker that died without a word of its own."""

import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path

from launcher import verdict
from launcher.ending import memory
from launcher.ending.memory import Kills
from launcher.verdict import Exit
from trainer.data import shared_memory
from trainer.trouble import meaning, peers

_TAIL_BYTES = 16 << 10


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known besides an exit code.

    Attributes:
        log: what the worker has printed.
        before: the kernel's kills for want of memory when the attempt began.
        peak_bytes: the most memory that the worker had resident; None where the kernel did not say.
        ours: whether our trainer ran.
    """

    log: Path
    before: Kills
    peak_bytes: int | None
    ours: bool


def examined(exit: Exit, evidence: Evidence) -> Exit:
    """The exit, with its meaning and advice where it left none itself."""
    if exit.code == -signal.SIGKILL:
        return replace(exit, meaning=_kill(exit, evidence))
    if "DataLoader worker" in exit.message and (kill := _kill(exit, replace(evidence, peak_bytes=None))):
        return replace(exit, meaning=kill)
    if exit.type or exit.code == 0:
        return exit
    text = tail(evidence.log)
    if exit.is_abort:
        exit = replace(exit, message=_said_of_peers(text))
    found = meaning.of_log(text, ours=evidence.ours)
    if found is None and exit.code == -signal.SIGBUS:
        signals = meaning.of_signal(signal.SIGBUS, ours=evidence.ours)
        return replace(exit, meaning=f"{signals.meaning if signals else ''}; {shared_memory.room()}")
    return exit if found is None else replace(exit, meaning=found.meaning, advice=found.advice)


def tail(log: Path) -> str:
    """The end of a log; empty where there is none."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - _TAIL_BYTES))
            return stream.read().decode(errors="replace")
    except OSError:
        return ""


def _said_of_peers(text: str) -> str:
    """The line with which NCCL's watchdog, say, tells that others are silent, or gone; empty without one."""
    lines = text.splitlines()
    tests = (peers.is_silent, verdict.speaks_of_peers)
    return next((line for test in tests for line in reversed(lines) if test(line)), "")


def _kill(exit: Exit, evidence: Evidence) -> str:
    return memory.meaning(
        evidence.before, memory.count_kills(), memory.memory_limit(), rank=exit.rank, peak_bytes=evidence.peak_bytes
    )
