"""A loading process that died or hangs, by its name: which one, how, and at which sample."""

import re
import signal
from collections.abc import Sequence
from typing import Any

from trainer.config.schema import LONGEST_TIMEOUT_S
from trainer.data import shared_memory
from trainer.data.bench import AtWork
from trainer.data.naming import path_of
from trainer.errors import PacelineError, TrainingError

_PIDS = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)")
_LONG_S = 1.0
_ADVICE = {
    signal.SIGKILL: "out of memory? `dmesg` tells; fewer data.workers or data.prefetch=1 need less",
    signal.SIGSEGV: "a damaged file, or a fault of its decoder; with data.workers=0 it can be looked into",
}


def explain(
    error: BaseException, split: Any, at_work: Sequence[AtWork], exit_codes: Sequence[int | None]
) -> PacelineError | None:
    """What a DataLoader's error means; None where it is about something else.

    Args:
        error: what was raised.
        split: what was read.
        at_work: what the loading processes are doing, or did last.
        exit_codes: theirs, as far as they have ended.
    """
    if shared_memory.is_full(error):
        return shared_memory.full()
    text = str(error) if isinstance(error, RuntimeError) else ""
    found = _PIDS.search(text)
    pids = {int(pid) for pid in found[1].split(",")} if found else set()
    codes = dict(enumerate(exit_codes))
    # One that dies while it hands a batch over is heard of as a closed connection, without its pid.
    dead = [one for one in at_work if one.pid in pids] or [one for one in at_work if codes.get(one.number)]
    return _died(dead[0], split, codes.get(dead[0].number)) if dead else None


def hang(at_work: Sequence[AtWork], split: Any, *, timeout_s: int) -> TrainingError:
    """What it means that no batch has come for too long.

    Args:
        at_work: what the loading processes were doing then.
        split: what was read.
        timeout_s: data.timeout_s.
    """
    stopped = [one for one in at_work if one.is_stopped]
    busy = sorted(
        (one for one in at_work if one.sample is not None and not one.is_stopped), key=lambda one: -one.seconds
    )
    stuck = [*stopped, *(one for one in busy if one.seconds > _LONG_S)] or busy[:1] or list(at_work)
    shown = "; ".join(
        f"process {one.number} (pid {one.pid}) {_doing(one, split)}"
        + (
            ", stopped by a signal"
            if one.is_stopped
            else f", for {one.seconds:.1f} s"
            if one.sample is not None
            else ""
        )
        for one in stuck[:3]
    )
    longer = min(10 * timeout_s, LONGEST_TIMEOUT_S)
    patience = f"; data.timeout_s={longer} waits longer" if longer > timeout_s else ""
    return TrainingError(
        f"the data-loading processes gave no batch for data.timeout_s={timeout_s} seconds: {shown}",
        "find out who stops processes here (SIGSTOP, a debugger), then run the same command again"
        if stopped
        else f"look at the file and its storage{patience}",
        details=_details(stuck, split),
    )


def _died(one: AtWork, split: Any, code: int | None) -> TrainingError:
    how, advice = "has ended", "with data.workers=0 it can be looked into"
    if code is not None and code < 0:
        number = signal.Signals(-code)
        how, advice = f"was ended by {number.name}", _ADVICE.get(number, advice)
        if number == signal.SIGBUS:
            advice = shared_memory.suspicion()
    elif code is not None:
        how = f"has exited with code {code}"
    return TrainingError(
        f"data-loading process {one.number} (pid {one.pid}) {how} {_doing(one, split)}",
        advice,
        details={"exit_code": code, **_details([one], split)},
    )


def _doing(one: AtWork, split: Any) -> str:
    if one.sample is None:
        return "while it waited for work"
    path = path_of(split, one.sample)
    return f"at sample {one.sample} ({path})" if path else f"at sample {one.sample}"


def _details(processes: list[AtWork], split: Any) -> dict[str, Any]:
    samples = [one.sample for one in processes if one.sample is not None]
    return {
        "processes": [one.number for one in processes],
        "pids": [one.pid for one in processes],
        "samples": samples,
        "paths": [path for sample in samples if (path := path_of(split, sample))],
    }
