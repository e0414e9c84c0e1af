"""What is said when a run goes on where other arithmetic is done."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.numerics import runs
from tests.workers import alone
from trainer import checkpoint
from trainer.config import DataConfig, OptimConfig
from trainer.errors import ConfigError
from trainer.rundir import RunDir
from trainer.training.assembly import Parts, assemble
from trainer.training.state import Progress, restore, snapshot


def parts_of(folder: Path, precision: str) -> Parts:
    return assemble(runs.configuration([], precision=precision), alone(), RunDir(folder))


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        ({}, []),
        ({"precision": "bf16", "device": "cuda"}, ["begun in bf16 on cuda, goes on in fp32 on cpu: the arithmetic is"]),
        ({"device": "cuda"}, ["begun in fp32 on cuda, goes on in fp32 on cpu: gradients agree up to rounding"]),
        ({"device": "cuda", "world_size": 2}, ["begun with 2 x 64 images at once", "begun in fp32 on cuda"]),
        ({"device": None, "precision": None}, []),
    ],
)
def test_another_device_or_number_format_is_said(tmp_path: Path, saved: dict[str, Any], said: list[str]) -> None:
    taken = snapshot(parts_of(tmp_path, "fp32"), Progress(step=2))
    # An earlier version noted neither.
    state = {name: value for name, value in {**taken.state, **saved}.items() if value is not None}
    checkpoint.save(RunDir(tmp_path).checkpoint(2), replace(taken, state=state))
    heard: list[str] = []
    restore(parts_of(tmp_path, "fp32"), accept_changes=False, warn=heard.append)
    assert len(heard) == len(said)
    assert all(line.startswith(words) for line, words in zip(heard, said, strict=True)), heard


def test_the_number_format_that_was_chosen_is_saved(tmp_path: Path) -> None:
    checkpoint.save(RunDir(tmp_path).checkpoint(2), snapshot(parts_of(tmp_path, "bf16"), Progress(step=2)))
    heard: list[str] = []
    restore(parts_of(tmp_path, "fp32"), accept_changes=False, warn=heard.append)
    assert len(heard) == 1
    assert "precision=bf16 keeps it" in heard[0]


def test_data_with_more_classes_is_named_and_not_taken_for_another_model(tmp_path: Path) -> None:
    checkpoint.save(RunDir(tmp_path).checkpoint(2), snapshot(parts_of(tmp_path, "fp32"), Progress(step=2)))
    data = DataConfig(name="synthetic", args={"classes": 11, "size": 8, "channels": 1, "n": 64})
    other = assemble(replace(runs.configuration([]), data=data), alone(), RunDir(tmp_path))
    with pytest.raises(
        ConfigError, match=r"the classes are others \(pattern 0, .* are new; 0, .* are missing\)"
    ) as refused:
        restore(other, accept_changes=True, warn=print)
    assert "data.root=DIR with the classes that it began with" in refused.value.fix


@pytest.mark.parametrize(
    ("batch", "step", "said"),
    [
        (64, 20, []),
        # 1,280 images; now half as many steps' worth, or twice.
        (32, 20, ["640 images of an epoch are seen a second time"]),
        (65, 20, ["20 images of an epoch are left out"]),
        (65, 1, ["1 image of an epoch is left out"]),
    ],
)
def test_images_that_come_twice_with_another_batch_are_counted(
    tmp_path: Path, batch: int, step: int, said: list[str]
) -> None:
    checkpoint.save(RunDir(tmp_path).checkpoint(step), snapshot(parts_of(tmp_path, "fp32"), Progress(step=step)))
    config = runs.configuration([], global_batch_size=batch)
    heard: list[str] = []
    restore(assemble(config, alone(), RunDir(tmp_path)), accept_changes=True, warn=heard.append)
    heard = [line for line in heard if "steps are what is counted" in line]
    assert [line.rpartition(", ")[2] for line in heard] == said
    restored = restore(assemble(config, alone(), RunDir(tmp_path)), accept_changes=True, warn=print)
    # Said once: what is saved from now on is of the new plan.
    checkpoint.save(
        RunDir(tmp_path).checkpoint(step + 1),
        snapshot(assemble(config, alone(), RunDir(tmp_path)), replace(restored, step=step + 1)),
    )
    heard.clear()
    restore(assemble(config, alone(), RunDir(tmp_path)), accept_changes=True, warn=heard.append)
    assert heard == []


@pytest.mark.parametrize(
    ("name", "before", "now", "forgets"),
    [
        ("adamw", {}, {"amsgrad": True}, True),
        ("adamw", {"amsgrad": True}, {"betas": [0.8, 0.9]}, False),
        ("rmsprop", {}, {"momentum": 0.9, "centered": True}, True),
        ("rmsprop", {"momentum": 0.9}, {}, False),
        ("sgd", {}, {"momentum": 0.9}, False),
    ],
)
def test_an_optimizer_that_keeps_more_now_begins_anew_and_says_so(
    tmp_path: Path, name: str, before: dict[str, Any], now: dict[str, Any], forgets: bool
) -> None:
    def parts_with(args: dict[str, Any]) -> Parts:
        config = runs.configuration([], optim=OptimConfig(name=name, args=args))
        return assemble(config, alone(), RunDir(tmp_path))

    def step(parts: Parts) -> None:
        for parameter in parts.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        parts.stepper.optimizer.step()

    first, heard = parts_with(before), list[str]()
    step(first)
    checkpoint.save(RunDir(tmp_path).checkpoint(1), snapshot(first, Progress(step=1)))
    second = parts_with(now)
    restore(second, accept_changes=True, warn=heard.append)
    step(second)
    assert any("keeps more than was saved: it begins without a memory" in line for line in heard) == forgets
