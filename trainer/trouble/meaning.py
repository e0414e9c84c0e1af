"""What an error or a signal means in words, and what to try, by the catalogue. Standard library only."""

import builtins
import signal
from dataclasses import dataclass

from trainer.trouble.catalogue.gpus import GPUS
from trainer.trouble.catalogue.machine import MACHINE
from trainer.trouble.catalogue.network import NETWORK
from trainer.trouble.catalogue.program import PROGRAM
from trainer.trouble.catalogue.signature import Signature

CATALOGUE: tuple[Signature, ...] = (*GPUS, *PROGRAM, *NETWORK, *MACHINE)
"""Looked through in this order: what says more comes first."""

_SIGNALS = {
    signal.SIGKILL: Signature(
        "killed",
        "",
        "somebody sent SIGKILL, or the kernel did when memory ran out",
        "`dmesg | grep -i oom` tells; fewer or smaller copies of the data, or more memory",
        "`dmesg | grep -i oom` tells; fewer data.workers or less data.prefetch save memory",
    ),
    signal.SIGSEGV: Signature(
        "segfault",
        "",
        "native code touched memory that is not its own; the log has Python's stacks",
        "reinstall the extension that the stacks name, for this torch and numpy",
    ),
    signal.SIGBUS: Signature(
        "bus_error",
        "",
        "native code lost a memory mapping: a file was truncated, or /dev/shm is full",
        "`df -h /dev/shm` tells; docker run --shm-size=8g, or fewer loading processes",
        "`df -h /dev/shm` tells; docker run --shm-size=8g, or fewer data.workers need less of it",
    ),
    signal.SIGABRT: Signature("abort", "", "native code gave up; the log's last lines say why", ""),
    signal.SIGILL: Signature(
        "illegal_instruction",
        "",
        "this processor lacks an instruction that native code uses",
        "`lscpu` shows what it has; a build of torch or of the extension for it",
    ),
    signal.SIGFPE: Signature("arithmetic", "", "native code divided by zero", "the log has Python's stacks"),
}

# Of the network, of other machines, of a clock: errors whose names say that they may pass.
_PASSING_WORDS = (
    "Connect",
    "Timeout",
    "Network",
    "Socket",
    "HTTP",
    "SSL",
    "Dist",
    "Accelerator",
    "OutOfMemory",
    "Lost",
)


@dataclass(frozen=True, slots=True)
class Meaning:
    """What is said of an error.

    Attributes:
        name: the signature's.
        meaning: one sentence.
        advice: what to try; may be empty.
    """

    name: str
    meaning: str
    advice: str


def of_error(kind: str, message: str, *, ours: bool, micro_batch: int | None = None) -> Meaning | None:
    """What an exception means; None where it is not known.

    Args:
        kind: its type's name.
        message: its text.
        ours: whether our trainer ran, whose configuration keys may be advised.
        micro_batch: samples that one worker takes at once, where that is known.
    """
    text = f"{kind}: {message}"
    for signature in CATALOGUE:
        groups = signature.find(text)
        if groups is not None:
            return _filled(signature, groups, ours=ours, micro_batch=micro_batch)
    return None


def of_log(tail: str, *, ours: bool) -> Meaning | None:
    """What the end of a log tells of a process that died without an exception; None where it tells nothing."""
    for signature in CATALOGUE:
        groups = signature.find(tail) if signature.native else None
        if groups is not None:
            return _filled(signature, groups, ours=ours)
    return None


def of_signal(number: int, *, ours: bool) -> Meaning | None:
    """What it means that a signal ended a process."""
    signature = _SIGNALS.get(signal.Signals(number)) if number in set(signal.Signals) else None
    return _filled(signature, {}, ours=ours) if signature else None


def may_pass(kind: str, message: str) -> bool:
    """Whether the same program may get by at the same place next time: errors of hardware, network and system."""
    known = getattr(builtins, kind, None)
    if isinstance(known, type) and issubclass(known, (OSError, MemoryError, KeyboardInterrupt)):
        return True
    if any(word in kind for word in _PASSING_WORDS) or "CUDA error" in message:
        return True
    text = f"{kind}: {message}"
    return next((signature.may_pass for signature in CATALOGUE if signature.find(text) is not None), False)


def _filled(signature: Signature, groups: dict[str, str], *, ours: bool, micro_batch: int | None = None) -> Meaning:
    words = {**groups, "smaller": _smaller(micro_batch)}
    advice = signature.ours if ours and signature.ours else signature.advice
    return Meaning(signature.name, _spoken(signature.meaning, words), _spoken(advice, words))


def _spoken(text: str, words: dict[str, str]) -> str:
    # Not every message has the file that another of its kind names.
    return text.format(**words).replace(" ()", "")


def _smaller(micro_batch: int | None) -> str:
    if micro_batch == 1:
        return ""
    override = "a smaller micro_batch_size" if micro_batch is None else f"micro_batch_size={micro_batch // 2}"
    return f"{override} (the same samples and weighting: accumulation keeps global_batch_size), "
