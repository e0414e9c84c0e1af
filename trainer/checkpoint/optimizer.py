"""An optimizer's state as tensors and plain values, named by parameter and entry, and back."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, model: nn.Module
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimizer's state as tensors and plain values, named like `layer1.weight.momentum_buffer`.

    Args:
        optimizer: over parameters of `model`.
        model: gives the parameters their names; an optimizer's own numbers change with its groups.
    """
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors, values = {}, {}
    for parameter, entries in optimizer.state.items():
        for entry, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{names[parameter]}.{entry}"] = value
            elif value is not None:
                values[f"{names[parameter]}.{entry}"] = value
    return tensors, values


def restore_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, torch.Tensor], plain: Mapping[str, Any]
) -> None:
    """The reverse of `optimizer_tensors`; rates and other settings stay those of the configuration."""
    parameters = dict(model.named_parameters())
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = {parameter: number for number, parameter in enumerate(order)}
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *plain.items()]:
        name, entry = key.rsplit(".", 1)
        parameter = parameters.get(name)
        if parameter not in numbers:
            continue  # frozen since
        if isinstance(value, torch.Tensor):
            # Fused kernels walk through memory side by side: the strides must be the parameter's (channels_last).
            alike = torch.empty_like(parameter, dtype=value.dtype) if value.shape == parameter.shape else value.clone()
            value = alike.copy_(value)
        state.setdefault(numbers[parameter], {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def lacks_entries(optimizer: torch.optim.Optimizer, model: nn.Module, saved: Iterable[str]) -> bool:
    """Whether an optimizer, with the arguments that it has now, needs more than was saved of it.

    Args:
        optimizer: over parameters of `model`.
        model: gives the parameters their names.
        saved: the names of the tensors and values.
    """
    kept: dict[str, set[str]] = {}
    for key in saved:
        name, entry = key.rsplit(".", 1)
        kept.setdefault(name, set()).add(entry)
    # One that has had no gradient yet has nothing saved.
    dimensions = {name: parameter.ndim for name, parameter in model.named_parameters() if name in kept}
    needed = {number: _entries(optimizer, number) for number in set(dimensions.values())}
    return any(not needed[number] <= kept[name] for name, number in dimensions.items())


def _entries(optimizer: torch.optim.Optimizer, dimensions: int) -> set[str]:
    """What such an optimizer keeps of a parameter with so many dimensions."""
    kind: Any = type(optimizer)
    accepted = inspect.signature(kind).parameters
    probe = nn.Parameter(torch.ones((2,) * dimensions))
    probe.grad = torch.ones_like(probe)
    like = kind([probe], **{name: value for name, value in optimizer.defaults.items() if name in accepted})
    like.step()
    return {entry for entry, value in like.state[probe].items() if value is not None}
