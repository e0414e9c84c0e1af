"""Optimizers by name, their parameter groups, and the schedule against torch's own."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    SequentialLR,
)

from trainer.config.schema import OptimConfig
from trainer.errors import ConfigError
from trainer.optim import build_optimizer, optimizer_class, parameter_groups
from trainer.schedule import lr_factor

CPU = torch.device("cpu")


class Net(nn.Module):
    """A parameter of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.scale = nn.Parameter(torch.ones(4))
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.layer_norm = nn.LayerNorm([4, 2, 2])
        self.frozen = nn.Linear(2, 2)
        self.head = nn.Linear(16, 2)
        self.frozen.requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.layer_norm(self.norm(self.conv(images)))
        return self.head(features.flatten(1)) * self.scale.sum() + self.token.sum()


def names_of(model: nn.Module, group: dict[str, Any]) -> set[str]:
    members = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in members}


def test_norms_biases_and_vectors_are_not_decayed_and_frozen_parameters_are_left_out() -> None:
    model = Net()
    decayed, plain = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert names_of(model, decayed) == {"token", "conv.weight", "head.weight"}
    assert names_of(model, plain) == {
        "scale", "conv.bias", "head.bias", "norm.weight", "norm.bias", "layer_norm.weight", "layer_norm.bias",
    }  # fmt: skip


def test_a_model_can_name_more_that_is_not_decayed() -> None:
    class Named(Net):
        def no_weight_decay(self) -> set[str]:
            return {"token"}

    model = Named()
    assert "token" in names_of(model, parameter_groups(model, 0.1)[1])


def test_each_group_remembers_the_peak_rate() -> None:
    optimizer = build_optimizer(OptimConfig(lr=0.3), Net(), CPU)
    assert [group["base_lr"] for group in optimizer.param_groups] == [0.3, 0.3]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [5e-4, 0.0]


@pytest.mark.parametrize(
    "name",
    [
        "sgd",
        "AdamW",
        "adam",
        "RMSprop",
        "nadam",
        "RAdam",
        "adagrad",
        "adadelta",
        "asgd",
        "rprop",
        "adafactor",
    ],
)
def test_optimizers_by_name_change_the_weights(name: str) -> None:
    torch.manual_seed(0)
    model = Net()
    optimizer = build_optimizer(OptimConfig(name=name, lr=0.01), model, CPU)
    before = model.conv.weight.detach().clone()
    frozen = model.frozen.weight.detach().clone()
    model(torch.randn(3, 1, 4, 4)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model.conv.weight, before)
    assert torch.equal(model.frozen.weight, frozen)


def test_the_fused_implementation_is_taken_unless_the_user_chose() -> None:
    assert build_optimizer(OptimConfig(), Net(), CPU).param_groups[0]["fused"] is True
    assert build_optimizer(OptimConfig(name="nadam"), Net(), CPU).param_groups[0]["foreach"] is True
    chosen = build_optimizer(OptimConfig(args={"foreach": False}), Net(), CPU).param_groups[0]
    assert (chosen["fused"], chosen["foreach"]) == (None, False)


@pytest.mark.parametrize("dampening", [0.0, 0.1])
def test_momentum_may_begin_in_different_steps(dampening: float) -> None:
    weights = []
    for extra in ({}, {"foreach": False}):
        first, second = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
        config = OptimConfig(lr=0.1, args={"momentum": 0.9, "dampening": dampening, **extra})
        optimizer = build_optimizer(config, nn.ParameterList([first, second]), torch.device("cpu"))
        for late in (None, torch.full((2, 2), 3.0), torch.ones(2, 2)):
            first.grad, second.grad = torch.ones(2, 2), late
            optimizer.step()
        weights.append([first.detach(), second.detach()])
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(one, other)


def test_the_fused_implementation_gives_the_plain_one_s_weights() -> None:
    def trained(**args: Any) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = Net()
        config = OptimConfig(lr=1e-4, args={"momentum": 0.9, "nesterov": True, **args})
        optimizer = build_optimizer(config, model, CPU)
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(3, 1, 4, 4)).square().mean().backward()
            optimizer.step()
        return list(model.parameters())

    for fused, plain in zip(trained(), trained(foreach=False), strict=True):
        torch.testing.assert_close(fused, plain)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (OptimConfig(name="admaw"), "did you mean optim.name=adamw?"),
        (OptimConfig(name="lbfgs"), "several times a step"),
        (OptimConfig(name="sparse_adam"), "sparse gradients"),
        (OptimConfig(name="adamw", args={"momentum": 0.9}), "optim.args.momentum"),
        (OptimConfig(name="adamw", args={"momentum": 0.9}), "it takes amsgrad, betas"),
        (OptimConfig(name="adamw", args={"momentum": 0.9}), "optim=adamw"),
        (OptimConfig(args={"lr": 0.9}), "set optim.lr instead"),
        (OptimConfig(args={"momentum": -1}), "Invalid momentum"),
        (OptimConfig(args={"nesterov": True}), "Nesterov momentum requires a momentum"),
        (OptimConfig(name="muon"), "matrices only"),
    ],
)
def test_a_wrong_optimizer_is_refused_with_a_way_out(config: OptimConfig, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_optimizer(config, Net(), CPU)
    assert words in str(error.value)


def test_a_model_that_is_frozen_altogether_is_refused() -> None:
    with pytest.raises(ConfigError, match="no parameter"):
        build_optimizer(OptimConfig(), nn.Linear(2, 2).requires_grad_(False), CPU)


def test_the_name_of_the_base_class_is_not_an_optimizer() -> None:
    with pytest.raises(ConfigError):
        optimizer_class("optimizer")


def reference(make: Any, steps: int) -> list[float]:
    """The rates that a scheduler of torch gives to each step, at a peak of 1."""
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler: LRScheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def ours(config: OptimConfig, steps: int, steps_per_epoch: int = 1) -> list[float]:
    return [lr_factor(config, step, steps, steps_per_epoch) for step in range(steps)]


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.25, 0.9])
@pytest.mark.parametrize("steps", [2, 7, 100])
def test_one_cycle_is_torch_s_one_cycle(warmup: float, steps: int) -> None:
    final = 0.001
    config = OptimConfig(schedule="one_cycle", warmup_fraction=warmup, final_factor=final)
    expected = reference(lambda o: OneCycleLR(o, 1.0, steps, pct_start=warmup, final_div_factor=1 / 25 / final), steps)
    if warmup * steps == 1:
        # torch divides by zero where the warm-up is one step; ours starts at the peak.
        assert ours(config, steps)[0] == 1.0
    else:
        assert ours(config, steps) == pytest.approx(expected)
    assert ours(config, steps)[-1] == pytest.approx(final)


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.33])
@pytest.mark.parametrize("final", [0.0, 0.2])
def test_cosine_is_torch_s_linear_warm_up_and_cosine_annealing(warmup: float, final: float) -> None:
    steps = 50
    w = round(warmup * steps)
    config = OptimConfig(schedule="cosine", warmup_fraction=warmup, final_factor=final)

    def both(optimizer: SGD) -> LRScheduler:
        cosine = CosineAnnealingLR(optimizer, steps - w, eta_min=final)
        if not w:
            return cosine
        return SequentialLR(optimizer, [LinearLR(optimizer, 1 / (w + 1), total_iters=w), cosine], [w])

    rates = ours(config, steps)
    assert rates == pytest.approx(reference(both, steps))
    assert min(rates) > 0
    assert rates[-1] == pytest.approx(final, abs=0.01)


def test_step_is_torch_s_multi_step() -> None:
    config = OptimConfig(schedule="step", warmup_fraction=0.0, step_epochs=[2, 3, 9], step_factor=0.5)
    expected = reference(lambda o: MultiStepLR(o, [20, 30, 90], gamma=0.5), 50)
    assert ours(config, 50, steps_per_epoch=10) == pytest.approx(expected)


def test_constant_stays_at_the_peak_after_the_warm_up() -> None:
    rates = ours(OptimConfig(schedule="constant", warmup_fraction=0.2), 10)
    assert rates == pytest.approx([1 / 3, 2 / 3] + [1.0] * 8)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step", "one_cycle"])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5, 0.9])
def test_every_step_of_every_schedule_has_a_rate_between_nothing_and_the_peak(schedule: str, warmup: float) -> None:
    config = OptimConfig(schedule=schedule, warmup_fraction=warmup, step_epochs=[1])
    for steps in (1, 2, 3, 5, 40):
        rates = ours(config, steps, steps_per_epoch=2)
        assert all(0 <= rate <= 1 for rate in rates)
        assert max(rates) > 0
        assert 0 <= lr_factor(config, steps + 3, steps, 2) <= 1
