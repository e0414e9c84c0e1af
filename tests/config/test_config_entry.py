import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.config import Config, entry


class Jobs:
    """Stands for the training: keeps what it was called with; a seed is its exit code."""

    def __init__(self) -> None:
        self.configs: list[Config] = []

    def __call__(self, config: Config) -> int:
        self.configs.append(config)
        if config.seed == 1000:
            raise ValueError("of the task itself")
        return config.seed


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield Jobs()
    # --hydra-help sets logging up for a process that is about to end, on a stream that the next test has not.
    root.handlers[:] = handlers
    root.setLevel(level)


def test_overrides_alone_run_the_task_once(jobs: Jobs, tmp_path: Path) -> None:
    assert entry.run(["recipe=digits", "seed=3"], jobs) == 3
    assert [config.recipe for config in jobs.configs] == ["digits"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("argv", [["epochs=abc"], ["--multirun", "epochs=abc"], ["--cfg", "job", "epochs=abc"]])
def test_a_mistake_ends_with_two_lines_and_exit_code_2(
    argv: list[str], jobs: Jobs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry.run(argv, jobs) == 2
    assert jobs.configs == []
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: epochs takes a whole number, got 'abc'\n")
    assert captured.err.count("\n") == 2


def test_of_several_ranks_one_tells_the_mistake(
    jobs: Jobs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert entry.run(["epochs=abc"], jobs) == 2
    assert capsys.readouterr().err == ""


def test_cfg_job_prints_the_configuration_and_runs_nothing(
    jobs: Jobs, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import yaml

    assert entry.run(["--cfg", "job", "recipe=digits", "optim.name=adamw", "model.args.width=3"], jobs) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["data"]["name"] == "digits"
    assert shown["optim"]["name"] == "adamw"
    assert "momentum" not in shown["optim"]["args"]
    assert shown["model"]["args"]["width"] == 3
    assert jobs.configs == []
    assert list(tmp_path.iterdir()) == []


def test_help_is_one_screen_with_examples_first(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.run(["--help"], jobs) == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) <= 40
    assert shown.index("python -m trainer recipe=fashion_mnist") < shown.index("recipe: ")
    assert "optim.lr" in shown


def test_hydras_own_help_and_info_are_there(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.run(["--hydra-help"], jobs) == 0
    assert "--multirun" in capsys.readouterr().out
    assert entry.run(["--info", "defaults"], jobs) == 0
    assert "optim/sgd" in capsys.readouterr().out


def test_a_sweep_runs_every_combination_and_leaves_the_working_directory_alone(jobs: Jobs, tmp_path: Path) -> None:
    argv = ["optim.name=sgd,adamw", "--multirun", "model.args.width=4,8", "run.name=try"]
    assert entry.run(argv, jobs) == 0
    assert [(c.optim.name, c.model.args["width"], c.run.name) for c in jobs.configs] == [
        ("sgd", 4, "try-0"),
        ("sgd", 8, "try-1"),
        ("adamw", 4, "try-2"),
        ("adamw", 8, "try-3"),
    ]
    assert ["momentum" in config.optim.args for config in jobs.configs] == [True, True, False, False]
    assert {path.name for path in tmp_path.iterdir()} <= {"runs"}


def test_a_swept_run_name_gets_no_number(jobs: Jobs) -> None:
    assert entry.run(["-m", "run.name=a,b", "epochs=2"], jobs) == 0
    assert [config.run.name for config in jobs.configs] == ["a", "b"]


def test_the_worst_job_decides_the_exit_code_of_a_sweep(jobs: Jobs) -> None:
    assert entry.run(["-m", "seed=0,3,1"], jobs) == 3
    assert len(jobs.configs) == 3


def test_a_job_that_was_asked_to_stop_ends_the_sweep(jobs: Jobs) -> None:
    assert entry.run(["-m", "seed=0,75,4"], jobs) == 75
    assert [config.seed for config in jobs.configs] == [0, 75]


@pytest.mark.parametrize(("codes", "code"), [([], 0), ([0, 0], 0), ([0, 75], 75), ([75, 1], 1), ([1, 124], 124)])
def test_a_failure_counts_more_than_a_stop(codes: list[int], code: int) -> None:
    assert entry.worst(codes) == code


@pytest.mark.parametrize("argv", [["seed=1000"], ["-m", "seed=1000"]])
def test_what_the_task_raises_is_not_retold(argv: list[str], jobs: Jobs) -> None:
    with pytest.raises(ValueError, match="of the task itself"):
        entry.run(argv, jobs)


@pytest.mark.parametrize(
    ("argv", "fix"),
    [
        (["--epochs=5"], "epochs=5"),
        (["--lr", "0.1"], "python -m trainer optim.lr=0.1"),
        (["--warmup", "5"], "keys are set without dashes: optim.warmup_fraction=5"),
        (["recipe=digts", "epochs=2"], "python -m trainer recipe=digits epochs=2"),
        (["--frobnicate"], "--help"),
        (["--config-dir", "/does/not/exist"], "name the directory"),
        (["--config-name", "nothing"], "--config-name"),
    ],
)
def test_a_wrong_option_says_how_it_is_written_here(
    argv: list[str], fix: str, jobs: Jobs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry.run(argv, jobs) == 2
    assert fix in capsys.readouterr().err.splitlines()[1]


def test_own_files_serve_with_and_without_a_sweep(jobs: Jobs, tmp_path: Path) -> None:
    own = tmp_path / "own" / "recipe"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("# @package _global_\nepochs: 7\n")
    assert entry.run(["--config-dir", str(own.parent), "recipe=mine"], jobs) == 0
    assert entry.run(["--config-dir", str(own.parent), "-m", "recipe=mine,digits"], jobs) == 0
    assert [config.recipe for config in jobs.configs] == ["mine", "mine", "digits"]
    assert jobs.configs[1].epochs == 7


def test_the_process_is_as_it_was_after_hydra_ran(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    before = json.dumps(sys.argv)
    entry.run(["-m", "seed=0"], jobs)
    assert json.dumps(sys.argv) == before
    assert "HYDRA_FULL_ERROR" not in os.environ
