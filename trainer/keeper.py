"""When a checkpoint is due, and what is kept with it: the state of the run, the latest and the best weights."""

import time
from collections.abc import Callable

from trainer import checkpoint
from trainer.assembly import Parts
from trainer.distributed import averaged_statistics
from trainer.errors import TrainingError
from trainer.job import Job
from trainer.recorder import Recorder
from trainer.state import Progress, snapshot

_SECONDS_BETWEEN_CHECKPOINTS = 600
_SLOW_DISK_BYTES_PER_S = 50e6


class Keeper:
    """Writes checkpoints and weights; where that fails the run goes on.

    Args:
        parts: what is trained.
        job: the surroundings.
        progress: where the run stands.
        recorder: who is told; rank 0's, None on the others.

    Attributes:
        save_s: seconds that the last save took; before the first, what a slow disk would need.
    """

    def __init__(self, parts: Parts, job: Job, progress: Progress, recorder: Recorder | None) -> None:
        self._parts, self._job, self._progress, self._recorder = parts, job, progress, recorder
        self._options = parts.config.checkpoint
        self._saved_step = -1
        self._saved = time.monotonic()
        self._error: str | None = None
        self.save_s = _expected_save_s(parts)

    def is_due(self, *, evaluates: bool) -> bool:
        """Whether a checkpoint is due after this step; every rank finds the same.

        Args:
            evaluates: there is an evaluation after this step.
        """
        every = self._options.every_steps
        return evaluates if every is None else self._progress.step % every == 0

    def wants_save(self) -> bool:
        """Whether this rank finds that the last checkpoint was long ago; the ranks must agree before one is written."""
        late = time.monotonic() - self._saved > _SECONDS_BETWEEN_CHECKPOINTS
        return self._job.world.is_rank_zero and self._options.every_steps is None and late

    def save(self, open_interval: dict[str, float] | None) -> None:
        """Writes the latest weights and a checkpoint; all ranks must call it.

        Args:
            open_interval: the sums of an interval that has no row of metrics yet.
        """
        started = time.perf_counter()
        self._progress.open_interval = open_interval
        saved = snapshot(self._parts, self._progress)
        weights = {**self._parts.model.state_dict(), **averaged_statistics(self._parts.model, self._job.world)}
        if self._recorder is not None:
            run, step = self._job.run, self._progress.step
            self._recorder.flush()

            def write() -> None:
                # The weights first: a run that ends in between is trained again up to here, and they with it.
                checkpoint.save_weights(run.weights("last"), weights)
                checkpoint.save(run.checkpoint(step), saved)
                checkpoint.delete_old(run, self._options.keep, best=self._progress.best.step)

            self._error = self._write(f"the checkpoint of step {step:,}", write)
            if self._error is None:
                best = run.checkpoint(self._progress.best.step)
                run.update_status(latest=run.checkpoint(step).name, best=best.name if best.exists() else None)
                self._recorder.event(event="checkpoint", step=step, seconds=time.perf_counter() - started)
        self._saved_step = self._progress.step
        self._saved, self.save_s = time.monotonic(), time.perf_counter() - started

    def keep_best(self) -> None:
        """Writes the model as the best so far; rank 0's alone."""
        run, state = self._job.run, self._parts.model.state_dict()
        self._write("the best weights", lambda: checkpoint.save_weights(run.weights("best"), state))

    def needs_save(self) -> bool:
        """Whether this step has no checkpoint yet, or could not be written; all ranks must call it."""
        # Rank 0 alone knows whether its writing went well, but all must join in another try.
        failed = self._job.world.from_rank_zero(self._error)
        return self._saved_step != self._progress.step or failed is not None

    def finish(self) -> None:
        """Checks that the last checkpoint was written; all ranks must call it.

        Raises:
            TrainingError: it was not.
        """
        if error := self._job.world.from_rank_zero(self._error):
            raise TrainingError(
                f"the checkpoint of step {self._progress.step:,} could not be written: {error}",
                "free some space and run the same command again; it goes on from the checkpoint before",
            )

    def _write(self, what: str, write: Callable[[], None]) -> str | None:
        """Calls `write`; a full disk is told loudly and does not end the run. Returns what went wrong."""
        try:
            write()
        except OSError as error:
            reason = error.strerror or str(error)
            self._job.console.warn(f"{what} could not be written: {reason}; training goes on, free some space")
            if self._recorder is not None:
                self._recorder.event(event="write_failed", what=what, step=self._progress.step, error=reason)
            return reason
        return None


def _expected_save_s(parts: Parts) -> float:
    """Seconds that a checkpoint may take before one has been measured: weights twice and two moments of each."""
    return 4 * sum(p.numel() * p.element_size() for p in parts.model.parameters()) / _SLOW_DISK_BYTES_PER_S
