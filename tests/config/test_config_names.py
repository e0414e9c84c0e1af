"""The names read from source text against what the imported packages say."""

import inspect
import time

import pytest
import torch
from torchvision import models

from trainer.config import names
from trainer.model import registry


def test_the_models_are_those_of_the_registry() -> None:
    assert sorted(names.model_names()) == sorted(registry.names())


@pytest.mark.parametrize("model", models.list_models(module=models))
def test_the_weights_are_torchvisions(model: str) -> None:
    assert names.weights_names(model) == sorted(models.get_model_weights(model).__members__)


@pytest.mark.parametrize("model", models.list_models(module=models))
def test_the_smallest_images_are_torchvisions(model: str) -> None:
    sizes = (min(member.meta["min_size"]) for member in models.get_model_weights(model))
    assert names.smallest_image(model) == min(sizes)


@pytest.mark.parametrize("model", models.list_models(module=models))
def test_addresses_and_numbers_of_parameters_are_torchvisions(model: str) -> None:
    known = models.get_model_weights(model)
    assert {name: names.weights_url(model, name) for name in names.weights_names(model)} == {
        name: member.url for name, member in known.__members__.items()
    }
    assert all(names.parameter_counts()[member.meta["num_params"]] == model for member in known)


def test_our_own_models_have_no_published_weights() -> None:
    assert names.weights_names("small_resnet") == []
    assert names.weights_url("small_resnet", "DEFAULT") is None


def test_the_optimizers_are_those_of_torch() -> None:
    public = {
        name
        for name, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    }
    assert set(names.optimizer_names()) == public - set(names.REFUSED_OPTIMIZERS)
    assert set(names.REFUSED_OPTIMIZERS) <= public


@pytest.mark.parametrize("name", names.optimizer_names())
def test_the_arguments_of_an_optimizer_are_those_of_its_constructor(name: str) -> None:
    expected = [
        argument for argument in inspect.signature(getattr(torch.optim, name)).parameters if argument != "params"
    ]
    assert list(names.optimizer_arguments(name.lower())) == expected


def test_reading_the_names_takes_no_time() -> None:
    for cached in (names._torchvision, names._ours, names._optimizers, names._location):
        cached.cache_clear()
    begin = time.process_time()
    names.model_names()
    names.weights_names("resnet50")
    names.optimizer_arguments("adamw")
    assert time.process_time() - begin < 0.3


def test_shipped_data_sets_have_a_file_each() -> None:
    assert {"folder", "fashion_mnist", "digits", "synthetic"} <= set(names.dataset_names())
    assert set(names.group_options("data")) <= set(names.dataset_names())
