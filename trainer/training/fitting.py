"""Whether a model can be saved, and whether a checkpoint fits the one that is to go on from it: before it matters."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from trainer.checkpoint import Checkpoint, buffers
from trainer.checkpoint.image import HOLDABLE
from trainer.errors import ConfigError, TrainingError

_SHOWN = 3

Layout = dict[str, tuple[torch.dtype, torch.Size]]
"""What a model's state dict holds: name -> dtype and shape."""


def layout_of(model: nn.Module) -> Layout:
    """What has to be found again in the state dict of whatever goes on from a checkpoint of this model.

    Raises:
        ConfigError: it holds what a checkpoint cannot.
    """
    if lazy := sorted(name for name, value in model.state_dict().items() if nn.parameter.is_lazy(value)):
        raise ConfigError(
            f"the model has not made {_listed(lazy)} yet: a lazy layer takes its shape from its first input",
            "have the model's constructor call it once, with torch.zeros of the input's shape",
        )
    for name, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise ConfigError(
                f"the model's state dict holds {name}, which is a {type(value).__name__}: a checkpoint holds "
                "tensors alone",
                "have get_extra_state() return a tensor, such as torch.tensor(self.count), or keep it in a buffer",
            )
        if value.dtype not in HOLDABLE or value.layout != torch.strided:
            what = value.dtype if value.layout == torch.strided else value.layout
            raise ConfigError(
                f"a checkpoint cannot hold {name}, which is {what}",
                "another dtype, or a buffer that is registered with persistent=False",
            )
    return {name: (value.dtype, value.shape) for name, value in model.state_dict().items()}


def check_keeps(layout: Layout, model: nn.Module) -> None:
    """Refuses a model whose state dict is no longer laid out as when it was built: no other could go on from it.

    Raises:
        TrainingError: see above.
    """
    now = {name: (value.dtype, value.shape) for name, value in model.state_dict().items()}
    if now == layout:
        return
    others = sorted(name for name in now.keys() | layout.keys() if now.get(name) != layout.get(name))
    raise TrainingError(
        f"the model's state dict has changed since the model was built, in {_listed(others)}: nothing could go on from "
        "a checkpoint of it",
        "register such a buffer in the constructor, with its final shape, or with persistent=False where the model can "
        "make it again",
    )


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
