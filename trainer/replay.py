"""Does some steps of a run again from the checkpoint before them, beside the run, and compares: `paceline replay`.

    python -m trainer.replay RUN VERDICT FIRST LAST [KEY=VALUE ...]

The verdict is JSON: `code` (0 as recorded, 1 not) and `lines` for people. Under torchrun it takes that many workers.
"""

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from trainer import checkpoint, commit
from trainer.config import CheckpointConfig, Config, TrackingConfig
from trainer.config.overrides import with_overrides
from trainer.distributed import World, join
from trainer.errors import PacelineError, UnfitError
from trainer.precision import agreed
from trainer.run import history, provenance, repository
from trainer.run.history import Course, Rollback, Setup
from trainer.run.parting import Parting, Trace, compare, trace_of
from trainer.rundir import RunDir, write_json
from trainer.stop import StopRequest
from trainer.terminal.console import LineConsole
from trainer.tracking import NullTrackers
from trainer.train import train
from trainer.training.job import Job
from trainer.training.remedy import MOST_ROLLBACKS
from trainer.training.state import Progress
from trainer.wording import plural
from trainer.worker import prepare


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be done again.

    Attributes:
        run: the run.
        setup: of the attempt that has trained these steps.
        config: its configuration, without what belongs to the run alone.
        course: what has become of the run.
        after: no step before this one was trained with that set-up.
        first: the first step that is asked for.
        last: the last one.
    """

    run: RunDir
    setup: Setup
    config: Config
    course: Course
    after: int
    first: int
    last: int


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
    verdict = Path(arguments[1])
    try:
        task = task_of(RunDir(arguments[0]), first=int(arguments[2]), last=int(arguments[3]), overrides=arguments[4:])
        if task.setup.threads:
            # Sums are split among threads, which decides how they are rounded.
            torch.set_num_threads(task.setup.threads)
        with join(task.config.distributed, device=task.config.device) as world:
            found = judge(task, world)
    except PacelineError as error:
        found = {"code": error.exit_code, "lines": f"error: this cannot be replayed: {error}".splitlines()}
    # Under torchrun all ranks find the same.
    if os.environ.get("RANK", "0") == "0":
        write_json(verdict, found)
    return 0


def task_of(run: RunDir, *, first: int, last: int, overrides: Sequence[str] = ()) -> Task:
    """The steps as they are to be done again, with what the attempt computed with that has trained the first of them.

    Raises:
        PacelineError: the record does not say which attempt that was.
    """
    span = history.span_of(run, first)
    config = with_overrides(
        history.as_of_now(run, span.setup.config), overrides, may=history.MOVABLE, purpose="a replay"
    )
    course = history.course_of(run)
    last = last if span.until is None else min(last, span.until)
    return Task(run, span.setup, prepare(_beside(config)), course, span.after, first, last)


def judge(task: Task, world: World) -> dict[str, Any]:
    """Does the steps again, and says what has come of it; all ranks must call it.

    Raises:
        PacelineError: they cannot be done again here.
    """
    run, last, recorded = task.run, task.last, task.setup.workers
    start, told = world.on_rank_zero(lambda: _start(task))
    once = _replay(task, world, start=start)
    where = f"steps {start + 1:,} to {last:,}"
    if once.error is not None and "changed" in once.error.details:
        return {"code": 1, "lines": [*told, f"data: {once.error.problem}"]}
    if once.error is not None and "step" not in once.error.details:
        raise once.error
    lines = told + [_of_rollback(row, task) for row in task.course.rollbacks if start < row.last and row.first <= last]
    troubles = [row for row in task.course.troubles if start < row["step"] <= last and _is_same(task, row)]
    code = 0
    for row in troubles:
        wrong, line = _of_trouble(row, task, once, world)
        code, lines = max(code, wrong), [*lines, line]
    if once.error is not None and once.error.details["step"] not in {row["step"] for row in troubles}:
        also = f"{where}: {once.error.problem}; nothing of that is recorded"
        return {"code": 1, "lines": [*lines, also, *_changes(task, world)]}
    parting = compare(_within(trace_of(run), start, last), once.trace)
    if parting.agree and not any(map(once.trace.computes, range(start + 1, last + 1))):
        lines.append(f"{where}: none of them was trained")
    elif parting.agree:
        lines.append(f"{where} come out as recorded: {parting.lines()[0]}")
    elif parting.steps == 0:
        lines.append(f"{where}: nothing is recorded of them" if not troubles else f"{where}: no row is recorded")
    elif recorded != world.world_size and parting.clear is None:
        lines.append(f"{where} come out as recorded up to rounding: it was {plural(recorded, 'worker')} then")
    else:
        return {"code": 1, "lines": [*lines, *_reasons(task, world, once, parting, start)]}
    return {"code": code, "lines": lines}


def _of_rollback(row: Rollback, task: Task) -> str:
    """Names steps that the run has passed over, and the replay as well."""
    steps = f"step {row.last:,}" if row.first == row.last else f"steps {row.first:,} to {row.last:,}"
    verb = "is" if row.what == "loss" else "are"
    why = (
        f"the {row.what} of step {row.last:,} {verb} not finite, and on_nonfinite=rollback went back to {row.to_step:,}"
    )
    if row.first <= task.first <= row.last:
        return f"step {task.first:,} is none that was trained: the run has passed over {steps}, since {why}"
    return f"passed over here as in the run: {steps}, since {why}"


def _is_same(task: Task, row: dict[str, Any]) -> bool:
    """Whether a trouble came with the set-up of this replay."""
    return not history.setup_of(task.run, row["attempt"]).differences(task.setup)


def _of_trouble(row: dict[str, Any], task: Task, once: Replay, world: World) -> tuple[int, str]:
    """What the replay says about an event that is recorded."""
    step, other_workers = row["step"], task.setup.workers != world.world_size
    if row["event"] == "nonfinite":
        again = once.error is not None and once.error.details.get("step") == step
        again = again or once.trace.losses.get(step, 0.0) is None or step in once.trace.left_out
        what, verb = row["what"], "is" if row["what"] == "loss" else "are"
        if again:
            return (
                0,
                f"the {what} of step {step:,} {verb} not finite again: its samples or settings, not the machine",
            )
        if other_workers:
            return 1, f"the {what} of step {step:,} {verb} finite on {plural(world.world_size, 'worker')}"
        return 1, f"the {what} of step {step:,} {verb} finite now: the machine it ran on, or changed data or code"
    mine = once.trace.digests.get(step)
    if mine is None or other_workers:
        return 1, f"after step {step:,} the ranks differed; this replay has no weights to compare with theirs"
    right = [rank for rank, digest in enumerate(row["digests"]) if digest == mine]
    if not right or len(right) == len(row["digests"]):
        return 1, (
            f"after step {step:,} the replay has the weights of no rank: what went wrong in one rank has reached the "
            "others with its gradients, so it does not tell which was at fault"
        )
    faulty = [rank for rank in range(len(row["digests"])) if rank not in right]
    named = ", ".join(map(str, faulty))
    return 1, f"after step {step:,} the replay has the weights of rank {right[0]}: at fault was rank {named}"


def _reasons(task: Task, world: World, once: Replay, parting: Parting, start: int) -> Iterator[str]:
    """Why a replay differs from the record: another one tells arithmetic from what has changed."""
    parted = parting.lines()
    yield f"the record and the replay of steps {start + 1:,} to {task.last:,} {parted[0]}"
    yield from parted[1:]
    again = compare(once.trace, _replay(task, world, start=start).trace)
    if not again.agree:
        yield f"two replays do not agree either: they {again.lines()[0]}"
        if task.config.deterministic or world.device.type == "cpu":
            yield "hardware: this machine does not compute the same twice"
        else:
            yield "kernels that are not deterministic (deterministic=true), or hardware"
        return
    changes = list(_changes(task, world))
    yield from changes
    if task.setup.workers != world.world_size:
        yield (
            f"it was {plural(task.setup.workers, 'worker')} then and is {world.world_size} now: layers such as "
            "BatchNorm see the share"
        )
    elif not changes and parting.clear is None and task.setup.threads is None and world.device.type == "cpu":
        yield "the record does not say on how many threads it was computed, which decides how sums are rounded"
    elif not changes:
        yield "two replays agree: the machine it ran on, data whose content has changed, or code that git does not know"


def _changes(task: Task, world: World) -> Iterator[str]:
    """What is no longer as it was when the steps were trained."""
    setup = task.setup
    yield from repository.changes(task.run, setup.code)
    packages = provenance.packages()
    for name in ("torch", "torchvision", "numpy"):
        version = setup.packages.get(name)
        if version and version != packages.get(name):
            yield f"code: {name} was {version} then and is {packages.get(name)} now"
    then = ", ".join(setup.gpus) or "a CPU"
    here = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "a CPU"
    if setup.seen and then != here:
        yield f"machine: it was {then} then and is {here} now, which rounds differently"


def _start(task: Task) -> tuple[int, list[str]]:
    """The newest good checkpoint before the steps, 0 for the start of the run; and lines about newer ones.

    Raises:
        UnfitError: what is left is from before another set-up.
    """
    told: list[str] = []
    for step in reversed(checkpoint.steps(task.run)):
        if not task.after <= step < task.first:
            continue
        try:
            commit.verify_folder(task.run.checkpoint(step))
        except commit.Damaged as damage:
            told.append(f"the checkpoint of step {step:,} is damaged ({damage}): done again from an older one")
            continue
        return step, told
    if task.after:
        raise UnfitError(
            f"there is no {'good ' if told else ''}checkpoint between step {task.after:,}, where attempt "
            f"{task.setup.attempt} went on with another set-up, and step {task.first:,}",
            f"{_later(task)}; checkpoint.keep and checkpoint.keep_every keep more of them",
        )
    return 0, [line.replace("from an older one", "from the start") for line in told]


def _later(task: Task) -> str:
    """The next step that can be done again."""
    trained = max(trace_of(task.run).losses, default=0)
    later = [step + 1 for step in checkpoint.steps(task.run) if task.first <= step < trained]
    return f"--step {later[0]} has one before it" if later else "no later step has one before it"


def _replay(task: Task, world: World, *, start: int) -> Replay:
    """Trains the steps in a directory of its own, which is removed."""
    run, config = task.run, task.config
    if start == task.after:
        # What the attempt accepted when it went on from there is no news.
        accepted = task.setup.config.run.accept_changes
        config = replace(config, run=replace(config.run, accept_changes=accepted))
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

        def passing_over(progress: Progress) -> None:
            """What the run went back for is passed over; nothing else is gone back for, whatever it is."""
            progress.left_out.extend([row.first, row.last] for row in task.course.rollbacks)
            progress.rollbacks = MOST_ROLLBACKS

        try:
            with agreed(config.precision, world).matmuls():
                train(config, job, stop_after=task.last, on_start=passing_over)
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
        max_time=None,
        run=replace(config.run, accept_changes=False),
    )


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
