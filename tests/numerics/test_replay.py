"""`paceline replay`: steps done again come out as recorded, or it is said what has changed; the run is not touched."""

import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from launcher.cli import main
from tests.numerics.runs import Stretching, configuration, train_in
from tests.numerics.test_nonfinite import BLANK, step_of
from tests.workers import alone, run_workers
from trainer import checkpoint, replay
from trainer.config import CheckpointConfig, Config, ModelConfig, from_yaml, to_yaml
from trainer.console import LineConsole
from trainer.distributed import World
from trainer.job import Job
from trainer.rundir import RunDir, json_line, read_json_lines
from trainer.stop import StopRequest
from trainer.tracking import open_trackers
from trainer.train import train


def record(world: World, folder: Path, config: Config) -> None:
    """A run and what the worker writes beside the training."""
    train_in(world, folder, config)
    if world.is_rank_zero:
        run = RunDir(folder)
        run.config.write_text(to_yaml(config))
        run.job.write_text(json.dumps({"world_size": world.world_size}))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def judged(folder: Path, first: int, last: int) -> dict[str, Any]:
    verdict = folder.with_suffix(".json")
    replay.main([str(folder), str(verdict), str(first), str(last)])
    return json.loads(verdict.read_text())


def change_loss(folder: Path, step: int) -> None:
    """The record says that another loss had come out, and so other weights."""
    run = RunDir(folder)
    rows = list(read_json_lines(run.steps))
    for row in rows:
        if row["step"] >= step:
            row["digest"] = "0" * 16
            row["losses"] = [loss * 1.01 for loss in row["losses"]]
    run.steps.write_text("".join(map(json_line, rows)))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replay") / "run"
    record(alone(), folder, configuration([]))
    return folder


def test_the_command_says_that_steps_come_out_as_recorded(recorded: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = content(recorded)
    assert main(["replay", str(recorded), "--step", "41", "--steps", "3"]) == 0
    assert "to 45 come out as recorded: the same in all of" in capfd.readouterr().out
    assert content(recorded) == before
    for wrong in (["--step", "0"], [], ["--step", "5000"], ["--step", "x"]):
        assert main(["replay", str(recorded), *wrong]) == 2


def test_a_record_that_does_not_come_out_again_is_told_from_arithmetic_that_never_does(
    recorded: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(recorded, other)
    change_loss(other, 45)
    found = judged(other, 43, 45)
    assert found["code"] == 1
    assert "part in step 41" in found["lines"][0]
    assert found["lines"][-1] == "two replays agree: the machine it ran on, or data whose content has changed"

    chance = tmp_path / "chance"
    record(alone(), chance, configuration([], model=ModelConfig(_target_="tests.numerics.test_replay.Chance")))
    found = judged(chance, 43, 45)
    assert found["code"] == 1
    assert found["lines"][-1] == "hardware: this machine does not compute the same twice"


class Chance(Stretching):
    """A stand-in for arithmetic that errs."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) * (1 + os.urandom(1)[0] / 1e4)


def test_a_non_finite_step_comes_again_with_its_samples(tmp_path: Path) -> None:
    folder, bad = tmp_path / "run", step_of(BLANK)
    record(alone(), folder, configuration([BLANK]))
    found = judged(folder, bad, bad)
    assert found["code"] == 0
    assert found["lines"][0] == f"the loss of step {bad} is not finite again: its samples or settings, not the machine"


class Stopping(LineConsole):
    """Has the run stopped as soon as it has been rolled back."""

    def __init__(self, stop: StopRequest) -> None:
        super().__init__(io.StringIO(), None, clock=lambda: 0.0)
        self._stop = stop

    def warn(self, text: str) -> None:
        if "back to step" in text:
            self._stop.ask("for a checkpoint amid the steps that are passed over")


def test_a_step_that_the_record_has_passed_over_is_not_called_not_finite_again(tmp_path: Path) -> None:
    folder, bad, stop = tmp_path / "run", step_of(BLANK), StopRequest()
    config = configuration([BLANK], on_nonfinite="rollback", checkpoint=CheckpointConfig(every_steps=bad - 3))
    run = RunDir(folder)
    folder.mkdir()
    trackers = open_trackers(config, run, attempt=0, warn=print)
    train(config, Job(alone(), run, Stopping(stop), trackers, stop, lambda: None))
    assert checkpoint.steps(run)[-1] in (bad - 2, bad - 1)
    record(alone(), folder, replace(config, max_steps=bad + 4))
    found = judged(folder, bad, bad + 2)
    assert found["code"] == 0
    assert found["lines"][0].startswith("passed over in the record, after a rollback, and so here: step ")
    assert found["lines"][0].endswith(f"{bad}")
    assert "come out as recorded" in found["lines"][1]
    assert "not finite again" not in str(found["lines"])
    assert "not finite again" in judged(folder, bad - 2, bad)["lines"][0]


def two_workers(world: World, folder: Path) -> dict[str, Any]:
    """One bit of rank 1 flips after the update of step 15, once: not in a replay."""
    steps = 0

    def flip(optimizer: torch.optim.Optimizer, *_: object) -> None:
        nonlocal steps
        steps += 1
        if steps == 15 and world.rank == 1:
            optimizer.param_groups[0]["params"][0].detach().view(torch.int32).view(-1)[3] ^= 1

    hook = register_optimizer_step_post_hook(flip)
    record(world, folder, configuration([], checkpoint=CheckpointConfig()))
    hook.remove()
    config = from_yaml(RunDir(folder).config.read_text()) if world.is_rank_zero else None
    return replay._judged(RunDir(folder), replay._beside(world.from_rank_zero(config)), world, first=12, last=15)


def test_of_two_ranks_that_differ_the_replay_names_the_one_at_fault(tmp_path: Path) -> None:
    for found in run_workers(2, two_workers, tmp_path / "run"):
        assert found["code"] == 1
        assert found["lines"][0] == "after step 15 the replay has the weights of rank 0: at fault was rank 1"
