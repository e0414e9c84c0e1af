"""When a checkpoint is due, and what is kept with it: the state of the run, the latest and the best weights.

A save costs the training a copy of the state in memory; a thread writes it. One is under way at most: what is due
meanwhile is saved at the first occasion after it, and the last step of the run waits for it.
"""

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from trainer import checkpoint, commit
from trainer.age import process_age_s
from trainer.checkpoint import BackgroundWriter, Checkpoint, Image, Schedule
from trainer.errors import TrainingError
from trainer.rundir import RunDir
from trainer.training import best_weights
from trainer.training.assembly import Parts
from trainer.training.job import Job
from trainer.training.recorder import Recorder
from trainer.training.state import Progress, snapshot, weights_in
from trainer.wording import duration, size

_TURN_S = 5.0
_LEAVE_S = 30.0
_FILES_OF_A_SAVE = 4
_SLOW_DISK_BYTES_PER_S = 50e6


class _Forgotten(Exception):
    """The run has gone back to before what was about to be put in place."""


class Keeper:
    """Writes checkpoints and weights beside the training; where that fails, the run goes on and it is tried again.

    Args:
        parts: what is trained.
        job: the surroundings.
        progress: where the run stands.
        recorder: who is told; rank 0's, None on the others.
    """

    def __init__(self, parts: Parts, job: Job, progress: Progress, recorder: Recorder | None) -> None:
        self._parts, self._job, self._progress, self._recorder = parts, job, progress, recorder
        self._options = parts.config.checkpoint
        self._schedule = Schedule(
            self._options,
            world_size=job.world.world_size,
            restart_s=process_age_s(),
            # Not from the training's thread: a log on a storage that hangs would hold it up.
            say=recorder.say if recorder is not None else job.console.say,
        )
        self._evaluation_due = False
        if recorder is not None and (lack := _shortage(job.run, _expected_bytes(parts), self._options.keep)):
            job.console.warn(lack)
        self._writer = self._background("the checkpoint")
        self._best_writer = self._background("the best weights")
        self._waiting_best: tuple[int, dict[str, torch.Tensor]] | None = None
        self._best_turn = threading.Lock()
        self._naming = threading.Lock()
        self._forgotten = threading.Event()
        self._taken_step = -1
        self._postponed = self._wished = False

    @property
    def last_save_s(self) -> float:
        """Seconds that a last save may take, after the one under way; before the first, what a slow disk needs.

        Rank 0 writes, and so it alone can know.
        """
        return (2 if self._writer.is_busy else 1) * (self._writer.seconds or _expected_save_s(self._parts))

    def is_due(self) -> bool:
        """Whether a checkpoint is due after this step and what was evaluated at it; every rank finds the same."""
        return self._evaluation_due or self._schedule.is_due_at(self._progress.step)

    def wants_save(self) -> bool:
        """Whether a checkpoint should be taken soon; to be asked every now and then, and agreed upon by all ranks."""
        if self._recorder is None:
            return False
        self._look_after_best()
        if self._wished or not self._writer.is_ready:
            return False
        self._wished = self._postponed or self._writer.wants_retry or self._schedule.is_late()
        return self._wished

    def save(self, open_interval: dict[str, Any] | None, *, last: bool = False) -> None:
        """Takes a checkpoint and the latest weights; all ranks must call it.

        Args:
            open_interval: the `Figures` of the steps that have no row of metrics yet.
            last: the run ends here; however recent a failure is, it is tried again.
        """
        started = time.perf_counter()
        self._progress.open_interval = open_interval
        taken = snapshot(self._parts, self._progress)
        self._wished = self._evaluation_due = False
        if self._recorder is None:
            return
        ready = not self._writer.is_busy if last else self._writer.is_ready
        self._postponed = not ready
        if ready:
            self._write(taken, self._recorder, started)
            self._taken_step = self._progress.step
            self._schedule.saved(time.perf_counter() - started)

    def evaluated(self, model: nn.Module, *, best: bool) -> None:
        """Takes note of an evaluation, and keeps the model where it is the best so far; all ranks must call it.

        Args:
            model: whose weights would be kept.
            best: it was the best so far.
        """
        self._evaluation_due = self._schedule.is_due_after_evaluation(best=best)
        if not best or self._recorder is None:
            return
        state = model.state_dict()
        with self._best_turn:
            if not self._best_writer.is_ready:
                taken = {name: tensor.detach().clone() for name, tensor in state.items()}
                self._waiting_best = self._progress.step, taken
            else:
                # What was still waiting is not the best any more.
                self._waiting_best = None
                self._write_best(self._progress.step, state)

    def forget(self) -> None:
        """Lets go of what is not written yet, since the run goes back to before it; first, whatever it goes back to."""
        self._taken_step = -1
        with self._best_turn:
            self._waiting_best = None
            # What is overdue ends at any time: before this, or with nothing done.
            with self._naming:
                self._forgotten.set()
            self._forgotten = threading.Event()
            self._best_writer = self._background("the best weights")

    def finish(self, open_interval: dict[str, Any] | None) -> None:
        """Leaves a checkpoint of this step, and waits until all is written; all ranks must call it.

        Raises:
            TrainingError: it could not be written.
        """
        self.settle()
        # Rank 0 alone knows whether its writing went well, but all must join in another try.
        missing = self._taken_step != self._progress.step or self._writer.error is not None
        if self._job.world.from_rank_zero(missing):
            self.save(open_interval, last=True)
        self._look_after_best(last=True)
        self.settle()
        if problem := self._job.world.from_rank_zero(self._problem()):
            if self._writer.is_busy or self._best_writer.is_busy:
                _end_anyway(problem[0])
            raise TrainingError(*problem)

    def abandon(self) -> None:
        """Lets what is under way come to its end, if that is soon."""
        self._writer.wait(_TURN_S)

    def settle(self) -> None:
        """Waits, all ranks together, until nothing is being written; what is overdue is not waited for."""
        # Called where the training ends or goes back: a wish on its way to the others is lost there.
        self._wished = False
        writers, turns = (self._writer, self._best_writer), 0
        while True:
            self._look_after_best()
            writing = any(writer.is_busy and not writer.is_overdue for writer in writers)
            # In turns: a collective of the other ranks would time out before a slow disk is done.
            if not self._job.world.from_rank_zero(writing):
                return
            if turns == 1 and (rest := max(writer.overdue_in_s for writer in writers)):
                self._job.console.say(f"the storage is slow: waiting for the save under way, at most {duration(rest)}")
            turns += 1
            self._job.heart.beat()
            for writer in writers:
                writer.wait(_TURN_S)

    def _problem(self) -> tuple[str, str] | None:
        step = self._progress.step
        for what, writer in ((f"the checkpoint of step {step:,}", self._writer), ("best weights", self._best_writer)):
            if writer.is_busy:
                return (
                    f"{what} could not be written: the storage does not answer",
                    "mend the storage, and run the same command again; it goes on from the newest checkpoint",
                )
            if writer.error is not None:
                return (
                    f"{what} could not be written: {writer.error}",
                    "make room or mend the storage, and run the same command again: it goes on from the one before",
                )
        return None

    def _write(self, taken: Checkpoint, recorder: Recorder, started: float) -> None:
        run, step, best_step = self._job.run, self._progress.step, self._progress.best.step
        # Text, here and now: nothing that changes later can leak in.
        state, guard = json.dumps(taken.state).encode(), self._guard()
        weights = {run.weights("last"): weights_in(taken.tensors)}
        if self._parts.ema is not None:
            weights[run.weights("last_ema")] = weights_in(taken.tensors, ema=True)

        def write(image: Image) -> None:
            stall = time.perf_counter() - started
            # No checkpoint is ahead of its metrics.
            recorder.flush()
            for path in (run.metrics, run.steps):
                with suppress(FileNotFoundError):
                    commit.sync_file(path)
            self._await_best()
            commit.sync_ancestors(run.path)
            try:
                # The weights first: a run that ends in between is trained again up to here, and they with it.
                for path, names in weights.items():
                    commit.replace_file(path, image.part(names), guard=guard, turn=self._naming)
                checkpoint.write(run.checkpoint(step), image, state, guard=guard, turn=self._naming)
            except _Forgotten:
                return
            checkpoint.prove(run, step)
            of_best = run.checkpoint(best_step)
            recorder.status(latest=run.checkpoint(step).name, best=of_best.name if of_best.exists() else None)
            recorder.event(
                event="checkpoint",
                step=step,
                seconds=time.perf_counter() - started,
                stall_seconds=stall,
                bytes=image.nbytes,
            )
            self._delete_old(step, best_step)

        self._writer.start(taken.tensors, write)

    def _delete_old(self, step: int, best_step: int) -> None:
        keep, keep_every = self._options.keep, self._options.keep_every
        try:
            checkpoint.delete_old(self._job.run, verified=step, keep=keep, keep_every=keep_every, best=best_step)
        except OSError as error:
            self._job.console.warn(f"an old checkpoint could not be deleted: {error.strerror} ({error.filename})")

    def _look_after_best(self, *, last: bool = False) -> None:
        """Writes the best weights that wait for it, or tries again; `last`: however recent a failure is."""
        with self._best_turn:
            if self._best_writer.is_busy or not (last or self._best_writer.is_ready):
                return
            if self._waiting_best is not None:
                waiting, self._waiting_best = self._waiting_best, None
                self._write_best(*waiting)
            elif self._best_writer.error is not None:
                self._best_writer.again()

    def _await_best(self) -> None:
        """Waits in the writer's thread for the best weights: a run that goes on does not write those before it."""
        for _ in range(2):
            while self._best_writer.is_busy and not self._best_writer.is_overdue:
                self._best_writer.wait(_TURN_S)
            self._look_after_best()

    def _write_best(self, step: int, state: dict[str, torch.Tensor]) -> None:
        run, names, guard = self._job.run, {name: name for name in state}, self._guard()

        def write(image: Image) -> None:
            pieces = image.part(names, best_weights.labelled(step))
            with suppress(_Forgotten):
                commit.replace_file(run.weights("best"), pieces, guard=guard, turn=self._naming)

        self._best_writer.start(state, write)

    def _guard(self) -> Callable[[], None]:
        """Asked before what is taken now is put in place: it may be too late for that."""
        forgotten, run = self._forgotten, self._job.run

        def guard() -> None:
            run.guard()
            if forgotten.is_set():
                raise _Forgotten

        return guard

    def _background(self, what: str) -> BackgroundWriter:
        def failed(reason: str, again_s: float) -> None:
            self._job.console.warn(
                f"{what} could not be written: {reason}; training goes on, and it is tried again in {duration(again_s)}"
            )
            self._tell("write_failed", what=what, error=reason, retry_seconds=again_s)

        def overdue(seconds: float) -> None:
            self._job.console.warn(
                f"{what} has been under way for {duration(seconds)}: the storage does not answer; training goes on"
            )
            self._tell("write_overdue", what=what, seconds=seconds)

        return BackgroundWriter(on_failure=failed, on_overdue=overdue)

    def _tell(self, event: str, **fields: object) -> None:
        if self._recorder is not None:
            self._recorder.event(event=event, step=self._progress.step, **fields)


def call_off_end() -> None:
    """Lets the process live on, since its job has come to an end by itself: a sweep runs another one in it."""
    while _ends:
        _ends.pop().cancel()


_ends: list[threading.Timer] = []


def _end_anyway(problem: str) -> None:
    """Sees to it that the process ends, since all that is left to do may wait for the same storage."""

    def end() -> None:
        os.write(2, f"error: {problem}\n".encode())
        os._exit(TrainingError.exit_code)

    watch = threading.Timer(_LEAVE_S, end)
    watch.daemon = True
    _ends.append(watch)
    watch.start()


def _expected_bytes(parts: Parts) -> int:
    """What a save may write, before one has been measured: weights twice and two moments of each."""
    return 4 * sum(p.numel() * p.element_size() for p in parts.model.parameters())


def _expected_save_s(parts: Parts) -> float:
    return _expected_bytes(parts) / _SLOW_DISK_BYTES_PER_S


def _shortage(run: RunDir, expected: int, keep: int) -> str | None:
    """What the disk lacks for the checkpoints to come, which is better said now than in some hours; None: nothing."""
    disk = os.statvfs(run.path)
    free, kept = disk.f_bavail * disk.f_frsize, len(checkpoint.steps(run))
    # An old one goes only when a newer one is whole.
    needed = expected * (max(0, keep - kept) + 1)
    if free < needed:
        return f"{run.path} has {size(free)} left, and checkpoints may take {size(needed)} more: make room"
    if disk.f_files and disk.f_favail < _FILES_OF_A_SAVE * (keep + 1):
        return f"{run.path} has room for {disk.f_favail} more files only (inodes), too few for checkpoints: make room"
    return None
