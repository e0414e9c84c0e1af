"""What a run is made of between two steps: taken from the parts for a checkpoint, and put back into them."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from trainer import checkpoint
from trainer.assembly import Parts
from trainer.checkpoint import Checkpoint


@dataclass(slots=True)
class Progress:
    """Where a run stands; plain values that are saved with every checkpoint.

    Attributes:
        step: optimizer steps taken.
        best_accuracy: of the evaluations so far; negative before the first.
        best_epoch: the epoch of that evaluation, from 1.
        metrics: the last evaluation's.
        seconds: wall time of the whole run by what it was spent on, over all attempts.
    """

    step: int = 0
    best_accuracy: float = -1.0
    best_epoch: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def spend(self, what: str, seconds: float) -> None:
        """Books wall time."""
        self.seconds[what] = self.seconds.get(what, 0.0) + seconds


def snapshot(parts: Parts, progress: Progress) -> Checkpoint:
    """The state of the run, to be written by rank 0; all ranks must call it."""
    stepper = parts.stepper
    buffers = [b for b in parts.model.buffers() if b.is_floating_point()]
    tensors: dict[str, torch.Tensor] = {f"model.{name}": value for name, value in parts.model.state_dict().items()}
    if buffers and parts.world.world_size > 1:
        # Running statistics differ between ranks; with each rank's own, resume is exact.
        tensors["ranks.buffers"] = parts.world.gather(torch.nn.utils.parameters_to_vector(buffers))
    optimizer, plain = checkpoint.optimizer_tensors(stepper.optimizer)
    tensors.update({f"optimizer.{name}": value for name, value in optimizer.items()})
    state: dict[str, Any] = {
        "progress": asdict(progress),
        "applied_steps": stepper.applied_steps,
        "scaler": stepper.scaler.state_dict(),
        "optimizer": plain,
        "world_size": parts.world.world_size,
    }
    return Checkpoint(tensors, state)


def restore(parts: Parts, *, warn: Callable[[str], None]) -> Progress:
    """Loads the newest good checkpoint, if there is one.

    Raises:
        TrainingError: all checkpoints are damaged.
    """
    saved: Checkpoint | None = None

    def newest() -> int:
        nonlocal saved
        step, saved, problems = checkpoint.load_newest(parts.run)
        for problem in problems:
            warn(problem)
        return step

    # One rank decides: ranks that continue from different steps would never notice.
    step = parts.world.on_rank_zero(newest)
    if not step:
        return Progress()
    if saved is None:
        saved = checkpoint.load(parts.run.checkpoint(step))
    tensors, stepper, state = saved.tensors, parts.stepper, saved.state
    parts.model.load_state_dict(_below(tensors, "model."))
    rows = tensors.get("ranks.buffers")
    if rows is not None and len(rows) == parts.world.world_size:
        buffers = [b for b in parts.model.buffers() if b.is_floating_point()]
        torch.nn.utils.vector_to_parameters(rows[parts.world.rank].to(parts.world.device), buffers)
    checkpoint.restore_optimizer(stepper.optimizer, _below(tensors, "optimizer."), state["optimizer"])
    stepper.scaler.load_state_dict(state["scaler"])
    stepper.applied_steps = state["applied_steps"]
    return Progress(**state["progress"])


def _below(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
