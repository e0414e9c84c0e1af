"""Rows of metrics, status and progress, written beside the training by a thread of rank 0."""

import errno
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from trainer.numerics.figures import Figures
from trainer.numerics.spikes import Spikes
from trainer.run.lease import LeaseLost
from trainer.run.patience import saying_if_slow
from trainer.rundir import RunDir
from trainer.terminal.console import Console, Progress
from trainer.tracking import Trackers
from trainer.tracking.jsonl import JsonlTracker
from trainer.training.step import StepClock
from trainer.wording import command, short_path, significant, span

_STATUS_PERIOD_S = 1.0
_CLOSE_LIMIT_S = 30.0
_SHOWN = ("val/accuracy", "val/ema_accuracy", "val/loss")


@dataclass(frozen=True, slots=True)
class Interval:
    """What rank 0 knows about the steps since the last row.

    Attributes:
        step: steps taken in the run.
        epoch: the epoch of the last of them, from 1.
        samples: samples seen in the run, over all ranks.
        new_samples: of these, the ones of this attempt in this interval.
        seconds: wall time of this attempt in the interval, without evaluation and checkpoints.
        clock: host seconds in this interval by what they were spent on.
        lr: learning rate of the last step.
        figures: gives those of its steps over all ranks, and waits for them.
        digests: gives every rank's digest of its weights after them, and waits for them.
        samples_of: samples that were dealt to a step, counted from 1.
        when: UNIX time, seconds.
    """

    step: int
    epoch: int
    samples: int
    new_samples: int
    seconds: float
    clock: StepClock
    lr: float
    figures: Callable[[], Figures]
    digests: Callable[[], list[str]]
    samples_of: Callable[[int], int]
    when: float


class Recorder:
    """Turns intervals into rows. Rank 0's only; nothing it does can delay or fail a step.

    Args:
        run: the run directory.
        trackers: who is told.
        console: where progress is shown.
        total_steps: steps of the run.
        epochs: epochs of the run.
        gpu_percent: the GPUs' latest mean utilisation, None without a GPU.
        praises: say of an evaluation that it is the best so far.
    """

    def __init__(
        self,
        run: RunDir,
        trackers: Trackers,
        console: Console,
        *,
        total_steps: int,
        epochs: int,
        gpu_percent: Callable[[], float | None],
        praises: bool = True,
    ) -> None:
        self._run = run
        self._trackers = trackers
        self._console = console
        self._total_steps = total_steps
        self._epochs = epochs
        self._gpu_percent = gpu_percent
        self._praises = praises
        # No tracker's affair, but its rows are to outlast a full disk as theirs do.
        self._steps = JsonlTracker(run, self._warn)
        self._status_written = 0.0
        self._spikes = Spikes()
        self._told: set[str] = set()
        self._quiet = False
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="recorder", daemon=True)
        self._thread.start()

    def interval(self, interval: Interval) -> None:
        """Records a row of training metrics; returns at once."""
        self._work.put(lambda: self._record(interval))

    def evaluation(
        self,
        *,
        step: int,
        epoch: int,
        ends_epoch: bool,
        samples: int,
        metrics: dict[str, float],
        best: bool,
        best_accuracy: float | None,
        write_details: Callable[[], None],
    ) -> None:
        """Records a row of validation metrics and the evaluation's details; returns at once.

        Args:
            step: steps taken in the run.
            epoch: the last of them's, from 1.
            ends_epoch: whether that epoch is over.
            samples: seen in the run.
            metrics: by full names.
            best: whether the evaluation is the best so far.
            best_accuracy: the best one's; None where there is none.
            write_details: called beside the training.
        """
        when = time.time()

        def record() -> None:
            self._refuse_if_fenced()
            self._trackers.metrics({"step": step, "epoch": epoch, "samples": samples, "time": when, **metrics})
            shown = {name: metrics[name] for name in _SHOWN if name in metrics}
            self._console.evaluation(
                step=step, epoch=epoch if ends_epoch else None, metrics=shown, best=best and self._praises
            )
            self._run.update_status(step=step, epoch=epoch, best_accuracy=best_accuracy)
            write_details()

        self._work.put(record)

    def event(self, **fields: object) -> None:
        """Records an event; returns at once."""
        row = {"time": time.time(), **fields}
        self._work.put(lambda: self._trackers.event(row))

    def supersede(self, step: int, *, evaluates_again: bool) -> None:
        """Drops what was recorded of steps beyond one, to which the run goes back; returns at once.

        In its turn: rows that are still to be written, for the disk is slow or full, are among them.
        """
        self._work.put(lambda: self._trackers.supersede(step, evaluates_again=evaluates_again))
        self._work.put(lambda: self._steps.supersede_steps(step))

    def say(self, text: str) -> None:
        """Says something on the terminal and in the log; returns at once."""
        self._work.put(lambda: self._console.say(text))

    def status(self, **fields: object) -> None:
        """Replaces fields of status.json; returns at once."""
        self._work.put(lambda: self._run.update_status(**fields))

    def flush(self) -> None:
        """Waits until all that was recorded so far is written, so that no checkpoint is ahead of its metrics.

        Raises:
            OSError: it cannot be written just now, such as on a full disk, or is not within 30 s.
        """
        written = threading.Event()
        self._work.put(written.set)
        if not written.wait(_CLOSE_LIMIT_S):
            raise OSError(errno.ETIMEDOUT, f"the rows of metrics before it were not written in {_CLOSE_LIMIT_S:.0f} s")
        self._trackers.flush()
        self._steps.flush()

    def close(self, *, quiet: bool = False) -> None:
        """Waits until everything is written, but not for ever: a hanging disk or terminal must not hold the run.

        Args:
            quiet: say nothing about what cannot be recorded any more.
        """
        self._quiet = quiet
        self._work.put(lambda: self._steps.finish({}))
        self._work.put(None)
        slow = f"{self._run.path} does not answer: the last rows of metrics wait for its storage"
        with saying_if_slow(self._warn, slow):
            self._thread.join(_CLOSE_LIMIT_S)

    def _refuse_if_fenced(self) -> None:
        """Keeps rows of a job that has lost the run out of the files of the job that has it now."""
        try:
            self._run.guard()
        except LeaseLost:
            raise
        except OSError:
            pass  # it cannot be found out just now: the rows wait in the tracker for the storage

    def _warn(self, text: str) -> None:
        if not self._quiet:
            self._console.warn(text)

    def _serve(self) -> None:
        while (task := self._work.get()) is not None:
            try:
                task()
            except Exception as error:
                kind = f"{type(error).__name__}: {error}"
                if kind not in self._told and not self._quiet:
                    self._told.add(kind)
                    self._console.warn(f"a row of metrics or the status was not recorded: {kind}")

    def _record(self, interval: Interval) -> None:
        self._refuse_if_fenced()
        figures = interval.figures()
        loss, norm = figures.mean_loss(interval.samples_of), figures.mean_norm()
        left_out = sum(map(bool, figures.skipped))
        computed = interval.new_samples - figures.passed_over(interval.samples_of)
        rate = computed / max(interval.seconds, 1e-9)
        waiting = interval.clock.data / max(interval.seconds, 1e-9)
        self._trackers.metrics(
            {
                "step": interval.step,
                "epoch": interval.epoch,
                "samples": interval.samples,
                "time": interval.when,
                "train/loss": loss,
                "train/lr": interval.lr,
                "perf/images_per_second": rate,
                "perf/data_wait_fraction": waiting,
                **({"train/gradient_norm": norm} if norm is not None else {}),
                **({"train/skipped_steps": left_out} if left_out else {}),
            }
        )
        self._look_for_spike(interval, figures)
        self._record_steps(interval, figures)
        remaining = (self._total_steps - interval.step) * interval.seconds * interval.samples
        eta = remaining / max(interval.step * interval.new_samples, 1)
        self._console.progress(
            Progress(
                step=interval.step,
                total_steps=self._total_steps,
                epoch=interval.epoch,
                epochs=self._epochs,
                loss=loss,
                images_per_second=rate,
                data_wait_fraction=waiting,
                eta_s=eta,
                gpu_percent=self._gpu_percent(),
            )
        )
        now = time.monotonic()
        if now - self._status_written >= _STATUS_PERIOD_S:
            self._status_written = now
            # Not the state: should this come late, the run's end has been written there.
            self._run.update_status(
                step=interval.step,
                total_steps=self._total_steps,
                epoch=interval.epoch,
                images_per_second=rate,
                gpu_percent=self._gpu_percent(),
                eta_s=eta,
            )

    def _record_steps(self, interval: Interval, figures: Figures) -> None:
        left_out = [figures.first + index for index, skipped in enumerate(figures.skipped) if skipped]
        losses = figures.step_losses(interval.samples_of)
        row = {"first": figures.first, "step": interval.step, "losses": losses, "digest": interval.digests()[0]}
        self._steps.steps({**row, "left_out": left_out} if left_out else row)

    def _look_for_spike(self, interval: Interval, figures: Figures) -> None:
        samples_of = interval.samples_of
        spike = self._spikes.look(figures.first, figures.step_losses(samples_of), figures.samples(samples_of))
        if spike is None:
            return
        see = f"{command('python')} -m trainer.data.order {short_path(self._run.path)} --step {spike.worst}"
        self._trackers.event(
            {
                "time": interval.when,
                "event": "loss_spike",
                "first_step": spike.first,
                "step": spike.last,
                "loss": spike.loss,
                "usual_loss": spike.usual,
                "worst_step": spike.worst,
                "worst_loss": spike.worst_loss,
                "samples": see,
            }
        )
        self._console.warn(
            f"the loss has risen from {significant(spike.usual)} to {significant(spike.loss)} in "
            f"{span(spike.first, spike.last)}, most in step {spike.worst:,} "
            f"({significant(spike.worst_loss)}); its samples: {see}"
        )
