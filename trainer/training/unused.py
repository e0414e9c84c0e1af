"""Parameters that take no part in a step, which DDP must have been told of."""

import re

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from trainer.errors import TrainingError

_NAMED = 4


def check_averaged(model: nn.Module, *, step: int) -> None:
    """Refuses a step, after its backward pass, whose gradients are not all averaged over the ranks.

    DDP itself would tell only in the next step, when this one's update is done with gradients that differ by rank.

    Args:
        model: as `data_parallel` gave it.
        step: counted from 1.

    Raises:
        TrainingError: parameters took no part in the step on this rank.
    """
    if not isinstance(model, DistributedDataParallel):
        return
    try:
        model._check_reducer_finalized()
    except RuntimeError as error:
        raise _unused(model, str(error), step) from error


def _unused(model: DistributedDataParallel, said: str, step: int) -> TrainingError:
    trained = [name for name, parameter in model.module.named_parameters() if parameter.requires_grad]
    found = re.search(r"did not receive grad for rank \d+:((?: \d+)+)", said)
    unused = [trained[int(number)] for number in found[1].split()] if found else []
    more = f" and {len(unused) - _NAMED} more" if len(unused) > _NAMED else ""
    named = f", {', '.join(unused[:_NAMED])}{more}" if unused else ""
    override = "distributed.find_unused_parameters=true"
    count = f"{len(unused)} of {len(trained)}" if unused else "some"
    return TrainingError(
        f"{count} parameters took no part in step {step:,}{named}: their gradients cannot be averaged over the ranks",
        f"{override}, if that depends on the step; requires_grad_(False) on those that are never used",
        instead=([], [override]),
    )
