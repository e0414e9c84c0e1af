"""What one attempt, job or rank knows is not taken for what another one knows."""

import contextlib
import errno
import io
import itertools
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from tests.numerics import runs
from tests.trainer_command import DIGITS, TRAINER, succeed
from tests.workers import alone, run_workers
from trainer import checkpoint, worker
from trainer.config import Config, EvaluateConfig, ModelConfig, compose
from trainer.distributed import World
from trainer.errors import TrainingError, UnfitError
from trainer.run import opening
from trainer.run.lease import LeaseLost
from trainer.run.rows import append_json_line, read_json_lines
from trainer.rundir import RunDir, read_json
from trainer.stop import StopRequest
from trainer.terminal.console import LineConsole
from trainer.tracking import NullTrackers, jsonl, open_trackers
from trainer.train import train
from trainer.training import keeper
from trainer.training.job import Job
from trainer.training.recorder import Interval, Recorder


def train_in(world: World, folder: Path, config: Config, stop: StopRequest, stop_after: int | None = None) -> int:
    folder.mkdir(exist_ok=True)
    console = LineConsole((folder / f"said-{world.rank}").open("a"), None, clock=time.monotonic)
    job = Job(world, RunDir(folder), console, NullTrackers(), stop, lambda: None)
    return train(config, job, stop_after=stop_after).progress.step


def test_the_end_that_hung_storage_may_force_is_called_off_with_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "_LEAVE_S", 3600.0)

    def hangs(config: Config) -> Config:
        keeper._end_anyway("the storage does not answer")
        raise TrainingError("the storage does not answer", "")

    monkeypatch.setattr(worker, "prepare", hangs)
    assert worker.work(compose([*DIGITS]), StopRequest(), started=time.time()) == 1
    ends = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    assert all(end.finished.is_set() for end in ends if end.interval == 3600.0)


def slow_to_save_on_rank_one(world: World, folder: Path) -> int:
    keeper.Keeper.last_save_s = property(lambda self: 1e6 * world.rank)  # type: ignore[assignment,method-assign]
    stop = StopRequest()
    stop.end_by(time.time() + 1000)
    return train_in(world, folder, runs.configuration([], epochs=1, evaluate=EvaluateConfig(every=7)), stop)


def test_rank_zero_alone_judges_whether_max_time_is_near(tmp_path: Path) -> None:
    assert run_workers(2, slow_to_save_on_rank_one, tmp_path / "run") == [26, 26]


def test_a_rate_counts_the_samples_of_its_own_attempt_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, seen = runs.configuration([], epochs=1, log_every_steps=20, evaluate=EvaluateConfig(every="end")), []
    record: Any = Recorder.interval

    def interval(self: Recorder, interval: Interval) -> None:
        seen.append((interval.step, interval.new_samples))
        record(self, interval)

    monkeypatch.setattr(Recorder, "interval", interval)
    train_in(alone(), tmp_path / "run", config, StopRequest(), stop_after=11)
    run = RunDir(tmp_path / "run")
    # As it is when it was killed after an earlier one, in the middle of an interval.
    shutil.rmtree(run.checkpoint(11))
    resumed = checkpoint.steps(run)[-1]
    train_in(alone(), run.path, config, StopRequest(), stop_after=20)
    assert seen[-1] == (20, (20 - resumed) * runs.BATCH)


def test_rows_of_steps_outlast_a_full_disk_as_those_of_metrics_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = itertools.count()

    def full_for_a_while(path: Path, row: Any) -> None:
        if 3 < next(calls) < 12:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        append_json_line(path, row)

    monkeypatch.setattr(jsonl, "append_json_line", full_for_a_while)
    monkeypatch.setattr(jsonl, "_RETRY_S", 0.0)
    run = RunDir(tmp_path / "run")
    error, said = runs.train_in(alone(), run.path, runs.configuration([], epochs=2))
    assert error is None, said
    assert "was not recorded" not in said
    rows = list(read_json_lines(run.steps))
    assert [row["step"] for row in rows] == [r["step"] for r in read_json_lines(run.metrics) if "train/loss" in r]
    assert [row["first"] for row in rows] == [1, *(row["step"] + 1 for row in rows[:-1])]


def fenced() -> None:
    """Guards a run that another job has taken over."""
    raise LeaseLost(errno.ESTALE, "process 7 on there has taken this run over")


def test_a_job_that_has_lost_the_run_appends_no_rows(tmp_path: Path) -> None:
    run, said = RunDir(tmp_path), io.StringIO()
    config = runs.configuration([], epochs=1)
    console = LineConsole(said, None, clock=time.monotonic)
    trackers = open_trackers(config, run, attempt=0, warn=console.warn)

    run.guard = fenced
    with pytest.raises(TrainingError):
        train(config, Job(alone(), run, console, trackers, StopRequest(), lambda: None))
    assert "process 7 on there" in said.getvalue()
    assert not list(read_json_lines(run.metrics))
    assert not list(read_json_lines(run.steps))
    assert not list(read_json_lines(run.events))


def test_a_stop_file_that_comes_after_another_request_does_not_stop_the_next_attempt(tmp_path: Path) -> None:
    class Asked(StopRequest):
        def watch(self, file: Path) -> None:
            self.ask("asked to stop (SIGTERM)")
            file.touch()
            super().watch(file)

    config = compose([*DIGITS, f"run.dir={tmp_path}", "run.name=x", "max_steps=20"])
    assert worker.work(config, Asked(), started=time.time()) == worker.STOPPED
    run = RunDir(tmp_path / "x")
    assert run.read_status()["state"] == "preempted"
    assert not run.stop.exists()


def test_a_status_that_comes_late_does_not_revive_a_run_that_has_ended(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.update_status(state="failed")
    train_in(alone(), run.path, runs.configuration([], epochs=1), StopRequest(), stop_after=11)
    assert run.read_status()["step"] > 0
    assert run.read_status()["state"] == "failed"


def test_a_run_whose_checkpoints_are_gone_is_not_taken_for_a_new_one_whatever_is_left_of_its_status(
    tmp_path: Path,
) -> None:
    run, config = RunDir(tmp_path / "run"), runs.configuration([], epochs=1)
    assert runs.train_in(alone(), run.path, config)[0] is None
    run.checkpoints.rename(tmp_path / "elsewhere")
    for status in (run.status.read_text(), "{"):
        run.status.write_text(status)
        before = run.metrics.read_bytes()
        error, _ = runs.train_in(alone(), run.path, config)
        assert isinstance(error, UnfitError)
        assert "this run has saved step-00000026, and there is no checkpoint in" in str(error)
        assert run.metrics.read_bytes() == before
    # Asked to start over, and ended before it has saved anything: now nothing is missing.
    run.update_status(latest="step-00000026")
    accepted = replace(config, run=replace(config.run, accept_changes=True))
    with pytest.raises(KeyboardInterrupt):
        runs.train_in(alone(), run.path, replace(accepted, model=replace(config.model, _target_=f"{__name__}.Ended")))
    assert run.read_status()["latest"] is None
    assert runs.train_in(alone(), run.path, config)[0] is None


class Ended(runs.Stretching):
    """As if somebody pressed Ctrl-C in the first step."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [("optim.lr=0.02", 2, "optim.lr was 0.02 and is now 0.1"), ("log_every_steps=3", 0, "run r is finished")],
)
def test_a_job_that_was_overtaken_by_another_finds_what_that_one_left(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: str,
    code: int,
    says: str,
) -> None:
    """Both find the run new; the other one has it first, and ends, while this one waits for it."""
    arguments = [*DIGITS, "max_steps=4", f"run.dir={tmp_path}", "run.name=r"]
    held = opening.held

    @contextlib.contextmanager
    def waits(*arguments_of_held: Any) -> Iterator[None]:
        succeed(TRAINER, *arguments, change)
        with held(*arguments_of_held):
            yield

    monkeypatch.setattr(opening, "held", waits)
    assert worker.work(compose(arguments), StopRequest(), started=time.time()) == code
    assert says in capsys.readouterr().err
    run = RunDir(tmp_path / "r")
    assert run.read_status()["state"] == "finished"
    assert len(read_json(run.job)["attempts"]) == 1


def test_a_job_that_has_lost_the_run_leaves_no_results_in_it(tmp_path: Path) -> None:
    config, run = runs.configuration([], epochs=1), RunDir(tmp_path)
    job = Job(
        alone(),
        run,
        LineConsole(io.StringIO(), None, clock=time.monotonic),
        NullTrackers(),
        StopRequest(),
        lambda: None,
    )
    outcome = train(config, job)
    run.guard = fenced
    with pytest.raises(LeaseLost):
        worker.close_run(outcome, job, seconds=1.0)
    assert not run.summary.exists()
    assert not run.classes.exists()


class Remembering(runs.Stretching):
    """Keeps the running mean that each step of this process has begun with."""

    began_with: ClassVar[list[torch.Tensor]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            mean = self.layers[1].running_mean
            assert isinstance(mean, torch.Tensor)
            self.began_with.append(mean.clone())
        return super().forward(images)


def attempt_of(world: World, folder: Path, steps: int) -> int:
    model = ModelConfig(_target_="tests.run.test_attempts.Remembering")
    return train_in(world, folder, runs.configuration([], model=model), StopRequest(), stop_after=steps)


def test_a_worker_that_was_not_there_before_begins_with_the_mean_of_the_running_statistics(tmp_path: Path) -> None:
    assert run_workers(2, attempt_of, tmp_path, 4) == [4, 4]
    rows = checkpoint.load(RunDir(tmp_path).checkpoint(4)).tensors["each_rank.layers.1.running_mean"]
    assert not torch.equal(rows[0], rows[1])
    Remembering.began_with.clear()
    assert attempt_of(alone(), tmp_path, 5) == 5
    assert torch.allclose(Remembering.began_with[0], rows.mean(0), rtol=1e-6, atol=0)
