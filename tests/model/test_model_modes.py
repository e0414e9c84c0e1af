"""A part of a model that it keeps in evaluation mode stays so, whatever the trainer does in between."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch._dynamo.utils import counters

from tests.numerics import runs
from tests.workers import alone
from trainer.config import ModelConfig
from trainer.config.keys import get
from trainer.errors import ConfigError
from trainer.rundir import RunDir
from trainer.training.assembly import assemble

HERE = "tests.model.test_model_modes"


class FrozenNorm(nn.Module):
    """Its BatchNorm keeps the statistics it came with."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(64).eval(), nn.Linear(64, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.norm(images.flatten(1)))
        return logits


class Normalised(nn.Module):
    """Its BatchNorm sees a single value a channel of a lone image."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, num_classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(images)
        return logits


def test_a_frozen_batchnorm_stays_frozen_over_evaluations(tmp_path: Path) -> None:
    config = runs.configuration([], model=ModelConfig(_target_=f"{HERE}.FrozenNorm"), epochs=3)
    assert runs.train_in(alone(), tmp_path, config)[0] is None
    weights = load_file(RunDir(tmp_path).weights("last"))
    assert weights["norm.num_batches_tracked"] == 0
    assert not weights["norm.running_mean"].any()


@pytest.mark.parametrize("compiles", [False, True])
def test_a_lone_sample_is_refused_before_anything_is_compiled(tmp_path: Path, *, compiles: bool) -> None:
    samples = len(runs.digits_with_blanks([]).train)
    model = ModelConfig(_target_=f"{HERE}.Normalised", compile=compiles)
    config = runs.configuration([], model=model, global_batch_size=samples - 1)
    error, _ = runs.train_in(alone(), tmp_path, config)
    assert "single sample" in str(error)


@pytest.mark.parametrize(
    ("changes", "where", "ways"),
    [
        ({"global_batch_size": 1}, "a step has", ["global_batch_size=2"]),
        ({"micro_batch_size": 1}, "a step has", ["micro_batch_size=2"]),
        ({"micro_batch_size": 1, "data.drop_last": True}, "a step has", ["micro_batch_size=2"]),
    ],
)
def test_a_lone_sample_in_every_step_is_told_with_what_mends_it_alone(
    changes: dict[str, Any], where: str, ways: list[str]
) -> None:
    config = runs.configuration([], model=ModelConfig(_target_=f"{HERE}.Normalised"), epochs=1)
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        setattr(get(config, section) if section else config, name, value)
    with pytest.raises(ConfigError) as caught:
        assemble(config, alone(), RunDir("unused"))
    assert where in caught.value.problem
    assert caught.value.fix.split(", or ") == ways


def test_a_lone_sample_is_fine_before_a_frozen_batchnorm(tmp_path: Path) -> None:
    samples = len(runs.digits_with_blanks([]).train)
    config = runs.configuration([], model=ModelConfig(_target_=f"{HERE}.FrozenNorm"), global_batch_size=samples - 1)
    assert runs.train_in(alone(), tmp_path, config)[0] is None


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_model_learns_the_same(tmp_path: Path) -> None:
    """Its weights carry the names and, but for rounding, the values of the one that was not compiled."""
    counters.clear()
    found = []
    for compiles in (False, True):
        folder = tmp_path / str(compiles)
        model = ModelConfig(_target_=f"{HERE}.Normalised", compile=compiles)
        assert runs.train_in(alone(), folder, runs.configuration([], model=model, epochs=1))[0] is None
        found.append(load_file(RunDir(folder).weights("last")))
    assert counters["stats"]["unique_graphs"] > 0
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
