"""What a training needs besides its configuration."""

from collections.abc import Callable
from dataclasses import dataclass, field

from trainer import heartbeat
from trainer.distributed import World
from trainer.heartbeat import Heartbeat
from trainer.rundir import RunDir
from trainer.stop import StopRequest
from trainer.terminal.console import Console
from trainer.tracking import Trackers


@dataclass(frozen=True, slots=True)
class Job:
    """What a training needs besides its configuration.

    Attributes:
        world: the workers.
        run: the run directory.
        console: where it speaks.
        trackers: who is told.
        stop: whether somebody asked this process to stop.
        gpu_percent: the GPUs' latest mean utilisation, None without a GPU.
        attempt: which attempt at the run this is, from 0.
        heart: where it gives signs of life.
    """

    world: World
    run: RunDir
    console: Console
    trackers: Trackers
    stop: StopRequest
    gpu_percent: Callable[[], float | None]
    attempt: int = 0
    heart: Heartbeat = field(default_factory=heartbeat.mine)
