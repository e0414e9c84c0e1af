"""One worker from its configuration to its exit code: run directory, terminal, trackers, monitor, errors."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace

import torch

from trainer import results
from trainer.age import process_age_s
from trainer.config import Config, TrackingConfig
from trainer.distributed import World, join
from trainer.errors import STOPPED
from trainer.monitor.sampling import Monitor
from trainer.precision import agreed
from trainer.run import environment, opening, runname, saved
from trainer.run.patience import saying_if_slow
from trainer.run.rows import read_json_lines
from trainer.rundir import RunDir, write_json
from trainer.stop import StopRequest, parse_duration
from trainer.terminal.console import Console, open_console
from trainer.tracking import NullTrackers, open_trackers
from trainer.train import Outcome, train
from trainer.training import keeper
from trainer.training.job import Job
from trainer.trouble.mishap import Attempt, report

_DEBUG_STEPS = 4
_DEBUG_MICRO_BATCH = 8


def work(config: Config, stop: StopRequest, *, started: float, notes: Sequence[str] = ()) -> int:
    """Trains; every error ends in a few lines, in failure.json and in an exit code.

    Args:
        config: validated.
        stop: listening already: a request may come while the parts are still being put together.
        started: UNIX seconds from which `max_time` counts.
        notes: what validation wants the user to know.
    """
    if config.max_time:
        stop.end_by(started + parse_duration(config.max_time))
    console = open_console(is_rank_zero=os.environ.get("LOCAL_RANK", "0") == "0", log=None)
    ours: Attempt | None = None
    # Until the end of the run has been told, too: what is written of it must not meet the next job's.
    with ExitStack() as holding:
        try:
            asked, config = config, prepare(config)
            with join(config.distributed, device=config.device) as world:
                run = RunDir(world.on_rank_zero(lambda: opening.open_run(config)))
                if opening.is_over(run, config, world, console):
                    return 0
                holding.enter_context(opening.held(run, world, stop, console))
                # What a launcher has written, or would have.
                kept = config if "PACELINE_RUN_DIR" not in os.environ else asked
                # Another job may have had it until now.
                accepted = world.on_rank_zero(lambda: opening.agree_again(run, kept))
                if opening.is_over(run, config, world, console):
                    return 0
                goes_on = world.from_rank_zero(saved.has_checkpoint(run))
                attempt = world.from_rank_zero(opening.choose_attempt(run))
                ours = Attempt(run, attempt, is_ours=True, has_begun=not goes_on)
                world.on_rank_zero(lambda: opening.enter(run, kept, world, attempt=attempt))

                def begin_now() -> None:
                    nonlocal ours
                    world.on_rank_zero(lambda: opening.begin(run, kept, attempt=attempt))
                    for line in environment.write(run, world, attempt=attempt):
                        console.warn(line)
                    ours = Attempt(run, attempt, is_ours=True)

                # A run that goes on is left as it is until nothing of it can be refused any more.
                if not goes_on:
                    begin_now()
                # The launcher keeps a log of everything that is printed, this among it.
                log = None if "PACELINE_RUN_DIR" in os.environ else run.log(attempt, world.rank)
                console = open_console(is_rank_zero=world.is_rank_zero, log=log)
                for note in (*notes, *accepted):
                    console.say(note)
                on_start = begin_now if goes_on else lambda: None
                return train_in(run, config, world, console, stop, started=started, attempt=attempt, on_start=on_start)
        except Exception as error:
            return report(error, ours or opening.launched(error), console, micro_batch=micro_batch(config))
        finally:
            keeper.call_off_end()


def prepare(config: Config) -> Config:
    """Settles what follows from `debug` and `deterministic`, with torch's process-wide switches."""
    # Set either way: a sweep runs several jobs in this process.
    torch.autograd.set_detect_anomaly(config.debug)
    torch.use_deterministic_algorithms(config.deterministic)
    if config.debug:
        batch = min(config.global_batch_size, _DEBUG_MICRO_BATCH * int(os.environ.get("WORLD_SIZE", "1")))
        config = replace(
            config,
            max_steps=_DEBUG_STEPS,
            log_every_steps=1,
            global_batch_size=batch,
            data=replace(config.data, workers=0, limit=_DEBUG_STEPS * batch),
            tracking=TrackingConfig(),
            run=replace(config.run, name=config.run.name or runname.automatic(f"{config.recipe}-debug")),
        )
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = not config.deterministic
    return config


def train_in(
    run: RunDir,
    config: Config,
    world: World,
    console: Console,
    stop: StopRequest,
    *,
    attempt: int,
    started: float,
    on_start: Callable[[], None],
) -> int:
    """Trains in a run directory and closes it; returns the exit code."""
    zero = world.is_rank_zero
    trackers = open_trackers(config, run, attempt=attempt, warn=console.warn) if zero else NullTrackers()
    monitor = Monitor(
        config.monitor,
        node_rank=world.node_rank,
        nodes=world.nodes,
        is_first_on_node=world.local_rank == 0,
        is_rank_zero=zero,
        store=world.side_channel(),
        sink=trackers.monitor,
        on_event=trackers.event,
        gpus_in_use=0 if config.device == "cpu" else world.local_world_size,
    )
    if zero:
        stop.watch(run.stop)
    job = Job(world, run, console, trackers, stop, monitor.gpu_percent, attempt)
    summary: dict[str, object] = {}
    slow = f"{run.path} does not answer: the end of the run waits for its storage"
    try:
        monitor.start()
        outcome = _train(config, job, on_start)
        if zero:
            with saying_if_slow(console.warn, slow):
                summary = close_run(outcome, job, seconds=time.time() - started)
    finally:
        stop.unwatch()
        if zero:
            # One that came after another request is answered by this end, too; it must not stop the next attempt.
            with suppress(OSError), saying_if_slow(console.warn, slow):
                run.guard()
                run.stop.unlink(missing_ok=True)
        monitor.stop()
        trackers.finish(summary)
        console.close()
    if zero:
        console.summary(_last_lines(outcome, summary, run, trackers.hints()))
    return 0 if outcome.finished else STOPPED


def _train(config: Config, job: Job, on_start: Callable[[], None]) -> Outcome:
    with agreed(config.precision, job.world).matmuls():
        if config.debug and not job.run.checkpoints.exists():
            train(config, job, stop_after=_DEBUG_STEPS // 2)
            job.console.say("debug: train, checkpoint and stop worked; now resume, train, validate")
        return train(config, job, on_start=lambda progress: on_start())


def close_run(outcome: Outcome, job: Job, *, seconds: float) -> dict[str, object]:
    """Writes the results and the final state; returns the summary.

    Args:
        outcome: how the training ended.
        job: its surroundings.
        seconds: since the launch of the job.
    """
    run, progress = job.run, outcome.progress
    run.guard()
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        # What came before a restart is among the earlier attempts', as far as it was kept.
        seconds = min(seconds, process_age_s())
    summary = results.summarise(outcome, seconds=outcome.earlier_s + seconds)
    results.write_classes(run, outcome.parts.splits.classes)
    if outcome.finished:
        write_json(run.summary, summary)
    state = "finished" if outcome.finished else "preempted" if outcome.by_request else "stopped"
    epoch = outcome.parts.plan.share(progress.step - 1).epoch + 1 if progress.step else 0
    run.update_status(
        state=state,
        step=progress.step,
        total_steps=outcome.parts.total_steps,
        epoch=epoch,
        best_accuracy=progress.best.accuracy if progress.best.step else None,
        eta_s=0.0 if outcome.finished else None,
    )
    return summary


def _last_lines(outcome: Outcome, summary: dict[str, object], run: RunDir, hints: list[str]) -> list[str]:
    if not outcome.finished:
        return results.stopping_lines(outcome.progress.step, run, sys.argv, os.environ)
    skipped = len({row.get("path") for row in read_json_lines(run.skipped_images)})
    return results.closing_lines(summary, run, outcome.parts.config, hints=hints, skipped=skipped)


def micro_batch(config: Config) -> int:
    """The most samples that this worker takes at once."""
    share = -(-config.global_batch_size // int(os.environ.get("WORLD_SIZE", "1")))
    return min(config.micro_batch_size or share, share)
