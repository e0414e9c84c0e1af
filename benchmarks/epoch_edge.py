"""Time of the step at an epoch's edge over the median step, with images decoded in loading processes.

    python benchmarks/epoch_edge.py [--json] [--epochs 8]

The trainer, by its public command, on a folder of JPEGs cut from the two photographs that scikit-learn brings, against
a loop by hand over ImageFolder and a DataLoader that begins anew each epoch, with and without persistent workers. All
train the same network on the same files with one loading process. An edge is the first step of an epoch (but the run's
first), timed from the end of the step before; each figure is the median of the edges over the median of other steps.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import report
import torch
import torch.nn.functional as F  # torch's own name for it
import torchvision
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from trainer.model.zoo.small_resnet import small_resnet

GOAL = 1.5
IMAGES, BATCH, SIDE = 512, 32, 64


def write_images(root: Path) -> None:
    """JPEGs of 96x96 pixels from all over the photographs, a class for each."""
    across = 32
    for name, pixels in zip(("china", "flower"), load_sample_images().images, strict=True):
        photograph = Image.fromarray(pixels)
        for split, count in (("train", IMAGES // 2), ("val", 2)):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                left, upper = index % across * 17, index // across * 40
                photograph.crop((left, upper, left + 96, upper + 96)).save(
                    root / split / name / f"{index}.jpg", quality=90
                )


def paceline(root: Path, epochs: int) -> list[float]:
    """Seconds of each step but the first."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            "data.name=folder", f"data.root={root}", f"data.image_size={SIDE}", "data.augment=resized_crop",
            "data.workers=1", "model=small_resnet", f"global_batch_size={BATCH}", f"epochs={epochs}",
            "log_every_steps=1", "evaluate.every=end", "tracking=none", "precision=fp32", "device=cpu",
            f"run.dir={folder}", "run.name=edge",
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", "trainer", *overrides]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(command)} ended with {done.returncode}\n{done.stderr}")
        lines = (Path(folder) / "edge" / "metrics.jsonl").read_text().splitlines()
    times = [row["time"] for row in map(json.loads, lines) if "train/loss" in row]
    return [later - earlier for earlier, later in pairwise(times)]


def by_hand(root: Path, epochs: int, *, persistent: bool) -> list[float]:
    """Seconds of each step but the first."""
    torch.set_num_threads(1)
    transform = v2.Compose([v2.RandomResizedCrop(SIDE), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    images = torchvision.datasets.ImageFolder(root / "train", transform)
    loader = DataLoader(images, BATCH, shuffle=True, num_workers=1, persistent_workers=persistent)
    model = small_resnet(num_classes=2, in_channels=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    times = []
    for _ in range(epochs):
        for batch, targets in loader:
            loss = F.cross_entropy(model(batch.float() / 255 - 0.5), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            times.append(time.perf_counter())
    return [later - earlier for earlier, later in pairwise(times)]


def edge_over_median(seconds: list[float]) -> dict[str, float]:
    """The figures of one contestant, from the seconds of each step but the first."""
    steps = IMAGES // BATCH
    edges = [took for step, took in enumerate(seconds, start=1) if step % steps == 0]
    others = [took for step, took in enumerate(seconds, start=1) if step % steps]
    edge, step = statistics.median(edges), statistics.median(others)
    return {"ratio": edge / step, "edge_ms": 1000 * edge, "step_ms": 1000 * step}


def main() -> int:
    """Prints the figures, or one JSON object; returns 0 whatever they are."""
    parser = report.parser(__doc__)
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_images(root)
        figures = {
            "paceline": edge_over_median(paceline(root, options.epochs)),
            "DataLoader": edge_over_median(by_hand(root, options.epochs, persistent=False)),
            "DataLoader, persistent_workers": edge_over_median(by_hand(root, options.epochs, persistent=True)),
        }
    report.show(
        options,
        benchmark="epoch_edge",
        ratio=figures["paceline"]["ratio"],
        goal=GOAL,
        rivals={name: figure["ratio"] for name, figure in figures.items() if name != "paceline"},
        figures=figures,
        packages=("torch", "torchvision"),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
