"""A continuation that is refused leaves its run as it was."""

import io
import time
from pathlib import Path

import pytest

from launcher import runs
from launcher.ending.conclusion import Account
from launcher.ending.outcome import Outcome
from launcher.plan import JobPlan, Program
from launcher.stop import Stop
from launcher.verdict import Exit
from tests.trainer_command import DIGITS
from trainer import worker
from trainer.config import compose
from trainer.errors import ConfigError, PacelineError, UnfitError
from trainer.run import launches
from trainer.rundir import RunDir, read_json, write_json
from trainer.stop import StopRequest
from trainer.terminal.console import LineConsole
from trainer.trouble import mishap

OTHER_MODEL = ["model=resnet18", "run.accept_changes=true"]


def work(folder: Path, *overrides: str) -> int:
    config = compose([*DIGITS, "model=small_resnet", "max_steps=2", f"run.dir={folder}", "run.name=x", *overrides])
    return worker.work(config, StopRequest(), started=time.time())


def files(run: RunDir) -> dict[str, bytes]:
    """What says of a run what it is and how it stands."""
    paths = [run.config, run.status, run.job, run.failure, run.environment, run.summary, run.metrics, run.events]
    paths += [path for folder in (run.checkpoints, run.weights("last").parent) for path in folder.rglob("*")]
    return {str(path): path.read_bytes() for path in paths if path.is_file()}


def test_a_finished_run_that_was_to_go_on_with_another_model_is_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(tmp_path / "x")
    assert work(tmp_path) == 0
    before = files(run)
    assert work(tmp_path, *OTHER_MODEL) == 2
    said = capsys.readouterr().err
    assert said.count("of another model") == 1
    assert "run x is left as it was" in said
    assert files(run) == before
    assert read_json(run.attempt_failure(1))["type"] == "ConfigError"
    assert (runs.look(run).state, runs.look(run).attempt) == ("finished", 0)
    # What the run was begun with needs no acceptance, and what is accepted and fits is what the run is from then on.
    assert work(tmp_path) == 0
    assert work(tmp_path, "max_steps=3", "run.accept_changes=true") == 0
    assert "max_steps: 3" in run.config.read_text()
    assert "max_steps: 2" in run.attempt_config(0).read_text()
    assert [row["attempt"] for row in run.launches()] == [0, 2]
    assert run.read_status()["attempt"] == 2


def test_a_continuation_that_fails_before_its_first_step_is_the_runs_failure_and_not_its_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path / "x")
    assert work(tmp_path) == 0
    config = run.config.read_bytes()
    write_json(run.failure, {"attempt": 0, "message": "an old one"})
    with monkeypatch.context() as broken:
        broken.setattr("trainer.train.assemble", lambda *arguments: 1 / 0)
        assert work(tmp_path, "max_steps=3", "run.accept_changes=true") == 1
    assert run.config.read_bytes() == config
    assert (run.read_status()["state"], run.read_status()["attempt"]) == ("failed", 1)
    assert read_json(run.failure)["type"] == "ZeroDivisionError"


@pytest.mark.parametrize(
    ("state", "error", "stays"),
    [
        ("finished", ConfigError("no", "yes"), True),
        ("preempted", ConfigError("no", "yes"), True),
        ("finished", UnfitError("no", "yes"), True),
        ("preempted", UnfitError("no", "yes"), False),
    ],
)
@pytest.mark.parametrize("by_rank_one", [True, False])
def test_a_run_stays_as_it_is_when_any_rank_finds_that_it_cannot_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, error: PacelineError, stays: bool, by_rank_one: bool
) -> None:
    run, console = RunDir(tmp_path), LineConsole(io.StringIO(), None, clock=time.monotonic)
    run.update_status(state=state, attempt=0, step=8, latest="step-00000008")
    before = files(run)
    monkeypatch.setenv("WORLD_SIZE", "2")
    attempt = mishap.Attempt(run, 1, is_ours=True, has_begun=False)
    if by_rank_one:
        monkeypatch.setenv("RANK", "1")
        assert mishap.report(error, attempt, console) == error.exit_code
        monkeypatch.setenv("RANK", "0")
        assert mishap.report(RuntimeError("Connection closed by peer"), attempt, console) == 1
    else:
        assert mishap.report(error, attempt, console) == error.exit_code
    assert (files(run) == before) == stays
    assert read_json(run.attempt_failure(1))["exit_code"] == error.exit_code
    assert run.read_status()["state"] == (state if stays else "failed")
    assert run.read_status()["step"] == 8


@pytest.mark.parametrize("saves", [True, False])
@pytest.mark.parametrize("error", [ConfigError, UnfitError])
def test_the_launcher_takes_a_refused_launch_back_where_there_is_a_run_to_keep(
    tmp_path: Path, saves: bool, error: type[PacelineError]
) -> None:
    run = RunDir(tmp_path)
    launches.note(run, {"attempt": 0, "argv": ["paceline", "run", "run.name=x", "epochs=1"], "time": 1.0})
    run.update_status(state="finished", attempt=0, **({"latest": "step-00000002"} if saves else {}))
    write_json(run.failure, {"attempt": 0})
    before = run.status.read_bytes(), run.failure.read_bytes(), runs.again(run)
    plan = JobPlan(nodes=1, workers_per_node=1, program=Program("trainer", "trainer"), run_dir=str(tmp_path), attempt=1)
    launches.note(run, {"attempt": 1, "argv": ["paceline", "run", "run.name=x", "model=resnet18"], "time": 9e9})
    account = Account(plan)
    account.begin()
    exit = Exit(0, error.exit_code, type=error.__name__, message="of another model")
    assert account.conclude(Outcome(1, exits=(exit,)), Stop(1.0)) == error.exit_code
    assert ((run.status.read_bytes(), run.failure.read_bytes(), runs.again(run)) == before) == saves
