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
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from launcher.cli import main
from launcher.verbs import replay as verb
from tests.numerics.runs import Stretching, configuration, train_in
from tests.numerics.test_nonfinite import BLANK, step_of
from tests.test_bad_input import image_folder
from tests.workers import alone, run_workers
from trainer import checkpoint, cores, replay
from trainer.config import CheckpointConfig, Config, DataConfig, ModelConfig
from trainer.data import order
from trainer.distributed import World
from trainer.evaluate import request
from trainer.run import environment, history, provenance
from trainer.run.rows import json_line, read_json_lines
from trainer.rundir import RunDir
from trainer.stop import StopRequest
from trainer.terminal.console import LineConsole
from trainer.tracking import open_trackers
from trainer.train import train
from trainer.training import remedy
from trainer.training.job import Job


def record(world: World, folder: Path, config: Config, *, attempt: int = 0, stop_after: int | None = None) -> None:
    """An attempt at a run, and what the worker writes beside the training."""
    run = RunDir(folder)
    if world.is_rank_zero:
        folder.mkdir(exist_ok=True, parents=True)
        provenance.begin(run, config, attempt=attempt, argv=[], folder=folder, nodes=1, world_size=world.world_size)
    environment.write(run, world, attempt=attempt)
    train_in(world, folder, config, attempt=attempt, stop_after=stop_after)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def judged(folder: Path, first: int, last: int, *overrides: str) -> dict[str, Any]:
    verdict = folder.with_suffix(".json")
    replay.main([str(folder), str(verdict), str(first), str(last), *overrides])
    return json.loads(verdict.read_text())


def judged_by(world: World, folder: Path, first: int, last: int) -> dict[str, Any]:
    """The same in workers that there are already."""
    return replay.judge(replay.task_of(RunDir(folder), first=first, last=last), world)


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
    assert found["lines"][-1] == (
        "two replays agree: the machine it ran on, data whose content has changed, or code that git does not know"
    )

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
    record(alone(), folder, config, attempt=1, stop_after=bad + 4)
    [back] = (row for row in read_json_lines(run.events) if row["event"] == "rollback")
    begun, to_step = back["left_out"][0], back["to_step"]
    # From a checkpoint amid them, and from before them, where nothing knows of them.
    for first in (bad, begun):
        line, *rest = judged(folder, first, bad + 2)["lines"]
        assert line == (
            f"step {first} is none that was trained: the run has passed over {named(begun, bad)}, since the loss of "
            f"step {bad} is not finite, and on_nonfinite=rollback went back to {to_step}"
        )
        assert is_as_recorded(rest, after=0, last=bad + 2)


def test_what_the_run_has_passed_over_is_passed_over_in_the_replay_and_later_steps_come_out(tmp_path: Path) -> None:
    folder, bad = tmp_path / "run", step_of(BLANK)
    config = configuration([BLANK], on_nonfinite="rollback", checkpoint=CheckpointConfig(every_steps=4, keep=50))
    record(alone(), folder, config)
    back, later = (row for row in read_json_lines(RunDir(folder).events) if row["event"] == "rollback")
    found = judged(folder, back["left_out"][0], bad + 5)
    assert found["code"] == 0
    assert is_as_recorded(found["lines"][1:], after=0, last=bad + 5)
    assert judged(folder, back["left_out"][0], bad)["lines"][1:] == [
        f"steps {back['left_out'][0]} to {bad}: none of them was trained"
    ]
    # Every step of the run, from its start: both rollbacks.
    shutil.rmtree(RunDir(folder).checkpoints)
    found = judged(folder, bad + 5, 52)
    assert found["code"] == 0
    assert found["lines"][:2] == [
        f"passed over here as in the run: {named(first, last)}, since the loss of step {last} is not finite, and "
        f"on_nonfinite=rollback went back to {row['to_step']}"
        for row in (back, later)
        for first, last in [row["left_out"]]
    ]
    assert is_as_recorded(found["lines"][2:], after=0, last=52)


def named(first: int, last: int) -> str:
    return f"step {last}" if first == last else f"steps {first} to {last}"


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_gradients_that_were_not_finite_are_so_again(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remedy, "MOST_ROLLBACKS", 0)
    folder, bad = tmp_path / "run", step_of(BLANK)
    model = ModelConfig(_target_="tests.numerics.test_nonfinite.Overflowing")
    record(alone(), folder, configuration([BLANK], model=model, on_nonfinite=policy, epochs=1))
    found = judged(folder, bad, bad)
    assert found["code"] == 0
    assert found["lines"][0] == (
        f"the gradients of step {bad} are not finite again: its samples or settings, not the machine"
    )


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Begun by two workers, gone on with by one from step 11, and with smaller micro-batches from step 22."""
    folder = tmp_path_factory.mktemp("resumed") / "run"
    config = configuration([], checkpoint=CheckpointConfig(every_steps=4, keep=50))
    run_workers(2, record_first, folder, config)
    record(alone(), folder, config, attempt=1, stop_after=22)
    record(alone(), folder, replace(config, micro_batch_size=16), attempt=2)
    return folder


def record_first(world: World, folder: Path, config: Config) -> None:
    record(world, folder, config, stop_after=11)


def test_steps_are_done_again_as_the_attempt_computed_them_that_recorded_them(resumed: Path) -> None:
    for found in run_workers(2, judged_by, resumed, 6, 10):
        assert is_as_recorded(found["lines"], after=0, last=10)
    assert is_as_recorded(judged(resumed, 15, 20)["lines"], after=11, last=20)
    assert is_as_recorded(judged(resumed, 33, 35)["lines"], after=22, last=35)


def is_as_recorded(lines: list[str], *, after: int, last: int) -> bool:
    """Whether nothing is said but that steps up to a last one, all of them after another, come out as recorded."""
    [line] = lines
    words = line.split()
    steps = last + 1 - int(words[1])
    assert line == (
        f"steps {words[1]} to {last} come out as recorded: the same in all of {steps} steps that both have, bit for bit"
    )
    return int(words[1]) > after


def test_more_workers_than_cores_replay_as_they_have_trained(resumed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "count_cpus", lambda: 1)
    setup = history.setup_of(RunDir(resumed), 0)
    assert [verb._workers(replace(setup, seen=(), workers=workers)) for workers in (2, 4, 5)] == [2, 4, 1]


def test_steps_of_two_set_ups_are_done_again_up_to_the_border(resumed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(resumed), "--step", "20", "--steps", "20"]) == 0
    *lines, border = capfd.readouterr().out.splitlines()
    assert is_as_recorded(lines, after=11, last=22)
    assert border == (
        "not compared: steps 23 to 39 are from where attempt 2 went on with another set-up (micro_batch_size None, "
        "then 16): --step 23 --steps 17 does that again"
    )
    assert main(["replay", str(resumed), "--step", "9", "--steps", "9", "--workers", "1"]) in (0, 1)
    *_, border = capfd.readouterr().out.splitlines()
    assert "went on with another set-up (workers 2, then 1" in border
    assert border.endswith("--step 12 --steps 6 does that again")


def test_a_damaged_checkpoint_is_no_obstacle_where_there_is_an_older_one(resumed: Path, tmp_path: Path) -> None:
    copy = RunDir(shutil.copytree(resumed, tmp_path / "copy"))
    steps = [step for step in checkpoint.steps(copy) if step < 35]
    older, newest = steps[-2:]

    def damage(step: int) -> None:
        file = copy.checkpoint(step) / "tensors.safetensors"
        file.write_bytes(file.read_bytes()[:-1])

    damage(newest)
    before = content(copy.path)
    told_of, *lines = judged(copy.path, 35, 35)["lines"]
    assert told_of.startswith(f"the checkpoint of step {newest} is damaged (tensors.safetensors has ")
    assert told_of.endswith("): done again from an older one")
    assert is_as_recorded(lines, after=older, last=35)
    assert content(copy.path) == before
    for step in steps:
        damage(step)
    found = judged(copy.path, 35, 35)
    assert found["code"] == 3
    assert "there is no good checkpoint between step 22, where attempt 2 went on with another set-up" in str(found)


def test_what_the_record_does_not_say_is_no_verdict(
    resumed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    copy = RunDir(shutil.copytree(resumed, tmp_path / "copy"))
    shutil.rmtree(copy.checkpoint(11))
    found = judged(copy.path, 12, 12)
    assert found["code"] == 3
    assert "no checkpoint between step 11, where attempt 1 went on with another set-up, and step 12" in str(found)
    assert "--step 13 has one before it" in str(found)
    copy.events.unlink()
    assert main(["replay", str(copy.path), "--step", "15"]) == 3
    assert "does not say which attempt trained which steps, and they differ in " in capfd.readouterr().err


def test_a_run_whose_data_has_moved_is_done_again_evaluated_and_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, old, new = tmp_path / "run", image_folder(tmp_path / "old"), tmp_path / "new"
    config = configuration(
        [],
        global_batch_size=4,
        data=DataConfig(name="folder", root=str(old), image_size=8, val_fraction=0.3, workers=0, augment="none"),
        model=ModelConfig(_target_="tests.numerics.test_replay.Small"),
    )
    record(alone(), folder, config, stop_after=2)
    old.rename(new)
    record(alone(), folder, replace(config, data=replace(config.data, root=str(new))), attempt=1)
    for step in (1, 4):
        assert is_as_recorded(judged(folder, step, 5)["lines"], after=-1, last=5)
        assert order.main([str(folder), "--step", str(step)]) == 0
        assert f"{new}/class_" in capsys.readouterr().out
    assert request.read([str(folder), "weights=last"]).config.data.root == str(new)

    newest = new.rename(tmp_path / "newest")
    found = judged(folder, 4, 5)
    assert found["code"] == 2
    assert f"error: this cannot be replayed: data.root={new}" in found["lines"][0]
    assert is_as_recorded(judged(folder, 4, 5, f"data.root={newest}")["lines"], after=-1, last=5)
    assert order.main([str(folder), "--step", "1", f"data.root={newest}"]) == 0
    assert f"{newest}/class_" in capsys.readouterr().out
    assert main(["replay", str(folder), "optim.lr=1", "--step", "1"]) == 2
    assert "optim.lr cannot be set for a replay" in capsys.readouterr().err


class Small(nn.Module):
    """The least that learns from small colour images."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, num_classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


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
    # Rank 0 writes the record.
    world.from_rank_zero(None)
    return judged_by(world, folder, 12, 15)


def test_of_two_ranks_that_differ_the_replay_names_the_one_at_fault(tmp_path: Path) -> None:
    for found in run_workers(2, two_workers, tmp_path / "run"):
        assert found["code"] == 1
        assert found["lines"][0] == "after step 15 the replay has the weights of rank 0: at fault was rank 1"
