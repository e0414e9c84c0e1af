"""The buffers that a model's state dict does not tell: every rank's own, and those that are not persistent."""

from collections.abc import Mapping

import torch
from torch import nn

from trainer.checkpoint.image import HOLDABLE
from trainer.distributed import World

_PREFIX = "each_rank."
_FLAT = "ranks.buffers"


def own_to_ranks(model: nn.Module, world: World) -> dict[str, torch.Tensor]:
    """Every rank's buffers, [world_size, ...] each, as `_plain` views them; all ranks must call it.

    Running statistics differ between ranks, and with each rank's own resume is exact. A single worker's persistent
    buffers are in its state dict.
    """
    persistent = model.state_dict().keys() if world.world_size == 1 else ()
    mine = {name: buffer for name, buffer in changeable(model).items() if name not in persistent}
    if not mine:
        return {}
    # As bytes: one exchange, in which no dtype becomes another.
    rows = world.gather(torch.cat([buffer.reshape(-1).view(torch.uint8) for buffer in mine.values()]))
    parts = rows.split([buffer.nbytes for buffer in mine.values()], dim=1)
    return {
        # A copy of its own, since each dtype wants another alignment.
        f"{_PREFIX}{name}": part.clone(memory_format=torch.contiguous_format)
        .view(buffer.dtype)
        .view(len(rows), *buffer.shape)
        for (name, buffer), part in zip(mine.items(), parts, strict=True)
    }


@torch.no_grad()
def give_back(model: nn.Module, tensors: Mapping[str, torch.Tensor], world: World) -> None:
    """Gives this rank its buffers back from a snapshot with `own_to_ranks`.

    Args:
        model: has the snapshot's state dict already.
        tensors: the snapshot's.
        world: if its size is another than the snapshot's, a rank begins with what the ranks there have seen on average.
    """
    for name, buffer in changeable(model).items():
        rows = tensors.get(f"{_PREFIX}{name}")
        if rows is not None:
            buffer.copy_(_row(rows, world))
    if (flat := tensors.get(_FLAT)) is not None:
        _give_back_flat(model, flat, world)


def common(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Name -> rank 0's in a snapshot and the model's own, of the buffers that both have."""
    return {
        name: (tensors[f"{_PREFIX}{name}"][0], buffer)
        for name, buffer in changeable(model).items()
        if f"{_PREFIX}{name}" in tensors
    }


def _give_back_flat(model: nn.Module, flat: torch.Tensor, world: World) -> None:
    """From a checkpoint of earlier versions: the floating-point buffers as one row, in the widest of their dtypes."""
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    parts = _row(flat, world).split([buffer.numel() for buffer in buffers])
    for buffer, part in zip(buffers, parts, strict=True):
        buffer.copy_(part.view_as(buffer))


def _row(rows: torch.Tensor, world: World) -> torch.Tensor:
    if len(rows) == world.world_size:
        return rows[world.rank]
    bytes_ = rows.reshape(len(rows), -1).view(torch.uint8)
    if not rows.is_floating_point() or bool((bytes_ == bytes_[0]).all()):
        return rows[0]
    return rows.double().mean(0).to(rows.dtype)


def changeable(model: nn.Module) -> dict[str, torch.Tensor]:
    """Those that a step can change in place; an expanded view has several elements in one place of memory."""
    return {
        name: _plain(buffer)
        for name, buffer in model.named_buffers()
        if buffer.layout == torch.strided
        and buffer.numel()
        and all(stride for size, stride in zip(buffer.shape, buffer.stride(), strict=True) if size > 1)
    }


def _plain(buffer: torch.Tensor) -> torch.Tensor:
    """A view of a buffer that a file can hold: the real one of a complex one, the bytes of some rare dtypes."""
    if buffer.is_complex():
        return torch.view_as_real(buffer)
    rare = buffer.dtype not in HOLDABLE and buffer.element_size() == 1
    return buffer.view(torch.uint8) if rare else buffer
