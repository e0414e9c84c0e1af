"""How a rank without samples takes part in a step, and leaves no trace in what the step makes."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F  # torch's own name for it
from torch import Tensor, nn

from trainer.checkpoint.buffers import changeable
from trainer.data.samples import IGNORED_TARGET, Batch


def stand_in(nothing: Batch) -> Batch:
    """Images that count for nothing, with which a rank without samples takes part in the exchange of gradients.

    Real ones, since what a network makes of a constant image may not be finite; two, since BatchNorm refuses one.
    """
    images = nothing[0][:1].expand(2, *nothing[0].shape[1:]).contiguous()
    targets = nothing[1].new_full((2,), IGNORED_TARGET)
    return (images, targets) if len(nothing) == 2 else (images, targets, targets.new_zeros(2), targets)


@contextmanager
def without_trace(model: nn.Module) -> Iterator[None]:
    """Over forward and backward of `stand_in`'s images: this rank's running statistics stay as they were.

    Those that all ranks share become what the others make of their samples.
    """
    shared = [module for module in model.modules() if isinstance(module, nn.SyncBatchNorm)]
    of_all = {id(buffer) for module in shared for buffer in module.buffers()}
    buffers = list(changeable(model).values())
    before = [buffer.clone() for buffer in buffers]
    for module in shared:
        module.forward = partial(_aside, module)
    try:
        yield
    finally:
        for module in shared:
            del module.forward
    if not buffers:
        return
    with torch.no_grad():
        # Where no rank has any sample, the mean over none of them is no number.
        stays = [
            torch.where(now.isfinite(), now, old) if id(now) in of_all else old
            for now, old in zip(buffers, before, strict=True)
        ]
        torch._foreach_copy_(buffers, stays)


def _aside(module: nn.SyncBatchNorm, images: Tensor) -> Tensor:
    """Normalises by these images' own statistics, and takes part in the exchange of the others' with none."""
    # As the others' statistics are exchanged, of which half-precision ones are in float32.
    none = images[:0].to(torch.promote_types(images.dtype, torch.float32))
    nothing = type(module).forward(module, none)
    own = F.batch_norm(images, None, None, module.weight, module.bias, training=True, eps=module.eps)
    # A sum over nothing: its gradient takes part in the exchange on the way back.
    return own + nothing.sum().to(own.dtype)
