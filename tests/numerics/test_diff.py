"""`paceline diff`: the first step at which two runs part, and what was different about them."""

import json
from pathlib import Path

import pytest

from launcher.cli import main
from tests.numerics.runs import Stretching, configuration, train_in
from tests.workers import alone, run_workers
from trainer.config import Config, ModelConfig, OptimConfig, to_yaml
from trainer.distributed import World
from trainer.run.parting import Trace, compare
from trainer.run.rows import append_json_line
from trainer.rundir import RunDir, write_json

TURNS = 37


class Turning(Stretching):
    """Another network from step 37 on, in the runs that ask for it."""

    def __init__(self, num_classes: int, *, turns: bool) -> None:
        super().__init__(num_classes)
        self.turns, self.steps = turns, 0

    def forward(self, images):  # type: ignore[no-untyped-def]
        self.steps += self.training
        return super().forward(images) * (1.001 if self.turns and self.steps >= TURNS else 1)


def trained(world: World, folder: Path, config: Config) -> None:
    error, _ = train_in(world, folder, config)
    assert error is None, error
    if world.is_rank_zero:
        RunDir(folder).config.write_text(to_yaml(config))
        RunDir(folder).job.write_text(json.dumps({"world_size": world.world_size, "python": "3"}))


def turning(turns: bool) -> Config:
    model = ModelConfig(_target_="tests.numerics.test_diff.Turning", args={"turns": turns})
    return configuration([], model=model)


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(["diff", *arguments])
    return code, capsys.readouterr().out


def test_the_step_at_which_two_runs_part_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, turns in (("a", False), ("b", True), ("c", False)):
        trained(alone(), tmp_path / name, turning(turns))
    code, out = said(capsys, "a", "b", "--dir", str(tmp_path))
    assert code == 1
    assert f"a and b: part in step {TURNS}: loss" in out
    assert "weights: the same after step 35, others after step 40" in out
    assert "model.args: {'turns': False} | {'turns': True}" in out
    code, out = said(capsys, "a", "c", "--dir", str(tmp_path))
    assert (code, out) == (0, "a and c: the same in all of 52 steps that both have, bit for bit\n")
    code, out = said(capsys, "a", "b", "--json", "--dir", str(tmp_path))
    assert json.loads(out)["loss"][0] == TURNS
    assert main(["diff", "a"]) == 2
    assert main(["diff", str(tmp_path / "a"), str(tmp_path / "nothing")]) == 2


def test_another_number_of_workers_parts_by_rounding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Without BatchNorm, whose statistics are each worker's own.
    model = ModelConfig(_target_="tests.numerics.test_diff.Plain")
    config = configuration([], epochs=1, optim=OptimConfig(lr=0.01), model=model)
    trained(alone(), tmp_path / "one", config)
    run_workers(2, trained, tmp_path / "two", config)
    code, out = said(capsys, "one", "two", "--dir", str(tmp_path))
    assert code == 1
    assert "never by more than rounding, as another number of workers brings it" in out
    assert "world_size: 1 | 2" in out


class Plain(Stretching):
    """Without BatchNorm."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        del self.layers[1]


@pytest.mark.parametrize(("parts_in", "shown"), [(1, False), (2, True)])
def test_the_set_up_of_the_attempt_that_trained_the_step_is_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], parts_in: int, shown: bool
) -> None:
    attempts = [{"attempt": number, "python": f"3.1{number}", "world_size": 1} for number in (0, 1)]
    for name, begun in (("a", 1), ("b", 2)):
        run = RunDir(tmp_path / name)
        run.path.mkdir()
        losses = [0.5 if name == "a" or step < parts_in else 0.4 for step in (1, 2)]
        append_json_line(run.steps, {"first": 1, "step": 2, "losses": losses, "digest": name})
        run.config.write_text(to_yaml(Config()))
        write_json(run.job, {**attempts[0], "attempts": attempts[:begun]})
        for number in range(begun):
            append_json_line(run.events, {"event": "start", "step": number, "attempt": number})
    out = said(capsys, "a", "b", "--dir", str(tmp_path))[1]
    assert f"part in step {parts_in}" in out
    assert ("python: 3.10 | 3.11" in out) == shown


def test_traces_are_compared_where_both_have_something() -> None:
    one = Trace({1: 0.5, 2: 0.25, 3: None}, {2: "x"})
    assert compare(one, one).agree
    assert not compare(one, Trace()).agree
    assert compare(one, Trace({2: 0.25, 3: 0.1}, {2: "x"})).loss == (3, None, 0.1)
    parting = compare(one, Trace({1: 0.5}, {2: "y"}))
    assert (parting.loss, parting.other_weights, parting.agree) == (None, 2, False)
    assert "the weights are not" in parting.lines()[0]
