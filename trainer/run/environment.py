"""What a worker finds on its machine: versions and device, kept in env.json for every node."""

import platform
import socket
from importlib import metadata
from typing import Any

import torch
import torch.distributed as dist

from trainer.distributed import World
from trainer.rundir import RunDir, write_json

_PACKAGES = ("paceline", "torch", "torchvision", "hydra-core", "wandb", "numpy", "safetensors")


def host() -> str:
    """This machine's name."""
    return socket.gethostname()


def describe(world: World) -> dict[str, Any]:
    """This worker's surroundings as plain values."""
    found: dict[str, Any] = {
        "rank": world.rank,
        "node": world.node_rank,
        "host": host(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "device": str(world.device),
        "threads": torch.get_num_threads(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }
    if world.device.type == "cuda":
        properties = torch.cuda.get_device_properties(world.device)
        found["gpu"] = {
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        }
    return found


def write(run: RunDir, world: World, *, attempt: int) -> None:
    """Gathers every rank's surroundings and writes them, the run's latest and the attempt's; all ranks must call it."""
    mine = describe(world)
    found: list[Any] = [None] * world.world_size
    if world.distributed:
        dist.gather_object(mine, found if world.is_rank_zero else None)
    else:
        found = [mine]
    if world.is_rank_zero:
        for path in (run.environment, run.attempt_environment(attempt)):
            write_json(path, {"workers": found})


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
