"""Batch arithmetic: how a global batch is dealt to workers and micro-batches. Pure."""

from dataclasses import dataclass

from trainer.errors import ConfigError


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """How the samples of one full optimizer step are dealt.

    Attributes:
        global_batch_size: samples of a step, over all workers.
        world_size: workers.
        share: samples of the worker that has most; others may have one fewer.
        micro_batch_size: samples of the largest micro-batch.
        accumulation: micro-batches of the worker that has most.
        even: whether every worker takes the same number of equal micro-batches.
        nearest: the nearest global batch sizes below and above that divide evenly; empty when this one does.
    """

    global_batch_size: int
    world_size: int
    share: int
    micro_batch_size: int
    accumulation: int
    even: bool
    nearest: tuple[int, ...]

    def __str__(self) -> str:
        workers = f"{self.world_size} worker{'s' if self.world_size > 1 else ''}"
        total = f"global batch {self.global_batch_size}"
        if self.even:
            return f"{total} = {workers} x {self.micro_batch_size} x {self.accumulation}"
        values = " or ".join(f"global_batch_size={value}" for value in self.nearest)
        return (
            f"{total} = {workers} x up to {self.micro_batch_size} x up to "
            f"{self.accumulation}: uneven, still weighted exactly; {values} would divide"
        )


def batch_plan(global_batch_size: int, world_size: int, micro_batch_size: int | None = None) -> BatchPlan:
    """Deals a global batch to workers and micro-batches as evenly as it can be.

    Args:
        global_batch_size: samples of a step, at least `world_size`.
        world_size: workers, at least 1.
        micro_batch_size: the most that a worker takes at once; None, or more than its share: its whole share.

    Raises:
        ConfigError: fewer samples than workers.
    """
    if global_batch_size < world_size:
        raise ConfigError(
            f"global_batch_size={global_batch_size} is less than one sample for each of {world_size} workers",
            f"global_batch_size={world_size} or more, or cluster.gpus_per_node={global_batch_size} or fewer",
        )
    share = -(-global_batch_size // world_size)
    most = min(micro_batch_size or share, share)
    accumulation = -(-share // most)
    # A worker with one sample fewer may need a micro-batch fewer, and so take more at once.
    largest = max(-(-taken // -(-taken // most)) for taken in (share, global_batch_size // world_size))
    unit = world_size * min(micro_batch_size or 1, share)
    even = global_batch_size % world_size == 0 and share % accumulation == 0
    below = global_batch_size // unit * unit
    nearest = () if even else tuple(value for value in (below, below + unit) if value >= world_size)
    return BatchPlan(
        global_batch_size=global_batch_size,
        world_size=world_size,
        share=share,
        micro_batch_size=largest,
        accumulation=accumulation,
        even=even,
        nearest=nearest,
    )
