"""Time of an optimizer step of each trainer, over that of a bare hand-written DDP loop doing the same work.

    python benchmarks/step_overhead.py [--json] [--workers 1 2] [--accumulation 1 4] [--rounds 5]

A tiny network, so that what a trainer adds to a step is visible: the bare step takes well under a millisecond. All
contestants train the same model on the same images with the same optimizer and batch sizes, in the same processes, in
turn, round after round; a contestant's figure is the median over the rounds of its mean step, its ratio the median of
the rounds' ratios. Lightning, Fabric and accelerate take part when they are installed (`make bench` does).
"""

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import report
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rivals import contestants

GOAL = 1.10
WARM_UP, STEPS = 100, 300  # multiples of log_every_steps: rows of metrics are the stopwatch


def compete(rank: int, world_size: int, accumulation: int, rounds: int, port: int, result: Path) -> None:
    """One worker's part: every contestant in turn, `rounds` times."""
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GROUP_RANK="0", CUDA_VISIBLE_DEVICES="",
    )  # fmt: skip
    dist.init_process_group("gloo")
    runners = contestants(accumulation)
    figures: dict[str, list[float]] = {name: [] for name in runners}
    for round_number in range(rounds + 1):
        for name, run in runners.items():
            # Some trainers set the number of threads; here everyone has one core.
            torch.set_num_threads(1)
            dist.barrier()
            seconds = run(WARM_UP, STEPS)
            if round_number:
                figures[name].append(seconds)
    if rank == 0:
        result.write_text(json.dumps(figures))
    dist.barrier()
    dist.destroy_process_group()


def measure(workers: int, accumulation: int, rounds: int) -> dict[str, list[float]]:
    """Seconds a step of every contestant and round."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "figures.json"
        port = 20_000 + os.getpid() % 20_000 + 10 * workers + accumulation
        mp.spawn(compete, (workers, accumulation, rounds, port, result), nprocs=workers)
        return json.loads(result.read_text())


def main() -> int:
    """Prints the table, or one JSON object; returns 0 whatever the figures are."""
    parser = report.parser(__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--accumulation", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    cases, worst = [], {}
    for workers in options.workers:
        for accumulation in options.accumulation:
            figures = measure(workers, accumulation, options.rounds)
            bare = figures.pop("bare")
            ratios = {n: statistics.median(a / b for a, b in zip(v, bare, strict=True)) for n, v in figures.items()}
            bare_ms = 1000 * statistics.median(bare)
            cases.append({"workers": workers, "accumulation": accumulation, "bare_step_ms": bare_ms, "ratios": ratios})
            for name, ratio in ratios.items():
                worst[name] = max(worst.get(name, 0.0), ratio)
            shown = "  ".join(f"{name} {ratio:.2f}x" for name, ratio in ratios.items())
            print(
                f"{workers} workers, accumulation {accumulation}: bare {bare_ms:.3f} ms  {shown}",
                file=sys.stderr,
            )
    report.show(
        options,
        benchmark="step_overhead",
        ratio=worst.pop("paceline"),
        goal=GOAL,
        rivals=worst,
        cases=cases,
        packages=("torch", "lightning", "accelerate"),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
