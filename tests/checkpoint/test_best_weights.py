"""The best weights are those of the step that the run takes for its best, also when it has forgotten better ones."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.numerics import runs
from tests.workers import alone
from trainer import checkpoint, commit
from trainer.checkpoint import BackgroundWriter
from trainer.config import CheckpointConfig, Config, EvaluateConfig
from trainer.data.naming import samples_of_step
from trainer.data.sampler import StepPlan
from trainer.evaluate.judge import Judge
from trainer.rundir import RunDir, read_json
from trainer.training.keeper import Keeper

Kept = dict[int, dict[str, torch.Tensor]]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    """The weights at each step that was the best so far."""
    found: Kept = {}
    evaluated: Any = Keeper.evaluated

    def watched(self: Any, model: torch.nn.Module, *, best: bool) -> None:
        if best:
            found[self._progress.step] = {name: value.clone() for name, value in model.state_dict().items()}
        evaluated(self, model, best=best)

    monkeypatch.setattr(Keeper, "evaluated", watched)
    return found


def judge_by(monkeypatch: pytest.MonkeyPatch, accuracy: dict[int, list[float]]) -> None:
    """Has the evaluations at these steps find other accuracies, the first time the first, and so on; else 0.1."""
    real: Any = Judge.judge

    def judge(self: Judge, standing: Any, metrics: Any, *, step: int, epoch: int) -> bool:
        values = accuracy.get(step, [])
        value = (values.pop(0) if len(values) > 1 else values[0]) if values else 0.1
        return real(self, standing, {**metrics, "val/accuracy": value}, step=step, epoch=epoch)

    monkeypatch.setattr(Judge, "judge", judge)


def configuration(*, blank_at: int | None = None, **changes: Any) -> Config:
    blank: list[int] = []
    if blank_at is not None:
        plan = StepPlan(samples=len(runs.digits_with_blanks([]).train), global_batch_size=runs.BATCH)
        blank = samples_of_step(plan, seed=0, step=blank_at)[:1].tolist()
    kept = CheckpointConfig(every_steps=10, keep=9)
    return runs.configuration(blank, epochs=1, checkpoint=kept, evaluate=EvaluateConfig(every=1), **changes)


def assert_right(run: RunDir, kept: Kept, *, step: int) -> None:
    path = run.weights("best")
    state = load_file(path)
    assert [at for at, weights in kept.items() if all(torch.equal(weights[n], state[n]) for n in weights)] == [step]
    assert state.keys() == kept[step].keys()
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["step"] == str(step)
    assert checkpoint.load(run.checkpoint(26)).state["progress"]["best"]["step"] == step
    # What was found there class by class may be forgotten; it is never another step's.
    assert (read_json(run.evaluation)["best"] or {"step": step})["step"] == step


@pytest.mark.parametrize(("best", "again"), [(10, 10), (2, 11)], ids=["from its checkpoint", "at the next evaluation"])
def test_a_rollback_forgets_better_weights_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: Kept, best: int, again: int
) -> None:
    judge_by(monkeypatch, {best: [0.3], 21: [0.9, 0.1], 11: [0.2], 20: [0.1]})
    monkeypatch.setattr(Keeper, "is_due", lambda self: self._progress.step == 10)
    config = configuration(blank_at=23, on_nonfinite="rollback")
    error, said = runs.train_in(alone(), tmp_path / "run", config)
    assert error is None, said
    assert "back to step 10" in said
    assert 21 in kept
    assert_right(RunDir(tmp_path / "run"), kept, step=again)


def test_a_run_that_goes_on_does_not_keep_the_best_weights_of_what_it_has_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: Kept
) -> None:
    judge_by(monkeypatch, {10: [0.3], 21: [0.9, 0.1]})
    monkeypatch.setattr(Keeper, "is_due", lambda self: self._progress.step == 10)
    run = RunDir(tmp_path / "run")
    runs.train_in(alone(), run.path, configuration())
    # As it is when it was killed before its last checkpoint.
    checkpoint.put_aside(run, 26, checkpoint.Damaged("by the test"))
    runs.train_in(alone(), run.path, configuration())
    assert_right(run, kept, step=10)


def test_best_weights_that_have_decayed_are_made_again_from_their_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: Kept
) -> None:
    judge_by(monkeypatch, {10: [0.9]})
    run = RunDir(tmp_path / "run")
    runs.train_in(alone(), run.path, configuration())
    content = run.weights("best").read_bytes()
    run.weights("best").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    runs.train_in(alone(), run.path, configuration())
    assert_right(run, kept, step=10)


def test_better_weights_that_need_not_wait_are_not_replaced_by_earlier_ones_that_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: Kept
) -> None:
    """The file of step 2 takes until step 6; step 4's waits, when step 6's can be written at once."""
    judge_by(monkeypatch, {2: [0.2], 4: [0.3], 6: [0.4]})
    replace_file, evaluated, done = commit.replace_file, Keeper.evaluated, threading.Event()

    def slow(path: Path, *arguments: Any, **more: Any) -> None:
        if path.name == "best.safetensors" and 2 in kept:
            assert done.wait(60)
        replace_file(path, *arguments, **more)

    def watched(self: Keeper, model: torch.nn.Module, *, best: bool) -> None:
        if self._progress.step == 6:
            assert self._waiting_best is not None
            done.set()
            self._best_writer.wait()
        evaluated(self, model, best=best)

    monkeypatch.setattr(commit, "replace_file", slow)
    monkeypatch.setattr(Keeper, "evaluated", watched)
    error, said = runs.train_in(alone(), tmp_path / "run", configuration())
    assert error is None, said
    assert_right(RunDir(tmp_path / "run"), kept, step=6)


@pytest.mark.parametrize(
    ("best", "ends", "right"),
    [(10, "after", 10), (2, "after", 2), (2, "just before", 11)],
)
def test_best_weights_that_hang_over_a_rollback_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: Kept, best: int, ends: str, right: int
) -> None:
    judge_by(monkeypatch, {best: [0.3], 21: [0.9, 0.1], 11: [0.2], 20: [0.1]})
    monkeypatch.setattr(Keeper, "is_due", lambda self: self._progress.step == 10)
    defaults: Any = BackgroundWriter.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "patience_s", 0.3)
    replace_file, forget, evaluated = commit.replace_file, Keeper.forget, Keeper.evaluated
    goes_back, went_back, hung = threading.Event(), threading.Event(), list[threading.Thread]()

    def hanging(path: Path, pieces: Any, *, guard: Any, **more: Any) -> None:
        def slow() -> None:
            guard()
            assert goes_back.wait(60)

        if path.name != "best.safetensors" or 21 not in kept or hung:
            replace_file(path, pieces, guard=guard, **more)
            return
        hung.append(threading.current_thread())
        if ends == "after":
            assert went_back.wait(60)
        replace_file(path, pieces, guard=guard if ends == "after" else slow, **more)

    def forgetting(self: Keeper) -> None:
        goes_back.set()
        forget(self)

    def watched(self: Keeper, model: torch.nn.Module, *, best: bool) -> None:
        evaluated(self, model, best=best)
        if hung and self._progress.step == 13:
            self._best_writer.wait()
            went_back.set()
            hung[0].join(60)

    monkeypatch.setattr(commit, "replace_file", hanging)
    monkeypatch.setattr(Keeper, "forget", forgetting)
    monkeypatch.setattr(Keeper, "evaluated", watched)
    error, said = runs.train_in(alone(), tmp_path / "run", configuration(blank_at=23, on_nonfinite="rollback"))
    assert error is None, said
    assert "the best weights has been under way for" in said
    assert went_back.is_set()
    assert_right(RunDir(tmp_path / "run"), kept, step=right)


def test_a_checkpoint_that_hangs_over_a_rollback_never_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the weights of steps that were done again in another way since: a resume would go on from those."""
    monkeypatch.setattr(Keeper, "is_due", lambda self: self._progress.step in (10, 21))
    defaults: Any = BackgroundWriter.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "patience_s", 0.3)
    write_folder, save = commit.write_folder, Keeper.save
    went_back, hung, files = threading.Event(), list[threading.Thread](), list[bool]()

    def hanging(folder: Path, content: Any, **more: Any) -> None:
        def slow(pieces: Any) -> Any:
            yield from pieces
            hung.append(threading.current_thread())
            assert went_back.wait(60)
            files.append(any(folder.parent.glob(".*.tmp/tensors.safetensors")))

        if folder.name == "step-00000021" and not hung:
            content = {name: slow(pieces) if name == "state.json" else pieces for name, pieces in content.items()}
        write_folder(folder, content, **more)

    def watched(self: Keeper, *arguments: Any, **more: Any) -> None:
        if hung and not went_back.is_set():
            went_back.set()
            hung[0].join(60)
            # The one that was taken before it went back.
            assert checkpoint.steps(RunDir(tmp_path / "run")) == [10]
        if not hung:
            self._writer.wait()
        save(self, *arguments, **more)

    monkeypatch.setattr(commit, "write_folder", hanging)
    monkeypatch.setattr(Keeper, "save", watched)
    error, said = runs.train_in(alone(), tmp_path / "run", configuration(blank_at=23, on_nonfinite="rollback"))
    assert error is None, said
    assert "back to step 10" in said
    assert "the checkpoint has been under way for" in said
    assert "could not be written" not in said
    assert files == [True]
    assert checkpoint.steps(RunDir(tmp_path / "run"))[-1] == 26


def test_by_another_metric_the_file_stays_until_there_are_better_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: Kept
) -> None:
    judge_by(monkeypatch, {10: [0.3]})
    run, config = RunDir(tmp_path / "run"), configuration()
    runs.train_in(alone(), run.path, config)
    assert_right(run, kept, step=10)
    before = run.weights("best").read_bytes()
    # Nothing is left to do, twice: the second time no checkpoint says any more what was judged by at first.
    other = replace(config, evaluate=EvaluateConfig(every=1, best="val/loss"))
    for _ in range(2):
        error, said = runs.train_in(alone(), run.path, other)
        assert error is None, said
        assert run.weights("best").read_bytes() == before
        best = checkpoint.load(run.checkpoint(26)).state["progress"]["best"]
        assert (best["metric"], best["step"], best["value"], best["former"]) == ("", 0, None, 10)
    error, said = runs.train_in(alone(), run.path, replace(other, epochs=2))
    assert error is None, said
    with safe_open(run.weights("best"), framework="pt") as file:
        assert int(file.metadata()["step"]) == max(kept) > 26
    assert checkpoint.load(run.checkpoint(52)).state["progress"]["best"]["former"] == 0
