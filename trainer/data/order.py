"""Prints which samples any step of a training takes, on which rank and in which micro-batch.

  python -m trainer.data.order runs/first-try --step 120
  python -m trainer.data.order runs/first-try --step 120 data.root=/where/the/images/are/now
  python -m trainer.data.order recipe=fashion_mnist seed=1 --step 10 --steps 3 --world-size 8

One line a sample, in the order of the step: step, epoch, rank and micro-batch (from 0), sample, and its file where the
data has files. Steps and epochs count from 1, as in metrics.jsonl.
"""

import argparse
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from trainer.check.validate import validate
from trainer.config import Config, compose
from trainer.config.overrides import with_overrides
from trainer.errors import ConfigError, PacelineError
from trainer.run import history
from trainer.rundir import RunDir

if TYPE_CHECKING:
    from trainer.data.sampler import StepPlan


class Taken(NamedTuple):
    """One sample of a step: the step and the epoch from 1, the rank and its micro-batch from 0."""

    step: int
    epoch: int
    rank: int
    micro_batch: int
    sample: int


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; exits 0, 2 (wrong arguments) or 3 (data that cannot be read)."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.data.order",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", metavar="RUN | OVERRIDE", nargs="+", help="a run directory, or overrides of a job")
    parser.add_argument("--step", type=_positive, required=True, metavar="N", help="the step, from 1")
    parser.add_argument("--steps", type=_positive, default=1, metavar="K", help="this many steps from it on (1)")
    parser.add_argument("--world-size", type=_positive, metavar="W", help="workers (the run's own; 1 for overrides)")
    options = parser.parse_intermixed_args(arguments)
    try:
        _print(_asked(options.what, options.world_size, range(options.step - 1, options.step - 1 + options.steps)))
    except PacelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def taken(plan: "StepPlan", *, seed: int, step: int) -> Iterator[Taken]:
    """The samples of a step in its order.

    Args:
        plan: how samples are dealt; its rank does not matter.
        seed: the run's.
        step: index of the step in the run, from 0.
    """
    from dataclasses import replace

    from trainer.data.naming import samples_of_step

    samples = iter(samples_of_step(plan, seed=seed, step=step).tolist())
    for rank in range(plan.world_size):
        share = replace(plan, rank=rank).share(step)
        for number, size in enumerate(share.micro_batches):
            for _ in range(size):
                yield Taken(step + 1, share.epoch + 1, rank, number, next(samples))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1")
    return int(text)


class _Asked(NamedTuple):
    """Steps, counted from 0, with the configuration and the number of workers that they have in common."""

    config: Config
    world_size: int
    steps: range


def _asked(what: list[str], world_size: int | None, steps: range) -> list[_Asked]:
    """The steps as their attempts have trained them, or will.

    Raises:
        PacelineError: neither a run nor overrides that make a job, or a record that does not tell.
    """
    run = RunDir(Path(what[0]).expanduser())
    if "=" in what[0] and not run.config.exists():
        config, workers = compose(what), world_size or 1
        validate(config, world_size=workers)
        return [_Asked(config, workers, steps)]
    if not run.config.exists():
        raise ConfigError(f"{what[0]} is no run directory: it has no {run.config.name}", "runs/NAME, or KEY=VALUE ...")
    found: list[_Asked] = []
    while steps:
        span = history.span_of(run, steps.start + 1)
        config = with_overrides(
            history.as_of_now(run, span.setup.config), what[1:], may=history.MOVABLE, purpose="a run that there is"
        )
        stop = steps.stop if span.until is None else min(steps.stop, span.until)
        found.append(_Asked(config, world_size or span.setup.workers, range(steps.start, stop)))
        steps = range(stop, steps.stop)
    return found


def _print(asked: list[_Asked]) -> None:
    from trainer.data import datasets
    from trainer.data.naming import path_of
    from trainer.training.assembly import count_steps, step_plan

    # Before the first line, what is wrong with any of them.
    parts: list[tuple[_Asked, datasets.Split, StepPlan]] = []
    for part in asked:
        known = parts and parts[-1][0].config.data == part.config.data
        split = parts[-1][1] if known else datasets.load(part.config.data).train
        plan = step_plan(part.config, len(split), part.world_size)
        total = count_steps(part.config, plan)
        if part.steps.stop > total:
            raise ConfigError(
                f"step {part.steps.stop:,} is after the run's last, {total:,}", f"--step from 1 to {total}"
            )
        parts.append((part, split, plan))
    print("step", "epoch", "rank", "micro_batch", "sample", "path", sep="\t")
    for part, split, plan in parts:
        for step in part.steps:
            for row in taken(plan, seed=part.config.seed, step=step):
                print(*row, path_of(split, row.sample) or "", sep="\t")


if __name__ == "__main__":
    # `... | head` ends it as it ends other tools, without a traceback.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
