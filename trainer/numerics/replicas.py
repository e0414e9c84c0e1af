"""All ranks hold the same weights: a digest of each one's tells when that is no longer true, and whose are others."""

import socket
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from trainer.distributed import World
from trainer.errors import TrainingError
from trainer.wording import span

_LOW = 0xFFFFFFFF
_HOSTS_SHOWN = 4


class Digest:
    """64 bits of a model's parameters, which another value of any single bit changes; made on the device.

    `torch.hash_tensor` is the exclusive or of a tensor's bit patterns, at the speed of memory. The tensors' own are
    scattered and added up, so that it matters which tensor has which.

    Args:
        model: not wrapped, on its device.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = [_hashable(p.detach()) for p in model.parameters() if p.numel()]
        count, device = len(self._parameters), self._parameters[0].device
        # Odd numbers (Weyl's sequence of the golden ratio): multiplying by one loses no bit.
        odd = [(2 * index + 1) * 0x9E3779B97F4A7C15 & 2**64 - 1 for index in range(count)]
        self._odd = torch.tensor([value - 2**64 if value >= 2**63 else value for value in odd], device=device)

    def __call__(self) -> torch.Tensor:
        """The digest, an int64 scalar on the device; waits for nothing."""
        hashes = torch.stack([torch.hash_tensor(parameter).view(torch.int64) for parameter in self._parameters])
        return ((hashes ^ (hashes >> 32)) * self._odd).sum()


def _hashable(tensor: torch.Tensor) -> torch.Tensor:
    """A view of the same memory in a type that `torch.hash_tensor` knows."""
    if tensor.is_complex():
        return torch.view_as_real(tensor)
    return tensor.view(torch.uint8) if tensor.itemsize == 1 else tensor


def are_comparable(world: World, *, warn: Callable[[str], None]) -> bool:
    """Whether all ranks round alike; says so once where they do not. All ranks must call it.

    Every rank applies the same reduced gradients, but where clipping and the optimizer round in other ways the weights
    drift apart by that, as with any data-parallel training on unlike hardware: it is no sign of a fault.

    Args:
        world: the workers.
        warn: told of unlike hardware.
    """
    kinds = world.everyones(rounding(world.device))
    if len(set(kinds)) == 1:
        return True
    named = [f"{kind} (rank {kinds.index(kind)})" for kind in dict.fromkeys(kinds)][:_HOSTS_SHOWN]
    warn(
        f"the workers' hardware or software is not alike: {'; '.join(named)}; their weights drift apart by rounding, "
        "so they are not compared bit by bit, and a fault of one worker's memory may go unnoticed"
    )
    return False


def rounding(device: torch.device) -> str:
    """What decides how clipping and the optimizer round on a device, in words."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"{torch.cuda.get_device_name(device)} {major}.{minor}, torch {torch.__version__}"
    threads = torch.get_num_threads()
    return f"CPU {torch.backends.cpu.get_cpu_capability()}, {threads} threads, torch {torch.__version__}"


def spread(digest: torch.Tensor, world: World) -> torch.Tensor:
    """A digest in its rank's place, float64 [2 * world_size]: added up over the ranks they are all there, exactly."""
    places = torch.zeros(2 * world.world_size, dtype=torch.float64, device=digest.device)
    places[2 * world.rank] = (digest & _LOW).double()
    places[2 * world.rank + 1] = (digest >> 32).double()
    return places


def collected(places: list[float]) -> list[str]:
    """Every rank's digest, 16 hexadecimal digits, from the sum of what `spread` has given."""
    pairs = zip(places[::2], places[1::2], strict=True)
    return [f"{((int(high) << 32) | int(low)) & 2**64 - 1:016x}" for low, high in pairs]


def odd_ranks(digests: list[str]) -> list[int]:
    """The ranks whose weights are not those of the majority; all where there is none; empty where all agree."""
    [(usual, count), *others] = Counter(digests).most_common()
    if not others:
        return []
    if 2 * count <= len(digests):
        return list(range(len(digests)))
    return [rank for rank, digest in enumerate(digests) if digest != usual]


def difference(digests: list[str], world: World, *, since: int, step: int) -> dict[str, Any] | None:
    """What is known when replicas differ, as plain values; None when all agree. All ranks must call it.

    Args:
        digests: of all ranks, after `step` steps.
        world: the workers.
        since: the step after which they last agreed.
        step: the step after which they were compared.
    """
    ranks = odd_ranks(digests)
    if not ranks:
        return None
    places = world.everyones(f"{socket.gethostname()}, {world.device}")
    return {
        "first_step": since + 1,
        "step": step,
        "ranks": ranks,
        "hosts": [places[rank] for rank in ranks],
        "digests": digests,
    }


def error(details: dict[str, Any], *, replay: str) -> TrainingError:
    """What ends the run.

    Args:
        details: of `difference`.
        replay: the command that does these steps again.
    """
    ranks, hosts, digests = details["ranks"], details["hosts"], details["digests"]
    named = [f"{rank} ({host})" for rank, host in zip(ranks, hosts, strict=True)][:_HOSTS_SHOWN]
    more = f" and {len(ranks) - len(named)} more" if len(ranks) > len(named) else ""
    who = f"{'rank' if len(ranks) == 1 else 'ranks'} {', '.join(named)}{more}"
    steps = span(details["first_step"], details["step"])
    if len(ranks) == len(digests):
        problem, which = f"{who} have come to different weights in {steps}", f"which, {replay} tells"
    else:
        have = "has" if len(ranks) == 1 else "have"
        problem = f"{who} {have} come to other weights than the other {len(digests) - len(ranks)} ranks in {steps}"
        which = f"leave {'that machine' if len(ranks) == 1 else 'those machines'} out"
    return TrainingError(
        problem,
        f"memory or arithmetic is at fault, or a model that changes its own weights: {which}; "
        "the same command goes on from the last checkpoint, where all agreed",
        details=details,
    )
