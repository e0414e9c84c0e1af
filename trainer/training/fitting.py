"""Whether a checkpoint fits the model that is to go on from it; asked before any of its tensors is used."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from trainer.checkpoint import Checkpoint, buffers
from trainer.errors import ConfigError

_SHOWN = 3


def check_fits(saved: Checkpoint, step: int, model: nn.Module) -> None:
    """Compares names, shapes and dtypes.

    Raises:
        ConfigError: the checkpoint is another model's; the difference is shown.
    """
    differences = list(_misfits(saved, model))
    if differences:
        raise ConfigError(
            f"the checkpoint of step {step:,} is whole, but of another model: {'; '.join(differences)}",
            "model.name=... and model.args=... as the run was begun with, or run.fresh=true to start over beside it",
        )


def _misfits(saved: Checkpoint, model: nn.Module) -> Iterator[str]:
    there = {name.removeprefix("model."): t for name, t in saved.tensors.items() if name.startswith("model.")}
    here = model.state_dict()
    if lacking := sorted(here.keys() - there.keys()):
        yield f"it lacks {_listed(lacking)}"
    if unknown := sorted(there.keys() - here.keys()):
        yield f"it has {_listed(unknown)}, which this model has not"
    pairs = {
        **buffers.common(model, saved.tensors),
        **{name: (there[name], here[name]) for name in here.keys() & there},
    }
    others = sorted(name for name, (one, other) in pairs.items() if _kind(one) != _kind(other))
    for name in others[:_SHOWN]:
        yield f"{name} is {_kind(pairs[name][0])} there and {_kind(pairs[name][1])} here"
    if len(others) > _SHOWN:
        yield f"and so {len(others) - _SHOWN} more"


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
