"""The training of one worker, top to bottom.

world -> data -> model -> optimizer -> checkpoint -> loop:
    a step: forward and backward of its micro-batches, one update
    every log_every_steps: a row of metrics; have the ranks been asked to stop or to save?
    where due: evaluate, keep the best weights, write a checkpoint
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from trainer import checkpoint
from trainer.assembly import Parts, assemble
from trainer.config import Config
from trainer.console import Console
from trainer.distributed import World
from trainer.errors import TrainingError
from trainer.exchange import Exchange
from trainer.recorder import Interval, Recorder
from trainer.rundir import RunDir, append_json_line, read_json_lines
from trainer.state import Progress, restore, snapshot
from trainer.step import StepClock
from trainer.stop import StopRequest
from trainer.tracking import Trackers

_SECONDS_BETWEEN_CHECKPOINTS = 600


@dataclass(frozen=True, slots=True)
class Job:
    """What a training needs besides its configuration.

    Attributes:
        world: the workers.
        run: the run directory.
        console: where it speaks.
        trackers: who is told.
        stop: whether somebody asked this process to stop.
        gpu_percent: the GPUs' latest mean utilisation, None without a GPU.
    """

    world: World
    run: RunDir
    console: Console
    trackers: Trackers
    stop: StopRequest
    gpu_percent: Callable[[], float | None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a training ended.

    Attributes:
        finished: False where it stopped on request, with a checkpoint.
        progress: where it stands.
        parts: what was trained.
        samples: samples seen by this attempt, over all ranks.
    """

    finished: bool
    progress: Progress
    parts: Parts
    samples: int


def train(config: Config, job: Job, *, stop_after: int | None = None) -> Outcome:
    """Trains to the end of the run, or until a stop is requested.

    Args:
        config: checked.
        job: the surroundings.
        stop_after: stop with a checkpoint after this step, as if it had been requested.

    Raises:
        PacelineError: the data or the model cannot be used, or the loss is not finite.
    """
    parts = assemble(config, job.world, job.run)
    progress = restore(parts, warn=job.console.warn)
    if job.world.is_rank_zero:
        superseded = job.run.supersede_metrics(progress.step)
        job.trackers.event(
            {"time": time.time(), "event": "start", "step": progress.step, "superseded_rows": superseded}
        )
    announce(parts, job, progress)
    first_step = progress.step
    loop = Loop(parts, job, progress)
    batches = parts.batches(first_step)
    finished = True
    try:
        while progress.step < parts.total_steps:
            share = parts.plan.share(progress.step)
            parts.stepper(share, batches)
            progress.step += 1
            last = progress.step in (parts.total_steps, stop_after)
            evaluates = is_evaluation_due(config.evaluate.every, progress.step, share.ends_epoch, parts.total_steps)
            if not (last or evaluates or progress.step % config.log_every_steps == 0 or loop.saves_at_this_step()):
                continue
            asked = loop.close_interval(epoch=share.epoch + 1)
            if evaluates:
                loop.evaluate(epoch=share.epoch + 1)
            finished = not (asked.stop or progress.step == stop_after) or progress.step == parts.total_steps
            if (
                last
                or not finished
                or asked.save
                or loop.saves_at_this_step()
                or (evaluates and loop.saves_with_evaluation)
            ):
                loop.save()
            if not finished:
                break
    except BaseException:
        loop.abandon()
        raise
    loop.close()
    return Outcome(
        finished,
        progress,
        parts,
        parts.plan.samples_before(progress.step) - parts.plan.samples_before(first_step),
    )


def announce(parts: Parts, job: Job, progress: Progress) -> None:
    """Says once what is trained on what, with every automatic choice and its reason."""
    config, world = parts.config, job.world
    parameters = sum(p.numel() for p in parts.model.parameters())
    recipe = f"recipe {config.recipe}: " if config.recipe else ""
    splits, side = parts.splits, parts.preprocessing.image_size
    job.console.say(
        f"  {splits.title}: {len(splits.train):,} training and {len(splits.val):,} validation images, "
        f"{len(splits.classes)} classes, {side}x{side}"
    )
    job.console.say(
        f"  {recipe}{config.model._target_ or config.model.name} with {parameters:,} parameters, seed {config.seed}, "
        f"{world.world_size} x {world.device.type}, {parts.workers} loading processes each"
    )
    job.console.say(f"  {parts.precision.name}: {parts.precision.reason}")
    for note in splits.notes:
        job.console.say(f"  {note}")
    if world.is_rank_zero:
        listed = {row.get("path") for row in read_json_lines(job.run.skipped_images)}
        for bad in splits.bad_files:
            if str(bad.path) not in listed:
                append_json_line(job.run.skipped_images, {"path": str(bad.path), "reason": bad.reason})
    if progress.step:
        job.console.say(f"goes on after step {progress.step:,} of {parts.total_steps:,}")


def is_evaluation_due(every: int | str, step: int, ends_epoch: bool, total_steps: int) -> bool:
    """Whether to evaluate after `step` steps; always after the last."""
    if step == total_steps:
        return True
    return ends_epoch if every == "epoch" else every != "end" and step % int(every) == 0


@dataclass(frozen=True, slots=True)
class Asked:
    """What any rank asked of all ranks."""

    stop: bool = False
    save: bool = False


class Loop:
    """What happens between steps: rows of metrics, agreement of the ranks, evaluation, checkpoints."""

    def __init__(self, parts: Parts, job: Job, progress: Progress) -> None:
        self._parts, self._job, self._progress = parts, job, progress
        self._stepper = parts.stepper
        self._every = parts.config.checkpoint.every_steps
        self._recorder = (
            Recorder(
                job.run,
                job.trackers,
                job.console,
                total_steps=parts.total_steps,
                epochs=parts.epochs,
                gpu_percent=job.gpu_percent,
            )
            if job.world.is_rank_zero
            else None
        )
        self._pending: Exchange | None = None
        self._pending_steps = (0, 0)
        self._interval_step = progress.step
        self._interval_started = time.perf_counter()
        self._saved = time.monotonic()
        self._save_seconds = 0.0

    @property
    def saves_with_evaluation(self) -> bool:
        """Whether an evaluation is followed by a checkpoint."""
        return self._every is None

    def saves_at_this_step(self) -> bool:
        """Whether the steps say that a checkpoint is due."""
        return self._every is not None and self._progress.step % self._every == 0

    def close_interval(self, *, epoch: int) -> Asked:
        """Ends an interval: starts the exchange of its figures, and reads those of the one before."""
        now = time.perf_counter()
        seconds = now - self._interval_started
        step, stepper, world = self._progress.step, self._stepper, self._job.world
        margin = 2 * seconds + self._save_seconds
        wants_stop = self._job.stop.is_due(margin)
        wants_save = (
            world.is_rank_zero and self._every is None and time.monotonic() - self._saved > _SECONDS_BETWEEN_CHECKPOINTS
        )
        asked = self._read_pending()
        # Filled on the device: copying a value there would wait for the steps under way.
        wishes = [torch.full_like(stepper.loss_sum, float(wish)) for wish in (wants_stop, wants_save)]
        self._pending = Exchange(world, torch.stack([stepper.loss_sum, stepper.counted, *wishes]))
        self._pending_steps = (self._interval_step, step)
        stepper.loss_sum.zero_()
        stepper.counted.zero_()
        clock, stepper.clock = stepper.clock, StepClock()
        samples = self._parts.plan.samples_before(step)
        if self._recorder is not None:
            self._recorder.interval(
                Interval(
                    step=step,
                    epoch=epoch,
                    samples=samples,
                    new_samples=samples - self._parts.plan.samples_before(self._interval_step),
                    seconds=seconds,
                    clock=clock,
                    lr=stepper.optimizer.param_groups[0]["lr"],
                    sums=self._pending,
                    when=time.time(),
                )
            )
        for what, spent in asdict(clock).items():
            self._progress.spend(what, spent)
        self._progress.spend("steps", seconds)
        self._interval_step, self._interval_started = step, time.perf_counter()
        return asked

    def _read_pending(self) -> Asked:
        if self._pending is None:
            return Asked()
        loss_sum, _, stop, save = self._pending.read()
        if not math.isfinite(loss_sum):
            raise TrainingError(
                f"the loss is not finite (in steps {self._pending_steps[0] + 1:,} to {self._pending_steps[1]:,})",
                f"a lower rate, optim.lr={self._parts.config.optim.lr / 10:g}, clipping, optim.clip_norm=1, "
                "or precision=fp32; to see where it begins: debug=true",
            )
        return Asked(stop=stop > 0, save=save > 0)

    def evaluate(self, *, epoch: int) -> None:
        """Evaluates on all ranks, and keeps the weights when they are the best so far."""
        started = time.perf_counter()
        progress = self._progress
        metrics = self._parts.evaluate()
        progress.metrics = metrics
        best = metrics["val/accuracy"] > progress.best_accuracy
        if best:
            progress.best_accuracy, progress.best_epoch = metrics["val/accuracy"], epoch
        if self._recorder is not None:
            if best:
                checkpoint.save_weights(self._job.run.weights("best"), self._parts.model)
            samples = self._parts.plan.samples_before(progress.step)
            self._recorder.evaluation(step=progress.step, epoch=epoch, samples=samples, metrics=metrics, best=best)
        self._book("evaluation", started)

    def save(self) -> None:
        """Writes a checkpoint and the latest weights; a full disk does not end the run."""
        started = time.perf_counter()
        saved = snapshot(self._parts, self._progress)
        if self._recorder is not None:
            run, step = self._job.run, self._progress.step
            self._recorder.flush()
            try:
                checkpoint.save(run.checkpoint(step), saved)
                checkpoint.delete_old(run, self._parts.config.checkpoint.keep)
                checkpoint.save_weights(run.weights("last"), self._parts.model)
                self._recorder.event(event="checkpoint", step=step, seconds=time.perf_counter() - started)
            except OSError as error:
                self._job.console.warn(f"the checkpoint of step {step:,} was not written: {error}; training goes on")
                self._recorder.event(event="checkpoint_failed", step=step, error=str(error))
        self._saved, self._save_seconds = time.monotonic(), time.perf_counter() - started
        self._book("checkpoint", started)

    def _book(self, what: str, started: float) -> None:
        self._progress.spend(what, time.perf_counter() - started)
        self._interval_started = time.perf_counter()

    def close(self) -> None:
        """Waits until every row is written.

        Raises:
            TrainingError: the loss of the last interval is not finite.
        """
        if self._recorder is not None:
            self._recorder.close()
        self._read_pending()

    def abandon(self) -> None:
        """Writes what can be written; what the failure took along is not worth a second message."""
        if self._recorder is not None:
            self._recorder.close(quiet=True)
