"""One worker from its configuration to its exit code: run directory, terminal, trackers, monitor, errors."""

import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from trainer import environment, results, runname
from trainer.config import Config, TrackingConfig, check_agreement, from_yaml, to_yaml
from trainer.console import Console, open_console
from trainer.distributed import World, join
from trainer.errors import PacelineError
from trainer.monitor.sampling import Monitor
from trainer.precision import choose
from trainer.rundir import RunDir, read_json, read_json_lines, write_atomic, write_json
from trainer.stop import StopRequest, parse_duration
from trainer.tracking import NullTrackers, open_trackers
from trainer.train import Job, Outcome, train

STOPPED = 75
_DEBUG_STEPS = 4
_DEBUG_MICRO_BATCH = 8


def work(config: Config, notes: Sequence[str] = ()) -> int:
    """Trains; every error ends in a few lines, in failure.json and in an exit code.

    Args:
        config: validated.
        notes: what validation wants the user to know.
    """
    started = time.monotonic()
    console = open_console(is_rank_zero=os.environ.get("LOCAL_RANK", "0") == "0", log=None)
    run: RunDir | None = None
    try:
        config = prepare(config)
        with join(config.distributed, device=config.device) as world:
            run = world.on_rank_zero(lambda: open_run(config, world.world_size))
            if world.from_rank_zero(is_finished(run)):
                console.say(f"run {run.name} is finished; run.fresh=true starts over beside it")
                return 0
            for note in notes:
                console.say(note)
            attempt = int(os.environ.get("PACELINE_ATTEMPT", "0"))
            console = open_console(is_rank_zero=world.is_rank_zero, log=run.log(attempt, world.rank))
            return train_in(run, config, world, console, attempt=attempt, started=started)
    except Exception as error:
        return report(error, run, console)


def prepare(config: Config) -> Config:
    """Settles what follows from `debug` and `deterministic`, with torch's process-wide switches."""
    if config.debug:
        torch.autograd.set_detect_anomaly(True)
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
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not config.deterministic
    return config


def open_run(config: Config, world_size: int) -> RunDir:
    """Chooses or finds the run directory, and writes what was asked for into it.

    Raises:
        ConfigError: a run of that name was begun with another configuration.
        UnfitError: the directory cannot be written.
    """
    given = os.environ.get("PACELINE_RUN_DIR")
    if given is not None:
        return RunDir(given)
    run = RunDir(runname.create(config.run, config.recipe or config.model.name))
    if run.config.exists():
        check_agreement(from_yaml(run.config.read_text()), config, name=run.name)
    try:
        write_atomic(run.config, to_yaml(config).encode())
        write_json(run.job, {"argv": sys.argv, "world_size": world_size, "time": time.time(), "job_id": None})
    except OSError as error:
        raise runname.unwritable(run.path, error) from error
    return run


def is_finished(run: RunDir) -> bool:
    """Whether the run has nothing left to do."""
    return run.read_status().get("state") == "finished"


def train_in(run: RunDir, config: Config, world: World, console: Console, *, attempt: int, started: float) -> int:
    """Trains in a run directory and closes it; returns the exit code."""
    zero = world.is_rank_zero
    if zero:
        run.failure.unlink(missing_ok=True)
        run.update_status(state="running", attempt=attempt)
    environment.write(run, world)
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
        gpus_in_use=world.local_world_size,
    )
    stop = StopRequest(parse_duration(config.max_time) if config.max_time else None)
    stop.listen()
    job = Job(world, run, console, trackers, stop, monitor.gpu_percent)
    summary: dict[str, object] = {}
    try:
        monitor.start()
        outcome = _train(config, job)
        if zero:
            summary = close_run(outcome, job, seconds=time.monotonic() - started)
    finally:
        monitor.stop()
        trackers.finish(summary)
        console.close()
    if zero:
        console.summary(_last_lines(outcome, summary, run, trackers.hints()))
    return 0 if outcome.finished else STOPPED


def _train(config: Config, job: Job) -> Outcome:
    with choose(config.precision, job.world.device).matmuls():
        return _train_stages(config, job)


def _train_stages(config: Config, job: Job) -> Outcome:
    if config.debug and not job.run.checkpoints.exists():
        train(config, job, stop_after=_DEBUG_STEPS // 2)
        job.console.say("debug: train, checkpoint and stop worked; now resume, train, validate")
    return train(config, job)


def close_run(outcome: Outcome, job: Job, *, seconds: float) -> dict[str, object]:
    """Writes the results and the final state; returns the summary."""
    run, progress = job.run, outcome.progress
    summary = results.summarise(outcome, seconds=seconds)
    results.write_classes(run, outcome.parts.splits.classes)
    if outcome.finished:
        write_json(run.summary, summary)
    state = "finished" if outcome.finished else "stopped"
    run.update_status(state=state, step=progress.step, total_steps=outcome.parts.total_steps, eta_s=0.0)
    return summary


def _last_lines(outcome: Outcome, summary: dict[str, object], run: RunDir, hints: list[str]) -> list[str]:
    if not outcome.finished:
        return [
            f"Stopped at step {outcome.progress.step:,} with a checkpoint; the same command with "
            f"run.name={run.name} goes on from there"
        ]
    skipped = len({row.get("path") for row in read_json_lines(run.skipped_images)})
    return results.closing_lines(summary, run, outcome.parts.config, hints=hints, skipped=skipped)


def report(error: Exception, run: RunDir | None, console: Console) -> int:
    """Tells an error in a few lines and keeps the rest in failure.json; returns the exit code."""
    rank = int(os.environ.get("RANK", "0"))
    code = error.exit_code if isinstance(error, PacelineError) else 1
    problem, fix = explain(error)
    if is_echo(error):
        problem, fix = "another worker ended, and this one cannot go on alone", "the first error is that worker's"
    elif run is not None and run.path.exists():
        if rank and isinstance(error, PacelineError) and is_known(run, str(error)):
            return code
        write_failure(run, error, rank=rank, code=code, meaning=problem, advice=fix)
        fix = f"{fix}\n  traceback: {run.failure}".strip() if code == 1 else fix
    console.close()
    console.error(problem, fix)
    return code


def is_known(run: RunDir, message: str) -> bool:
    """Whether another rank tells the same error, as happens when all find the same mistake; waits a second for it."""
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        if read_json(run.failure).get("message") == message:
            return True
        time.sleep(0.05)
    return False


def is_echo(error: Exception) -> bool:
    """Whether an error only says that another worker is gone."""
    text = str(error)
    return isinstance(error, (dist.DistBackendError, dist.DistNetworkError)) or any(
        sign in text for sign in ("gloo/transport", "Connection closed by peer", "Connection reset by peer")
    )


def explain(error: Exception) -> tuple[str, str]:
    """What an exception means, and what to try."""
    if isinstance(error, PacelineError):
        return error.problem, error.fix
    if isinstance(error, torch.OutOfMemoryError):
        return f"out of GPU memory: {str(error).splitlines()[0]}", (
            "a smaller micro_batch_size (same samples, same result: accumulation follows from it)"
        )
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno} in {where.name})", ""


def write_failure(run: RunDir, error: Exception, *, rank: int, code: int, meaning: str, advice: str) -> None:
    """Writes failure.json unless another rank was first."""
    row = {
        "rank": rank,
        "host": environment.host(),
        "attempt": int(os.environ.get("PACELINE_ATTEMPT", "0")),
        "type": type(error).__name__,
        "message": str(error),
        "traceback": "".join(traceback.format_exception(error)),
        "meaning": meaning,
        "advice": advice,
        "exit_code": code,
        "time": time.time(),
    }
    if not run.failure.exists():
        write_json(run.failure, row)
    run.update_status(state="failed")
