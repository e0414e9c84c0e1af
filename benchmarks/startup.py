"""Time from the start of the process to the end of the first optimizer step, with 2 workers on this machine.

    python benchmarks/startup.py [--json] [--rounds 5]

`torchrun -m trainer` and `paceline run` against torchrun with a bare script that imports torch and torchvision, wraps
a small network in DDP and takes one step. All in turn, round after round; each ratio is the median of the rounds'.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import report

GOAL = 1.15
BIN = Path(sys.executable).parent
BARE = """
import os, sys, time, pathlib, torch, torchvision, torch.distributed as dist
dist.init_process_group("gloo")
model = torch.nn.parallel.DistributedDataParallel(torchvision.models.squeezenet1_1(num_classes=2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
loss = torch.nn.functional.cross_entropy(model(torch.randn(4, 3, 64, 64)), torch.randint(0, 2, (4,)))
loss.backward()
optimizer.step()
if dist.get_rank() == 0:
    pathlib.Path(sys.argv[1]).write_text(str(time.time()))
dist.destroy_process_group()
# What comes after is not timed, and torch's threads now and then abort a process that ends by itself.
os._exit(0)
"""
OVERRIDES = [
    "data.name=synthetic", "data.args={size: 64, n: 8, n_val: 2, classes: 2}", "data.workers=0", "data.augment=none",
    "model.name=squeezenet1_1", "model.args={}", "global_batch_size=8", "max_steps=1", "log_every_steps=1",
    "tracking=none", "precision=fp32", "device=cpu",
]  # fmt: skip


def bare(folder: Path) -> float:
    """Seconds until the bare script under torchrun has taken its step."""
    script, result = folder / "bare.py", folder / "bare.txt"
    script.write_text(BARE)
    started = time.time()
    launch([BIN / "torchrun", "--standalone", "--nproc_per_node=2", script, result])
    return float(result.read_text()) - started


def torchrun(folder: Path) -> float:
    """Seconds until our trainer under torchrun has taken its step."""
    started = time.time()
    launch(
        [
            BIN / "torchrun",
            "--standalone",
            "--nproc_per_node=2",
            "-m",
            "trainer",
            *OVERRIDES,
            f"run.dir={folder}",
            "run.name=t",
        ]
    )
    return first_step(folder / "t") - started


def paceline(folder: Path) -> float:
    """Seconds until our trainer under our launcher has taken its step."""
    started = time.time()
    launch([BIN / "paceline", "run", *OVERRIDES, "cluster.gpus_per_node=2", f"run.dir={folder}", "run.name=p"])
    return first_step(folder / "p") - started


def launch(command: list[object]) -> None:
    """Runs a command to its end; its output is shown when it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")


def first_step(run: Path) -> float:
    """When the first row of metrics was closed, UNIX seconds."""
    return next(json.loads(line)["time"] for line in (run / "metrics.jsonl").open() if "train/loss" in line)


def main() -> int:
    """Prints the figures, or one JSON object; returns 0 whatever they are."""
    parser = report.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    contestants = {"bare": bare, "torchrun -m trainer": torchrun, "paceline run": paceline}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(options.rounds + 1):
        for name, measure in contestants.items():
            with tempfile.TemporaryDirectory() as folder:
                took = measure(Path(folder))
            if number:
                seconds[name].append(took)
    ratios = {
        name: statistics.median(a / b for a, b in zip(took, seconds["bare"], strict=True))
        for name, took in seconds.items()
        if name != "bare"
    }
    report.show(
        options,
        benchmark="startup",
        ratio=ratios["torchrun -m trainer"],
        goal=GOAL,
        rivals=ratios,
        seconds={name: statistics.median(took) for name, took in seconds.items()},
        packages=("torch", "torchvision"),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
