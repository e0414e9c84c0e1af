"""Does some steps of a run again from the checkpoint before them, beside the run, and compares: `paceline replay`.

    python -m trainer.replay RUN VERDICT FIRST LAST

The verdict is JSON: `code` (0 as recorded, 1 not) and `lines` for people. Under torchrun it takes that many workers.
"""

import contextlib
import io
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from trainer import checkpoint, provenance
from trainer.config import CheckpointConfig, Config, TrackingConfig, from_yaml
from trainer.console import LineConsole
from trainer.distributed import World, join
from trainer.errors import ConfigError, PacelineError
from trainer.job import Job
from trainer.parting import Trace, compare, trace_of
from trainer.precision import agreed
from trainer.rundir import RunDir, read_json, read_json_lines, write_json
from trainer.stop import StopRequest
from trainer.tracking import NullTrackers
from trainer.train import train
from trainer.worker import prepare


@dataclass(frozen=True, slots=True)
class Replay:
    """What came of doing the steps again.

    Attributes:
        trace: of these steps.
        error: what ended them; None: nothing did.
    """

    trace: Trace
    error: PacelineError | None


def main(arguments: list[str]) -> int:
    """Replays, and writes the verdict; exits 0 whatever it is."""
    run, verdict, first, last = RunDir(arguments[0]), Path(arguments[1]), int(arguments[2]), int(arguments[3])
    config = prepare(_beside(from_yaml(run.config.read_text())))
    recorded_threads = read_json(run.environment).get("workers", [{}])[0].get("threads")
    if recorded_threads:
        # Sums are split among threads, which decides how they are rounded.
        torch.set_num_threads(recorded_threads)
    with join(config.distributed, device=config.device) as world:
        found = _judged(run, config, world, first=first, last=last)
        if world.is_rank_zero:
            write_json(verdict, found)
    return 0


def _judged(run: RunDir, config: Config, world: World, *, first: int, last: int) -> dict[str, Any]:
    start = max((step for step in checkpoint.steps(run) if step < first), default=0)
    once = _replay(run, config, world, start=start, last=last)
    where = f"steps {start + 1:,} to {last:,}"
    if isinstance(once.error, ConfigError):
        return {"code": 1, "lines": [f"data: {once.error.problem}"]}
    events = list(read_json_lines(run.events))
    passed_over = _passed_over(events, once)
    lines: list[str] = []
    if passed_over:
        named = ", ".join(f"{step:,}" for step in passed_over)
        lines.append(f"passed over in the record, after a rollback, and so here: step {named}")
    troubles = [
        row for row in events
        if row.get("event") in ("nonfinite", "replicas_differ") and start < row.get("step", 0) <= last
    ]  # fmt: skip
    code = 0
    for row in troubles:
        if row["step"] in passed_over:
            continue
        wrong, line = _of_trouble(row, once)
        code, lines = max(code, wrong), [*lines, line]
    if once.error is not None and not troubles:
        return {"code": 1, "lines": [f"{where}: {once.error.problem}; nothing of that is recorded", *_changes(run)]}
    recorded = trace_of(run)
    parting = compare(_within(recorded, start, last), once.trace)
    workers = read_json(run.job).get("world_size", 1)
    if parting.agree:
        lines.append(f"{where} come out as recorded: {parting.lines()[0]}")
    elif parting.steps == 0:
        lines.append(f"{where}: nothing is recorded of them" if not troubles else f"{where}: no row is recorded")
    elif workers != world.world_size and parting.clear is None:
        lines.append(f"{where} come out as recorded up to rounding: it was {workers} workers then")
    else:
        return {"code": 1, "lines": [*lines, *_reasons(run, config, world, once, parting.lines(), start, last)]}
    return {"code": code, "lines": lines}


def _passed_over(events: list[dict[str, Any]], once: Replay) -> list[int]:
    """The steps that were left out after a rollback, in the record and, where the checkpoint knows of it, here too."""
    ranges = [row["left_out"] for row in events if row.get("event") == "rollback"]
    computed = once.error.details.get("step", 0) if once.error is not None else math.inf
    return [
        step
        for step, loss in once.trace.losses.items()
        if loss is None and step < computed and any(first <= step <= last for first, last in ranges)
    ]


def _of_trouble(row: dict[str, Any], once: Replay) -> tuple[int, str]:
    """What the replay says about an event that is recorded."""
    step = row["step"]
    if row["event"] == "nonfinite":
        again = once.error is not None and once.error.details.get("step") == step
        again = again or once.trace.losses.get(step, 0.0) is None
        if again:
            return (
                0,
                f"the {row['what']} of step {step:,} is not finite again: its samples or settings, not the machine",
            )
        return 1, f"the {row['what']} of step {step:,} is finite now: the machine it ran on, or changed data or code"
    mine = once.trace.digests.get(step)
    right = [rank for rank, digest in enumerate(row["digests"]) if digest == mine]
    if not right or len(right) == len(row["digests"]):
        return 1, (
            f"after step {step:,} the replay has the weights of no rank: what went wrong in one rank has reached the "
            "others with its gradients, so it does not tell which was at fault"
        )
    faulty = [rank for rank in range(len(row["digests"])) if rank not in right]
    named = ", ".join(map(str, faulty))
    return 1, f"after step {step:,} the replay has the weights of rank {right[0]}: at fault was rank {named}"


def _reasons(
    run: RunDir, config: Config, world: World, once: Replay, parted: list[str], start: int, last: int
) -> Iterator[str]:
    """Why a replay differs from the record: another one tells arithmetic from what has changed."""
    yield f"the record and the replay of steps {start + 1:,} to {last:,} {parted[0]}"
    yield from parted[1:]
    again = compare(once.trace, _replay(run, config, world, start=start, last=last).trace)
    if not again.agree:
        yield f"two replays do not agree either: they {again.lines()[0]}"
        if config.deterministic or world.device.type == "cpu":
            yield "hardware: this machine does not compute the same twice"
        else:
            yield "kernels that are not deterministic (deterministic=true), or hardware"
        return
    changes = list(_changes(run))
    yield from changes
    if not changes:
        workers = read_json(run.job).get("world_size", 1)
        if workers != world.world_size:
            yield f"it was {workers} workers then and is {world.world_size} now: layers such as BatchNorm see the share"
        else:
            yield "two replays agree: the machine it ran on, or data whose content has changed"


def _changes(run: RunDir) -> Iterator[str]:
    """What is no longer as it was when the run began."""
    before = read_json(run.job)
    code = before.get("code") or {}
    now = provenance.commit(Path(__file__).parent)
    if code.get("commit") and now and code["commit"] != now:
        yield f"code: it was commit {code['commit'][:12]} then and is {now[:12]} now"
    packages = provenance.packages()
    for name in ("torch", "torchvision", "numpy"):
        version = before.get("packages", {}).get(name)
        if version and version != packages.get(name):
            yield f"code: {name} was {version} then and is {packages.get(name)} now"


def _replay(run: RunDir, config: Config, world: World, *, start: int, last: int) -> Replay:
    """Trains the steps in a directory of its own, which is removed."""
    with contextlib.ExitStack() as stack:
        folder = (
            stack.enter_context(tempfile.TemporaryDirectory(prefix="paceline-replay-")) if world.is_rank_zero else ""
        )
        scratch = RunDir(Path(world.from_rank_zero(folder)) / run.name)
        if world.is_rank_zero:
            scratch.checkpoints.mkdir(parents=True)
            if start:
                scratch.checkpoint(start).symlink_to(run.checkpoint(start).resolve(), target_is_directory=True)
        world.from_rank_zero(None)
        console = LineConsole(io.StringIO(), None, clock=lambda: 0.0)
        job = Job(world, scratch, console, NullTrackers(), StopRequest(), lambda: None)
        error = None
        try:
            with agreed(config.precision, world).matmuls():
                train(config, job, stop_after=last)
        except PacelineError as raised:
            error = raised
        replay = world.from_rank_zero(Replay(trace_of(scratch), error))
        return replace(replay, error=error)


def _within(trace: Trace, start: int, last: int) -> Trace:
    return Trace(
        {step: loss for step, loss in trace.losses.items() if start < step <= last},
        {step: digest for step, digest in trace.digests.items() if start < step <= last},
    )


def _beside(config: Config) -> Config:
    """The same computation without what belongs to the run alone."""
    return replace(
        config,
        evaluate=replace(config.evaluate, every="end"),
        tracking=TrackingConfig(),
        checkpoint=CheckpointConfig(keep=1_000_000),
        on_nonfinite="stop" if config.on_nonfinite == "rollback" else config.on_nonfinite,
        max_time=None,
        run=replace(config.run, accept_changes=False),
    )


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
