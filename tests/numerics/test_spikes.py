"""A sudden rise of the loss is an event; the noise and the fall of an ordinary training are not."""

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.numerics.runs import configuration, train_in
from tests.workers import alone
from trainer.config import Config, ModelConfig, OptimConfig
from trainer.numerics.spikes import Spike, Spikes
from trainer.run.rows import read_json_lines
from trainer.rundir import RunDir


def rows(folder: Path, config: Config) -> tuple[list[dict[str, Any]], str]:
    error, said = train_in(alone(), folder, config)
    assert error is None
    return [row for row in read_json_lines(RunDir(folder).events) if row["event"] == "loss_spike"], said


@pytest.mark.parametrize("lr", [0.002, 0.05, 0.3])
@pytest.mark.parametrize(("log_every_steps", "batch"), [(1, 16), (5, 64), (25, 8)])
def test_ordinary_trainings_raise_no_alarm(lr: float, log_every_steps: int, batch: int, tmp_path: Path) -> None:
    """From the start to a loss near nothing; with an epoch's ragged last row."""
    config = configuration(
        [], epochs=4, global_batch_size=batch, log_every_steps=log_every_steps,
        optim=OptimConfig(lr=lr, args={"momentum": 0.9}),
    )  # fmt: skip
    found, said = rows(tmp_path, config)
    assert found == []
    assert "risen" not in said


class Stumbling(nn.Module):
    """Loses its way for five steps: its logits are the wrong way round."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(64, num_classes)
        self.steps = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.layer(images.flatten(1))
        self.steps += self.training
        return -logits.detach() + 0 * logits if 150 < self.steps <= 155 else logits


def test_a_spike_is_told_once_with_its_worst_step_and_how_to_see_its_samples(tmp_path: Path) -> None:
    model = ModelConfig(_target_="tests.numerics.test_spikes.Stumbling")
    [event], said = rows(tmp_path / "run", configuration([], epochs=8, model=model))
    assert event["first_step"] <= 155
    assert event["step"] >= 155
    assert event["worst_step"] in range(151, 156)
    assert event["loss"] > 1.5 * event["usual_loss"]
    assert event["samples"].endswith(f"--step {event['worst_step']}")
    assert said.count("the loss has risen") == 1


def test_the_rule_knows_noise_levels_and_small_rows() -> None:
    noise = random.Random(0)

    def look(spikes: Spikes, *losses: float, samples: int = 500) -> list[Spike | None]:
        return [spikes.look(1, [loss], [samples]) for loss in losses]

    spikes = Spikes()
    assert not any(look(spikes, *(2 + noise.gauss(0, 0.2) for _ in range(500))))
    assert not any(look(spikes, 5.0, 2.0, 1.9, 2.1, 2.0, samples=100))  # one bad row of five is no spike of the five
    assert look(spikes, math.nan) == [None]
    first, again, usual, second = look(spikes, 6.0, 6.0, 2.0, 6.0)
    assert first is not None
    assert first.usual == pytest.approx(2, abs=0.2)
    assert again is None  # told already
    assert usual is None
    assert second is not None
    assert not any(look(Spikes(), *(noise.expovariate(100) for _ in range(500))))
