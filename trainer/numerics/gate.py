"""Looks at every step's gradients, and keeps those that are not finite from the weights; the host waits for nothing."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import Optimizer


class Gate:
    """Closes for a step whose gradients are not finite: weights, optimizer and running statistics stay as they were.

    Args:
        model: its running statistics take part in the forward pass, so they are put back.
        optimizer: of its parameters.
        device: where they are.
        only_looks: never close.

    Attributes:
        closed: float32 scalar on the device, 1 where the step is left out. All ranks find the same, since they hold
            the same reduced gradients.
        norm: global norm of the step's gradients before clipping, on the device; None before the first.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, device: torch.device, *, only_looks: bool) -> None:
        self._optimizer = optimizer
        self._only_looks = only_looks
        self._buffers: dict[torch.dtype, list[torch.Tensor]] = {}
        for buffer in [] if only_looks else model.buffers():
            self._buffers.setdefault(buffer.dtype, []).append(buffer)
        self._kept: dict[torch.dtype, torch.Tensor] = {}
        self.closed = torch.zeros((), device=device)
        self.norm: torch.Tensor | None = None

    def begin(self) -> None:
        """Remembers the running statistics, before the forward pass."""
        self._kept = {kind: _flat(buffers) for kind, buffers in self._buffers.items()}

    def lets_through(self, parameters: Sequence[nn.Parameter], empty: torch.Tensor | None = None) -> bool:
        """Looks at the gradients, which are reduced over the ranks already.

        Args:
            parameters: those that train.
            empty: float32 scalar on the device, 1 where the step has no sample; None: it has some.

        Returns:
            Whether to call the optimizer, which may still leave the update out on the device.
        """
        self.norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self._only_looks:
            return may_update(self._optimizer, empty)
        self.closed = (~self.norm.isfinite()).float()
        return may_update(self._optimizer, self.closed if empty is None else torch.maximum(self.closed, empty))

    def close(self) -> None:
        """The step was left out by others: by fp16's loss scaling."""
        self.closed = torch.ones_like(self.closed)

    def end(self) -> None:
        """Puts the running statistics back where the gate was closed, and opens it."""
        for kind, buffers in self._buffers.items():
            chosen = torch.where(self.closed > 0, self._kept[kind], _flat(buffers))
            parts = chosen.split([buffer.numel() for buffer in buffers])
            torch._foreach_copy_(buffers, [part.view_as(b) for part, b in zip(parts, buffers, strict=True)])
        self.closed = torch.zeros_like(self.closed)


def may_update(optimizer: Optimizer, left_out: torch.Tensor | None) -> bool:
    """Has an optimizer leave its next update out where a flag says so.

    Fused optimizers do it on the device where their `found_inf` is 1, as GradScaler has them do. For the others the
    host reads the flag.

    Args:
        optimizer: the optimizer.
        left_out: float32 scalar on the device, 1 where the update is left out; None: it is not.

    Returns:
        Whether to call it.
    """
    if left_out is None:
        return True
    if not getattr(optimizer, "_step_supports_amp_scaling", False) or _is_without_memory(optimizer):
        return not left_out
    optimizer.grad_scale, optimizer.found_inf = None, left_out  # type: ignore[attr-defined]
    return True


def _is_without_memory(optimizer: Optimizer) -> bool:
    """Whether an optimizer that has a memory begins it in the next step.

    Some fused ones would then do so even where they leave the update out: with what nobody has set.
    """
    # SGD without momentum never has one: it must not be waited for at every step.
    return not optimizer.state and any(group.get("momentum", True) for group in optimizer.param_groups)


def _flat(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])
