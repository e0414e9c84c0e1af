"""An optimizer's state as tensors and plain values, named by parameter and entry, and back."""

from collections.abc import Mapping
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
