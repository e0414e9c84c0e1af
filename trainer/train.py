"""The training of one worker, top to bottom.

world -> data -> model -> optimizer -> checkpoint -> loop:
    a step: forward and backward of its micro-batches, one update
    every log_every_steps: a row of metrics; have the ranks been asked to stop or to save?
    where due: evaluate, keep the best weights, write a checkpoint; end early when nothing improves
"""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from trainer.config import Config
from trainer.data import loader, shared_memory
from trainer.errors import TrainingError
from trainer.heartbeat import Phase
from trainer.run.rows import append_json_line, read_json_lines
from trainer.stop import parse_duration
from trainer.training import best_weights
from trainer.training.assembly import Parts, assemble
from trainer.training.job import Job
from trainer.training.loop import Loop
from trainer.training.state import Progress, restore
from trainer.wording import duration, plural


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a training ended.

    Attributes:
        finished: False where it stopped before its end, with a checkpoint.
        early: why it has finished before its last step; None where it has not.
        by_request: whether it stopped because somebody asked; else max_time was near.
        progress: where it stands.
        parts: what was trained.
        samples: samples seen by this attempt, over all ranks.
        earlier_s: seconds that the attempts before it had worked at what it went on from.
    """

    finished: bool
    early: str | None
    by_request: bool
    progress: Progress
    parts: Parts
    samples: int
    earlier_s: float


def train(
    config: Config, job: Job, *, stop_after: int | None = None, on_start: Callable[[Progress], None] = lambda _: None
) -> Outcome:
    """Trains to the end of the run, or until a stop is requested.

    Args:
        config: checked.
        job: the surroundings.
        stop_after: stop with a checkpoint after this step, as if it had been requested.
        on_start: called once nothing is refused any more and the checkpoint is loaded, on all ranks; may change where
            the run stands.

    Raises:
        PacelineError: the data or the model cannot be used, or the loss is not finite.
    """
    job.heart.enter(Phase.START)
    parts = assemble(config, job.world, job.run)
    progress = restore(parts, accept_changes=config.run.accept_changes, warn=job.console.warn)
    on_start(progress)
    best_weights.reconcile(parts, progress)
    if job.world.is_rank_zero:
        superseded = job.run.supersede_metrics(progress.step, evaluates_again=progress.pending_evaluation > 0)
        start = {"event": "start", "step": progress.step, "attempt": job.attempt, "superseded": superseded}
        job.trackers.event({"time": time.time(), **start})
    announce(parts, job, progress)
    first_step, earlier_s = progress.step, progress.worked_s
    loop = Loop(parts, job, progress)
    batches = parts.batches(first_step)
    try:
        asked = loop.catch_up()
        while progress.step < parts.total_steps and not asked.stop and not loop.verdict:
            share = parts.plan.share(progress.step)
            take = parts.stepper.leave_out if progress.leaves_out(progress.step + 1) else parts.stepper
            take(share, batches)
            progress.step += 1
            asked = loop.after_step(share.epoch + 1, ends_epoch=share.ends_epoch, stop=progress.step == stop_after)
            if asked.rolled_back:
                batches = parts.batches(progress.step)
                asked = loop.catch_up()
        loop.finish()
    except BaseException as error:
        named = loader.explain(error)
        loop.abandon()
        if named is not None:
            raise named from error
        raise
    seen = parts.plan.samples_before(progress.step) - parts.plan.samples_before(first_step)
    early = loop.verdict if progress.step < parts.total_steps else None
    reached = early is not None or progress.step >= parts.total_steps
    if reached and not progress.pending_evaluation and not math.isfinite(progress.metrics.get("val/loss", 0.0)):
        raise TrainingError(
            f"the run has ended with weights that have diverged: the validation loss of step {progress.step:,} is not "
            "finite",
            f"run.fresh=true with a lower rate or clipping, optim.clip_norm=1; weights/best.safetensors is of "
            f"step {progress.best.step:,}"
            if progress.best.step
            else "run.fresh=true with a lower rate, optim.lr",
        )
    finished = reached and not progress.pending_evaluation
    return Outcome(finished, early, asked.by_request, progress, parts, seen, earlier_s)


def announce(parts: Parts, job: Job, progress: Progress) -> None:
    """Says once what is trained on what, with every automatic choice and its reason."""
    config, world = parts.config, job.world
    parameters = sum(p.numel() for p in parts.model.parameters())
    recipe = f"recipe {config.recipe}: " if config.recipe else ""
    splits, side = parts.splits, parts.preprocessing.image_size
    held_out = f"and {len(splits.val):,} validation images" if parts.is_evaluated else "images and none for validation"
    job.console.say(
        f"  {splits.title}: {len(splits.train):,} training {held_out}, {len(splits.classes)} classes, {side}x{side}"
    )
    job.console.say(
        f"  {recipe}{config.model._target_ or config.model.name} with {parameters:,} parameters, seed {config.seed}, "
        f"{world.world_size} x {world.device.type}, {parts.workers} loading processes each"
    )
    job.console.say(f"  {parts.precision.name}: {parts.precision.reason}")
    if config.deterministic:
        switched = f", cudnn.benchmark off, CUBLAS_WORKSPACE_CONFIG={os.environ.get('CUBLAS_WORKSPACE_CONFIG')}"
        switched = switched if world.device.type == "cuda" else ""
        job.console.say(
            f"  deterministic: only algorithms that compute the same twice{switched}; slower, "
            "and an operation that has none ends the run"
        )
    if config.distributed.sync_batchnorm and world.device.type != "cuda":
        job.console.warn("distributed.sync_batchnorm works on GPUs only: each worker uses its own statistics")
    if (warning := shared_memory.shortage(parts.shared_memory_bytes)) is not None:
        job.console.warn(warning)
    left_s = job.stop.remaining_s
    if config.max_time and left_s is not None and left_s < parse_duration(config.max_time) / 2:
        job.console.warn(
            f"max_time={config.max_time} counts from the start of the command: {duration(left_s)} of it are left"
        )
    if not parts.is_evaluated:
        job.console.say("  data.val_fraction=0: nothing is evaluated, and the last weights are the result")
    for note in splits.notes:
        job.console.say(f"  {note}")
    if world.is_rank_zero:
        listed = {row.get("path") for row in read_json_lines(job.run.skipped_images)}
        for bad in splits.bad_files:
            if str(bad.path) not in listed:
                append_json_line(job.run.skipped_images, {"path": str(bad.path), "reason": bad.reason})
    if progress.step > parts.total_steps:
        asked = plural(parts.total_steps, "step is", "steps are")
        job.console.say(f"has trained {plural(progress.step, 'step')} already, and {asked} asked for: nothing is left")
    elif progress.step:
        job.console.say(f"goes on after step {progress.step:,} of {parts.total_steps:,}")
