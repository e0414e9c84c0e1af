"""What happens between the steps: rows of metrics, agreement of the ranks, evaluation, checkpoints."""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from trainer.agreement import Agreement, Asked, Pending
from trainer.data.skipped import SkipWatch, refuse_loss
from trainer.evaluate.validation import EvaluationStopped, metrics_of
from trainer.heartbeat import Phase
from trainer.numerics import replicas
from trainer.numerics.figures import Figures
from trainer.numerics.replicas import Digest
from trainer.training import best_weights
from trainer.training.assembly import Parts
from trainer.training.evaluations import is_due, record
from trainer.training.fitting import check_keeps
from trainer.training.job import Job
from trainer.training.keeper import Keeper
from trainer.training.nonfinite import Trouble
from trainer.training.recorder import Interval, Recorder
from trainer.training.remedy import Remedy
from trainer.training.state import Progress
from trainer.training.step import StepClock
from trainer.wording import command, short_path

_LONGEST_INTERVAL = 10_000
"""Steps after which there is a row in any case: the figures of each are kept until then."""


class Loop:
    """Decides after every step what is due, and does it on all ranks alike.

    Args:
        parts: what is trained.
        job: the surroundings.
        progress: where the run stands; kept up to date.
    """

    def __init__(self, parts: Parts, job: Job, progress: Progress) -> None:
        self._parts, self._job, self._progress = parts, job, progress
        self._config, self._stepper, self._heart = parts.config, parts.stepper, job.heart
        self._judge = parts.judge
        self._recorder = _recorder(parts, job) if job.world.is_rank_zero else None
        self._remedy = Remedy(parts, job, progress, self._recorder)
        self._begin()
        self._keeper = Keeper(parts, job, progress, self._recorder)
        self._said_stop = self._is_begun = False
        self._digest = Digest(parts.model)
        self._compares = replicas.are_comparable(job.world, warn=job.console.warn)

    @property
    def verdict(self) -> str | None:
        """Why the evaluations so far end the run here; None: it goes on."""
        return self._judge.verdict(self._progress.best)

    def _begin(self) -> None:
        """Starts, or starts again, where the progress stands."""
        progress, config = self._progress, self._config
        self._agreement = Agreement(self._job.world, step=progress.step, most_steps=config.log_every_steps)
        opened = progress.open_interval
        self._earlier = Figures(**opened) if opened is not None else None
        self._interval_step = self._earlier.first - 1 if self._earlier is not None else progress.step
        self._timed_step = progress.step
        self._pending: list[Pending] = []
        self._stepper.records.drain()
        self._stepper.clock = StepClock()
        self._interval_started = time.perf_counter()
        self._skips = _skip_watch(self._parts)
        self._compared_step = progress.step

    def after_step(self, epoch: int, *, ends_epoch: bool, stop: bool) -> Asked:
        """Does what is due after a step.

        Args:
            epoch: the step's, from 1.
            ends_epoch: whether it was the epoch's last.
            stop: stop here, whatever is asked.

        Returns:
            What the ranks have agreed upon.

        Raises:
            TrainingError: numbers are not finite, and that ends the run; or the ranks hold different weights; or
                nothing could go on from a checkpoint of the model.
            UnfitError: most images cannot be read.
        """
        step, last = self._progress.step, self._progress.step == self._parts.total_steps
        self._heart.step(step)
        if not self._is_begun:
            # Now rather than at the first checkpoint, which may be hours away.
            self._is_begun = True
            check_keeps(self._parts.layout, self._parts.model)
        evaluates = self._parts.is_evaluated and is_due(
            self._config.evaluate.every, step, ends_epoch, self._parts.total_steps
        )
        scheduled = self._keeper.is_due()
        row = last or evaluates or stop or step % self._config.log_every_steps == 0
        row = row or step - self._interval_step >= _LONGEST_INTERVAL
        if not (row or scheduled or self._agreement.is_due(step)):
            return Asked()
        asked = self._agreement.read()
        keeps = last or evaluates or scheduled or asked.save or asked.stop or stop
        self._exchange(epoch, closes_interval=row, digests=row or keeps)
        trouble = self._remedy.judge(asked, weights=False)
        self._count_skipped(asked)
        if trouble is None and keeps:
            # What is kept or judged must be known to be finite, and the same on all ranks; these wait there anyway.
            self._compare(asked)
            asked = asked.joined_by(self._agreement.read())
            trouble = self._remedy.judge(asked, weights=True)
            self._count_skipped(asked)
        if trouble is not None:
            with self._heart.during(Phase.CHECKPOINT):
                return self._roll_back(trouble)
        self._compare(asked)
        if evaluates:
            with self._heart.during(Phase.EVALUATION):
                asked = self._evaluate(epoch, asked)
        # What was stopped is saved once, at the end.
        if (self._keeper.is_due() or asked.save) and not asked.stop:
            self._save()
        return replace(self._said(asked), stop=asked.stop or stop)

    def catch_up(self) -> Asked:
        """Does the evaluation that the attempt before had to break off.

        Returns:
            What the ranks have agreed upon meanwhile.
        """
        if not self._progress.pending_evaluation:
            return Asked()
        with self._heart.during(Phase.EVALUATION):
            return self._said(self._evaluate(self._progress.pending_evaluation, Asked()))

    def finish(self) -> None:
        """Leaves a checkpoint and the weights of the last step, and waits until every row is written.

        Raises:
            TrainingError: the checkpoint could not be written.
        """
        started = time.perf_counter()
        with self._heart.during(Phase.CHECKPOINT):
            self._keeper.finish(self._open_interval())
        self._book("checkpoint", started)
        self._heart.enter(Phase.END)
        if self._recorder is not None:
            self._recorder.close()

    def abandon(self) -> None:
        """Writes what can be written; what the failure took along is not worth a second message."""
        self._heart.enter(Phase.END)
        self._keeper.abandon()
        if self._recorder is not None:
            self._recorder.close(quiet=True)

    def _exchange(self, epoch: int, *, closes_interval: bool, digests: bool) -> None:
        """Exchanges wishes with the other ranks; at the end of an interval its row is recorded, too."""
        now, stepper, step = time.perf_counter(), self._stepper, self._progress.step
        is_asked, is_late = self._wishes()
        pending = self._agreement.start(
            stepper.records.drain(),
            step=step,
            asked=is_asked,
            late=is_late,
            save=self._keeper.wants_save(),
            digest=self._digest() if digests else None,
        )
        self._pending.append(pending)
        if not closes_interval:
            return
        clock, stepper.clock = stepper.clock, StepClock()
        seconds = now - self._interval_started
        for what, spent in {**asdict(clock), "steps": seconds}.items():
            self._progress.spend(what, spent)
        self._record(epoch, seconds, clock)
        self._interval_step = self._timed_step = step
        self._interval_started = time.perf_counter()
        self._earlier, self._pending = None, []

    def _record(self, epoch: int, seconds: float, clock: StepClock) -> None:
        if self._recorder is None:
            return
        plan = self._parts.plan
        samples = plan.samples_before(self._progress.step)
        self._recorder.interval(
            Interval(
                step=self._progress.step,
                epoch=epoch,
                samples=samples,
                new_samples=samples - plan.samples_before(self._timed_step),
                seconds=seconds,
                clock=clock,
                lr=self._stepper.optimizer.param_groups[0]["lr"],
                figures=self._figures(),
                digests=self._pending[-1].digests,
                samples_of=lambda step: plan.share(step - 1).samples,
                when=time.time(),
            )
        )

    def _figures(self) -> Callable[[], Figures]:
        """Gives the open interval's figures as they are now, and waits for them; may be called by another thread."""
        earlier, pending = self._earlier, tuple(self._pending)

        def figures() -> Figures:
            known = [earlier] if earlier is not None else []
            return Figures.joined([*known, *(part.figures() for part in pending)])

        return figures

    def _compare(self, asked: Asked) -> None:
        """Ends the run when the ranks' weights are not the same any more."""
        if not self._compares or not asked.digests or asked.figures is None:
            return
        step = asked.figures.first + len(asked.figures.losses) - 1
        details = replicas.difference(asked.digests, self._job.world, since=self._compared_step, step=step)
        if details is not None:
            if self._recorder is not None:
                self._recorder.event(event="replicas_differ", **details)
            raise replicas.error(details, replay=f"{command('paceline')} replay {short_path(self._job.run.path)}")
        self._compared_step = step

    def _roll_back(self, trouble: Trouble) -> Asked:
        self._keeper.settle()
        self._keeper.forget()
        self._remedy.roll_back(trouble)
        best_weights.reconcile(self._parts, self._progress)
        self._begin()
        return Asked(rolled_back=True)

    def _count_skipped(self, asked: Asked) -> None:
        if self._skips is not None and asked.figures is not None:
            self._skips.check(asked.figures)

    def _is_late(self) -> bool:
        # Rank 0 alone knows how long a save takes.
        if not self._job.world.is_rank_zero:
            return False
        # An evaluation is broken off, so it needs no time of its own.
        return self._job.stop.is_late(2 * max(1.0, self._agreement.step_s) + self._keeper.last_save_s)

    def _said(self, asked: Asked) -> Asked:
        if asked.stop:
            self._say_stop("another worker was asked to stop" if asked.by_request else "max_time is near")
        return asked

    def _wishes(self) -> tuple[bool, bool]:
        # Asked in an evaluation, too: what goes on there shows here.
        self._heart.beat()
        if self._job.stop.is_asked:
            self._say_stop(self._job.stop.reason)
        return self._job.stop.is_asked, self._is_late()

    def _say_stop(self, why: str) -> None:
        if not self._said_stop:
            self._said_stop = True
            self._job.console.say(f"{why}: stopping at one of the next steps, with a checkpoint")

    def _evaluate(self, epoch: int, asked: Asked) -> Asked:
        """Evaluates on all ranks, and keeps the weights when they are the best so far.

        Where the ranks must stop, now or on the way, the evaluation is left to the next attempt.

        Returns:
            What the ranks have agreed upon.
        """
        started = time.perf_counter()
        progress = self._progress
        progress.pending_evaluation = epoch
        if asked.stop:
            return asked
        try:
            scores = self._parts.evaluate(self._wishes)
        except EvaluationStopped as stopped:
            self._book("evaluation", started)
            return stopped.asked
        counted = next(iter(scores.values())).samples
        if self._skips is not None or not counted:
            refuse_loss(len(self._parts.splits.val), counted, what="validation images")
        progress.pending_evaluation = 0
        progress.metrics = metrics_of(scores)
        best = self._judge.judge(progress.best, progress.metrics, step=progress.step, epoch=epoch)
        self._keeper.evaluated(self._parts.models[self._judge.kind], best=best)
        if self._recorder is not None:
            record(self._recorder, scores[self._judge.kind], self._parts, progress, epoch=epoch, best=best)
            if self.verdict is not None and progress.step < self._parts.total_steps:
                self._recorder.event(event="early_stop", step=progress.step, reason=self.verdict)
        self._book("evaluation", started)
        return asked

    def _save(self) -> None:
        started = time.perf_counter()
        with self._heart.during(Phase.CHECKPOINT):
            self._keeper.save(self._open_interval())
        self._book("checkpoint", started)

    def _open_interval(self) -> dict[str, Any] | None:
        """The figures of the steps that have no row yet; they have been exchanged."""
        return None if self._interval_step == self._progress.step else asdict(self._figures()())

    def _book(self, what: str, started: float) -> None:
        spent = time.perf_counter() - started
        self._progress.spend(what, spent)
        # An interval's time is its steps' alone.
        self._interval_started += spent


def _recorder(parts: Parts, job: Job) -> Recorder:
    return Recorder(
        job.run,
        job.trackers,
        job.console,
        total_steps=parts.total_steps,
        epochs=parts.epochs,
        gpu_percent=job.gpu_percent,
        # Four steps mean nothing.
        praises=not parts.config.debug,
    )


def _skip_watch(parts: Parts) -> SkipWatch | None:
    if not parts.stepper.counts_targets:
        return None
    plan = parts.plan
    return SkipWatch(lambda step: plan.share(step - 1).samples, epoch=plan.samples)
