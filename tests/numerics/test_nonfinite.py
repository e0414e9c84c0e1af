"""A loss or a gradient that is not finite: the step and its samples are named, and what was asked for happens."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.numerics.runs import BATCH, configuration, train_in
from tests.workers import alone, on_each, run_workers
from trainer import checkpoint
from trainer.config import CheckpointConfig, Config, EmaConfig, ModelConfig, OptimConfig
from trainer.data.naming import samples_of_step
from trainer.data.sampler import StepPlan, StepSampler
from trainer.distributed import World
from trainer.errors import TrainingError
from trainer.numerics.gate import Gate
from trainer.optim import build_optimizer
from trainer.precision import Scaler
from trainer.run.rows import read_json_lines
from trainer.rundir import RunDir
from trainer.training import nonfinite, remedy
from trainer.wording import span

TRAINING_IMAGES = 1617
BLANK = int(samples_of_step(StepPlan(TRAINING_IMAGES, BATCH), seed=0, step=9)[40])


def plan_of(world_size: int) -> StepPlan:
    return StepPlan(TRAINING_IMAGES, BATCH, world_size)


def step_of(sample: int, epoch: int = 0) -> int:
    """The step, from 1, that takes a sample in an epoch."""
    plan = plan_of(1)
    first = epoch * plan.steps_per_epoch
    steps = range(first, first + plan.steps_per_epoch)
    return next(s + 1 for s in steps if sample in samples_of_step(plan, seed=0, step=s).tolist())


def events(folder: Path, kind: str) -> list[dict[str, object]]:
    return [row for row in read_json_lines(RunDir(folder).events) if row["event"] == kind]


def stopped(world: World, folder: Path) -> tuple[str, dict[str, object]]:
    error, _ = train_in(world, folder, configuration([BLANK]))
    assert isinstance(error, TrainingError)
    return error.problem, error.details


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_step_and_its_samples_are_named_and_no_later_checkpoint_is_kept(world_size: int, tmp_path: Path) -> None:
    results = on_each(world_size, stopped, tmp_path)
    bad = step_of(BLANK)
    plan = plan_of(world_size)
    for problem, details in results:
        assert f"the loss is not finite in step {bad} (epoch 1" in problem
        assert details["step"] == bad
        assert BLANK in details["samples"]  # type: ignore[operator]
        assert f"/images/{BLANK}.png" in details["paths"]  # type: ignore[operator]
        if world_size == 2:
            # Only the rank that took it is suspected.
            [rank] = details["ranks"]  # type: ignore[misc]
            assert f"rank {rank})" in problem
            mine = replace(plan, rank=rank)
            [taken] = StepSampler(range(TRAINING_IMAGES), mine, seed=0, first_step=bad - 1, last_step=bad)
            assert details["samples"] == taken.samples.tolist()
    [event] = events(tmp_path, "nonfinite")
    assert event["step"] == bad
    assert event["samples"] == results[0][1]["samples"]
    assert all(step < bad for step in checkpoint.steps(RunDir(tmp_path)))


class Overflowing(nn.Module):
    """Finite losses whose gradients are not: the square root's at 0."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(64, num_classes)

    def forward(self, images):  # type: ignore[no-untyped-def]
        flat = images.flatten(1)
        blank = (flat == flat[:, :1]).all(1, keepdim=True)
        return self.layer(flat) + torch.where(blank, self.layer.bias * 0, torch.ones(())).sqrt()


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_gradients_that_are_not_finite_never_reach_a_checkpoint(clip_norm: float | None, tmp_path: Path) -> None:
    bad = step_of(BLANK)
    config = configuration(
        [BLANK],
        model=ModelConfig(_target_="tests.numerics.test_nonfinite.Overflowing"),
        optim=OptimConfig(lr=0.05, clip_norm=clip_norm),
    )
    config = replace(config, checkpoint=replace(config.checkpoint, every_steps=bad))
    error, _ = train_in(alone(), tmp_path, config)
    assert isinstance(error, TrainingError)
    assert f"the {'weights' if clip_norm is None else 'gradients'} are not finite in step {bad} " in error.problem
    assert checkpoint.steps(RunDir(tmp_path)) == []
    assert not RunDir(tmp_path).weights("last").exists()


def finished(world: World, folder: Path, config: Config) -> str:
    error, said = train_in(world, folder, config)
    assert error is None, error
    return said


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    run = RunDir(folder)
    return checkpoint.load(run.checkpoint(checkpoint.steps(run)[-1])).tensors


@pytest.fixture
def single_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rollback leaves out the one step that is to blame."""
    monkeypatch.setattr(remedy, "_WINDOW", 1)


OPTIMIZERS = [OptimConfig(lr=0.05, args={"momentum": 0.9}), OptimConfig("adamw", 0.01), OptimConfig("nadam", 0.01)]


@pytest.mark.usefixtures("single_steps")
@pytest.mark.parametrize(("world_size", "optim"), [*((1, optim) for optim in OPTIMIZERS), (2, OPTIMIZERS[0])])
def test_a_skipped_step_leaves_no_trace_in_weights_average_optimizer_and_statistics(
    world_size: int, optim: OptimConfig, tmp_path: Path
) -> None:
    """As if it had never been taken, which is how a rollback passes over it."""
    for policy in ("skip", "rollback"):
        config = configuration([BLANK], on_nonfinite=policy, optim=optim, micro_batch_size=24, ema=EmaConfig(0.99))
        folder = tmp_path / policy
        if world_size == 1:
            finished(alone(), folder, config)
        else:
            run_workers(world_size, finished, folder, config)
    skip, back = weights_of(tmp_path / "skip"), weights_of(tmp_path / "rollback")
    assert skip.keys() == back.keys()
    assert any(name.startswith("ema.") for name in skip)
    for name, tensor in skip.items():
        assert tensor.isfinite().all(), name
        assert torch.equal(tensor, back[name]), name
    bad = [step_of(BLANK), step_of(BLANK, epoch=1)]
    for folder in (tmp_path / "skip", tmp_path / "rollback"):
        assert [row["step"] for row in events(folder, "nonfinite")] == bad
        rows = [row for row in read_json_lines(RunDir(folder).metrics) if "train/loss" in row]
        assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})
        assert all(row["train/loss"] is not None for row in rows)
        assert sum(row.get("train/skipped_steps", 0) for row in rows) == 2
        assert all(row["train/gradient_norm"] > 0 for row in rows)


def test_a_first_step_that_is_left_out_makes_no_state_of_memory_that_nobody_has_set() -> None:
    weight = nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9, fused=True)
    gate = Gate(nn.Module(), optimizer, torch.device("cpu"), only_looks=False)
    weight.grad = torch.full((4,), math.nan)
    assert not gate.lets_through([weight])
    gate.end()
    weight.grad = torch.ones(4)
    assert gate.lets_through([weight])
    optimizer.step()
    weight.grad = torch.full((4,), math.nan)
    assert gate.lets_through([weight])
    optimizer.step()
    assert torch.allclose(weight.detach(), torch.full((4,), 0.9))


@pytest.mark.parametrize("optim", [OptimConfig("sgd", 0.1), OptimConfig("sgd", 0.1, args={"momentum": 0.9})])
def test_the_host_never_waits_for_an_update_of_sgd(optim: OptimConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even before the first, and without momentum, where the optimizer never remembers anything."""
    model = nn.Linear(4, 1)
    optimizer = build_optimizer(optim, model, torch.device("cpu"))
    gate = Gate(model, optimizer, torch.device("cpu"), only_looks=False)
    before = [p.detach().clone() for p in model.parameters()]
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "__bool__", lambda _: pytest.fail("the host waits for the device"))
        for _ in range(2):
            for p in model.parameters():
                p.grad = torch.full_like(p, math.nan)
            assert gate.lets_through(list(model.parameters()))
            optimizer.step()
            gate.end()
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))


def test_a_rollback_leaves_out_the_steps_that_led_to_the_trouble_and_says_which(tmp_path: Path) -> None:
    config = configuration([BLANK], on_nonfinite="rollback", epochs=1)
    said = finished(alone(), tmp_path, config)
    bad = step_of(BLANK)
    [event] = events(tmp_path, "rollback")
    back = event["to_step"]
    assert back in (0, 4, 8)
    assert event["left_out"] == [back + 1, bad]
    assert f"back to step {back}, without {span(back + 1, bad)} (rollback 1 of 3)" in said
    # A step that was not computed has no loss: neither its own nor a share in its row's.
    rows = {row["step"]: row["train/loss"] for row in read_json_lines(RunDir(tmp_path).metrics) if "train/loss" in row}
    losses: dict[int, float | None] = {}
    for row in read_json_lines(RunDir(tmp_path).steps):
        losses.update(enumerate(row["losses"], start=row["first"]))
        computed = [loss for loss in row["losses"] if loss is not None]
        if computed and row["step"] < plan_of(1).steps_per_epoch:
            assert sum(computed) / len(computed) == pytest.approx(rows[row["step"]])
    assert [step for step, loss in losses.items() if loss is None] == list(range(back + 1, bad + 1))


def test_trouble_before_the_first_checkpoint_goes_back_to_the_start(tmp_path: Path) -> None:
    config = configuration([BLANK], on_nonfinite="rollback", epochs=1, checkpoint=CheckpointConfig())
    finished(alone(), tmp_path, config)
    assert [row["to_step"] for row in events(tmp_path, "rollback")] == [0]


@pytest.mark.parametrize(("policy", "words"), [("skip", "50 steps in a row"), ("rollback", "after 3 rollbacks")])
def test_a_run_that_has_diverged_is_given_up(policy: str, words: str, tmp_path: Path) -> None:
    config = configuration([], on_nonfinite=policy, optim=OptimConfig(lr=1e30, weight_decay=1.0), epochs=6)
    error, _ = train_in(alone(), tmp_path, config)
    assert isinstance(error, TrainingError)
    assert words in error.problem
    # In fp32 already, that is no way out.
    assert error.fix == "a lower rate, optim.lr=0.1, or clipping, optim.clip_norm=1"


@pytest.mark.parametrize(
    ("kind", "lr", "milder"),
    [(torch.optim.SGD, 0.05, 0.005), (torch.optim.SGD, 1e9, 0.1), (torch.optim.AdamW, 1e9, 1e-3)],
)
def test_the_rate_to_try_is_a_tenth_and_no_more_than_is_usual(
    kind: type[torch.optim.SGD | torch.optim.AdamW], lr: float, milder: float
) -> None:
    optimizer = kind([torch.zeros(1, requires_grad=True)], lr=lr)
    assert remedy.milder_rate(lr, optimizer) == pytest.approx(milder)


def test_a_killed_run_goes_on_past_what_was_left_out(tmp_path: Path) -> None:
    """What is passed over is a part of the checkpoint: the trouble does not come again."""
    config = configuration([BLANK], on_nonfinite="rollback", epochs=1)
    finished(alone(), tmp_path / "whole", config)
    later = step_of(BLANK) + 4
    half = replace(config, max_steps=later)
    error, _ = train_in(alone(), tmp_path / "cut", half)
    assert error is None
    finished(alone(), tmp_path / "cut", config)
    assert len(events(tmp_path / "cut", "rollback")) == 1


@pytest.mark.parametrize(
    ("dtype", "bad"),
    [(torch.float16, math.inf), (torch.float32, math.nan), (torch.complex64, complex(0, -math.inf))],
)
def test_weights_are_finite_unless_one_of_them_is_not(dtype: torch.dtype, bad: complex) -> None:
    # Their sum is more than fp16 holds.
    weights = nn.Parameter(torch.full((200_000,), 0.5, dtype=dtype))
    model = nn.ParameterList([weights, nn.Parameter(torch.empty(0))])
    assert nonfinite.are_finite(model, alone())
    with torch.no_grad():
        weights[7:8] = torch.tensor(bad)
    assert not nonfinite.are_finite(model, alone())


def test_fp16_gives_up_when_no_scale_helps() -> None:
    weight = nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler = Scaler(enabled=True, device=torch.device("cpu"))
    for _ in range(49):
        scaler.scale((weight * float("inf")).sum()).backward()
        assert not scaler.step(optimizer, None, [weight])
    scaler.scale((weight * float("inf")).sum()).backward()
    with pytest.raises(TrainingError, match="50 steps in a row had gradients that fp16 cannot hold"):
        scaler.step(optimizer, None, [weight])


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_fp16_scaling_probes_without_an_alarm(policy: str, tmp_path: Path) -> None:
    optim = OptimConfig(lr=0.05, clip_norm=1.0)
    said = finished(alone(), tmp_path, configuration([], on_nonfinite=policy, precision="fp16", epochs=1, optim=optim))
    assert "not finite" not in said
    assert events(tmp_path, "nonfinite") == []
    rows = [row for row in read_json_lines(RunDir(tmp_path).metrics) if "train/loss" in row]
    assert all(row["train/gradient_norm"] > 0 for row in rows)


def test_a_loss_that_is_not_finite_is_trouble_in_fp16_too(tmp_path: Path) -> None:
    """The scaling leaves the step out by itself; but no scale changes a loss."""
    config = configuration([BLANK], precision="fp16", epochs=1)
    error, _ = train_in(alone(), tmp_path / "stop", config)
    assert isinstance(error, TrainingError)
    assert f"the loss is not finite in step {step_of(BLANK)} (epoch 1)" in error.problem
    finished(alone(), tmp_path / "skip", replace(config, on_nonfinite="skip"))
    rows = [row for row in read_json_lines(RunDir(tmp_path / "skip").metrics) if "train/loss" in row]
    run = RunDir(tmp_path / "skip")
    state = checkpoint.load(run.checkpoint(checkpoint.steps(run)[-1])).state
    # Counted once.
    assert sum(row.get("train/skipped_steps", 0) for row in rows) == (
        state["scaler"]["skipped"] + state["progress"]["skipped_steps"]
    )
