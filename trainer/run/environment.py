"""What the workers find on their machines: versions, device, variables, and what of it differs; kept in env.json."""

import time
from typing import Any

import torch
import torch.distributed as dist

from trainer import cores
from trainer.distributed import World
from trainer.run import differences, surroundings
from trainer.run.rows import append_json_line
from trainer.rundir import RunDir, write_json


def describe(world: World) -> dict[str, Any]:
    """This worker's surroundings as plain values."""
    found: dict[str, Any] = {
        "rank": world.rank,
        "node": world.node_rank,
        **surroundings.found(),
        "device": str(world.device),
        "threads": torch.get_num_threads(),
        "cores": cores.allowed(),
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


def write(run: RunDir, world: World, *, attempt: int) -> list[str]:
    """Gathers every rank's surroundings and writes them, the run's latest and the attempt's; all ranks must call it.

    Variables that are the same for most are written once, and with a worker only where it has others.

    Returns:
        What differs among them though it should not, in words, on rank 0; it is among the run's events, too.
    """
    mine = describe(world)
    found: list[Any] = [None] * world.world_size
    if world.distributed:
        dist.gather_object(mine, found if world.is_rank_zero else None)
    else:
        found = [mine]
    if not world.is_rank_zero:
        return []
    lines, usual = differences.in_words(found), differences.common(found)
    for worker in found:
        worker["variables"] = differences.beside(worker["variables"], usual)
    for path in (run.environment, run.attempt_environment(attempt)):
        write_json(path, {"workers": found, "variables": usual, "differences": lines})
    if lines:
        row = {"time": time.time(), "event": "environments_differ", "attempt": attempt, "differences": lines}
        append_json_line(run.events, row)
    return differences.shortened(lines, str(run.environment))
