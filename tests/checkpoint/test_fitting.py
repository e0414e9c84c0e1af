"""A model of which no checkpoint could be made, or gone on from, is refused within a step, not at the resume."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.numerics import runs
from tests.workers import alone
from trainer.config import CheckpointConfig, ModelConfig
from trainer.errors import ConfigError, TrainingError
from trainer.run.rows import read_json_lines
from trainer.rundir import RunDir


class Plain(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(64, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images.flatten(1))


class Counting(Plain):
    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 1}

    def set_extra_state(self, state: Any) -> None:
        pass


class Wide(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("phases", torch.zeros(2, dtype=torch.complex128))


class Lazy(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.head = nn.LazyLinear(num_classes)


class Late(Plain):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if "seen" not in self._buffers:
            self.register_buffer("seen", torch.zeros(1))
        return super().forward(images)


class Growing(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(self.seen) < 8:
            self.seen = torch.zeros(len(self.seen) + 1)
        return super().forward(images)


class Remembering(Plain):
    """What is not persistent may come as it likes."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.register_buffer("mask", torch.ones(len(images)), persistent=False)
        return super().forward(images)


@pytest.mark.parametrize(
    ("model", "kind", "words"),
    [
        (Counting, ConfigError, "holds _extra_state, which is a dict"),
        (Wide, ConfigError, "cannot hold phases, which is torch.complex128"),
        (Lazy, ConfigError, "has not made head.bias, head.weight yet"),
        (Late, TrainingError, "changed since the model was built, in seen"),
        (Growing, TrainingError, "changed since the model was built, in seen"),
        (Remembering, None, ""),
    ],
)
def test_a_model_of_which_nothing_could_go_on_is_refused_within_a_step(
    model: type[nn.Module], kind: type[Exception] | None, words: str, tmp_path: Path
) -> None:
    config = runs.configuration(
        [],
        max_steps=4,
        model=ModelConfig(_target_=f"{__name__}.{model.__name__}"),
        checkpoint=CheckpointConfig(every_steps=3),
    )
    error, _ = runs.train_in(alone(), tmp_path / "run", config)
    assert type(error) is (kind or type(None))
    assert words in str(error)
    if kind is not None:
        assert not list(read_json_lines(RunDir(tmp_path / "run").metrics))
