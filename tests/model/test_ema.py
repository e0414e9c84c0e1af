import copy

import pytest
import torch
from torch import nn

from tests.workers import alone
from trainer.check.validate import validate
from trainer.config import Config, EmaConfig
from trainer.data.sampler import StepPlan
from trainer.errors import ConfigError
from trainer.model.ema import Ema, decay_at
from trainer.precision import Scaler, choose
from trainer.training.step import Stepper


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def criterion(output: object, targets: torch.Tensor) -> torch.Tensor:
    assert isinstance(output, torch.Tensor)
    return nn.functional.cross_entropy(output, targets, reduction="sum")


def test_the_average_is_that_of_a_plain_loop_in_double_precision() -> None:
    model = network()
    ema = Ema(model, 0.9)
    expected = [parameter.detach().double() for parameter in model.parameters()]
    for update in range(1, 120):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
        ema.update(update)
        decay = min(0.9, (1 + update) / (10 + update))
        expected = [
            decay * average + (1 - decay) * parameter.double()
            for average, parameter in zip(expected, model.parameters(), strict=True)
        ]
    for average, value in zip(ema.model.parameters(), expected, strict=True):
        assert torch.allclose(average.double(), value, atol=1e-5)


def test_the_decay_rises_and_the_first_weights_are_soon_forgotten() -> None:
    decays = [decay_at(update, 0.9999) for update in range(1, 100_000)]
    assert decays == sorted(decays)
    assert decays[-1] == 0.9999
    share = 1.0
    for decay in decays[:100]:
        share *= decay
    assert share < 1e-9


def test_buffers_are_taken_over_and_nothing_of_the_copy_trains() -> None:
    model = network()
    ema = Ema(model, 0.99)
    model(torch.randn(8, 4))
    ema.follow_buffers()
    assert all(torch.equal(a, b) for a, b in zip(ema.model.buffers(), model.buffers(), strict=True))
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())


def test_shared_parameters_are_averaged_once_and_saved_under_all_their_names() -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    ema = Ema(model, 0.5)
    with torch.no_grad():
        first.weight += 1
    ema.update(1)
    assert ema.state().keys() == model.state_dict().keys()
    other = Ema(copy.deepcopy(model), 0.5)
    other.load(ema.state())
    assert all(torch.equal(other.state()[name], value) for name, value in ema.state().items())


def test_a_skipped_step_leaves_the_average_alone() -> None:
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    optimizer.param_groups[0]["base_lr"] = 0.5
    ema = Ema(model, 0.99)
    plan = StepPlan(samples=40, global_batch_size=4)
    take = Stepper(
        model=model, optimizer=optimizer, lr_factor=lambda step: 1.0,
        criterion=criterion,
        normaliser=lambda images: images, precision=choose("fp32", torch.device("cpu")),
        scaler=Scaler(enabled=True, device=torch.device("cpu")), world=alone(), clip_norm=None, seed=0,
        counts_targets=False, ema=ema,
    )  # fmt: skip
    images, targets = torch.randn(4, 4), torch.tensor([0, 1, 2, 0])
    # Apart from the model, so that an update would show.
    with torch.no_grad():
        model.weight += 1
    before = ema.state()["weight"].clone()
    take(plan.share(0), iter([(images * torch.inf, targets)]))
    assert take.scaler.skipped == 1
    assert torch.equal(ema.state()["weight"], before)
    take(plan.share(1), iter([(images, targets)]))
    assert torch.allclose(ema.state()["weight"], before.lerp(model.weight.detach(), 9 / 11))


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, 1.5])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(ConfigError, match=f"ema.decay={decay} is out of range"):
        validate(Config(ema=EmaConfig(decay)), world_size=1)
