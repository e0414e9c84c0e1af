"""What it costs to know the order of 100 million samples: time until the first batch, memory, time an index.

    python benchmarks/sampler.py [--json] [--samples 100000000]

`StepSampler` against torch's `DistributedSampler` (`randperm(...).tolist()` in each epoch and process), both as rank 3
of 8 with 256 samples a batch, each in a process of its own. The ratio is the largest share that a contestant uses of
three allowances: 50 ms until the first batch, 10 MB of memory, 100 ns an index of the epoch (its share of the start
included).
"""

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import report
from torch.utils.data import BatchSampler, DistributedSampler

from trainer.data.sampler import StepPlan, StepSampler

GOAL = 1.0
ALLOWED = {"startup_ms": 50.0, "memory_mb": 10.0, "ns_per_index": 100.0}
RANK, WORLD_SIZE, BATCH = 3, 8, 256
TIMED_BATCHES = 20_000

Batches = Callable[[int], Iterator[Any]]
"""Samples of an epoch -> this rank's batches of indices."""


def paceline(samples: int) -> Iterator[Any]:
    """The trainer's own sampler, over two epochs."""
    plan = StepPlan(samples, BATCH * WORLD_SIZE, WORLD_SIZE, RANK)
    steps = 2 * plan.steps_per_epoch
    return (indices.samples for indices in StepSampler(range(samples), plan, seed=0, first_step=0, last_step=steps))


def distributed_sampler(samples: int) -> Iterator[Any]:
    """What most trainers use."""
    sampler = DistributedSampler(range(samples), num_replicas=WORLD_SIZE, rank=RANK)  # type: ignore[arg-type]
    return iter(BatchSampler(sampler, BATCH, drop_last=False))


CONTESTANTS: dict[str, Batches] = {"paceline": paceline, "DistributedSampler": distributed_sampler}


def measure(name: str, samples: int) -> dict[str, float]:
    """One contestant's figures, in this process."""
    warmed = CONTESTANTS[name](10_000)
    next(warmed)
    # Forgets the peak of the imports, so that the next peak is the contestant's own.
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    started = time.perf_counter()
    batches = CONTESTANTS[name](samples)
    next(batches)
    ready = time.perf_counter()
    indices = sum(len(batch) for batch in islice(batches, TIMED_BATCHES))
    ended = time.perf_counter()
    return {
        "startup_ms": 1000 * (ready - started),
        "memory_mb": (memory("VmHWM") - before) / 1e6,
        # Of an epoch's indices, so each bears its share of the start.
        "ns_per_index": 1e9 * ((ended - ready) / indices + (ready - started) / (samples // WORLD_SIZE)),
    }


def memory(field: str) -> int:
    """A figure of this process, bytes: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def main() -> int:
    """Prints the figures, or one JSON object; returns 0 whatever they are."""
    parser = report.parser(__doc__)
    parser.add_argument("--samples", type=int, default=100_000_000)
    options = parser.parse_args()
    figures = {}
    for name in CONTESTANTS:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            figures[name] = process.submit(measure, name, options.samples).result()
    ratios = {name: max(figure[key] / most for key, most in ALLOWED.items()) for name, figure in figures.items()}
    report.show(
        options,
        benchmark="sampler",
        ratio=ratios.pop("paceline"),
        goal=GOAL,
        rivals=ratios,
        samples=options.samples,
        allowed=ALLOWED,
        figures=figures,
        packages=("torch", "numpy"),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
