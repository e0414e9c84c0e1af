"""What the step loop pays for a checkpoint, over a synchronous save of the same state by torch.distributed.checkpoint.

    python benchmarks/checkpoint.py [--json] [--rounds 7] [--folder DIR]

ResNet-50 with SGD and with AdamW (205 and 307 MB). The contestants save the same model and optimizer after the same
step, in turn, round after round, each to the end before the next begins; a figure is the time until the call gives the
training back, a ratio the median over the rounds of the ratio to synchronous DCP in the same round. Paceline's is the
call that the trainer's own loop makes. What each needs until the checkpoint is on the disk is shown beside it.
"""

import io
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import report
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from trainer.config import Config, DataConfig, ModelConfig, OptimConfig
from trainer.distributed import World
from trainer.rundir import RunDir
from trainer.stop import StopRequest
from trainer.terminal.console import LineConsole
from trainer.tracking import NullTrackers
from trainer.training.assembly import Parts, assemble
from trainer.training.job import Job
from trainer.training.keeper import Keeper
from trainer.training.recorder import Recorder
from trainer.training.state import Progress

GOAL = 0.06
OPTIMIZERS: dict[str, OptimConfig] = {
    "sgd": OptimConfig(name="sgd", lr=0.1, args={"momentum": 0.9}),
    "adamw": OptimConfig(name="adamw", lr=1e-3, args={}),
}
Save = Callable[[Path, int], Callable[[], None]]
"""(empty folder, number) -> what waits until the checkpoint is on the disk; returns when the training may go on."""


def trained(optim: OptimConfig, folder: Path) -> tuple[Parts, Job]:
    """A ResNet-50 after one step, with its optimizer's memory filled."""
    config = Config(
        max_steps=1000,
        epochs=None,
        global_batch_size=4,
        precision="fp32",
        device="cpu",
        data=DataConfig(name="synthetic", args={"n": 64, "n_val": 4, "classes": 1000, "size": 32}, workers=0),
        model=ModelConfig(name="resnet50"),
        optim=optim,
    )
    run = RunDir(folder / "run")
    run.path.mkdir()
    world = World(0, 0, 1, 1, 0, torch.device("cpu"), distributed=False)
    parts = assemble(config, world, run)
    parts.stepper(parts.plan.share(0), parts.batches(0))
    console = LineConsole(io.StringIO(), None, clock=lambda: 0.0)
    return parts, Job(world, run, console, NullTrackers(), StopRequest(), lambda: None)


def paceline(parts: Parts, job: Job) -> Save:
    """The trainer's own keeper, as its loop calls it."""
    progress = Progress(step=1)
    recorder = Recorder(job.run, job.trackers, job.console, total_steps=1000, epochs=1, gpu_percent=lambda: None)
    keeper = Keeper(parts, job, progress, recorder)

    def save(folder: Path, number: int) -> Callable[[], None]:
        progress.step = 1 + number
        keeper.save(None)
        return lambda: keeper.finish(None)

    return save


def rivals(parts: Parts) -> dict[str, Save]:
    """The others, each in its plainest use."""
    model, optimizer = parts.model, parts.stepper.optimizer

    def state() -> dict[str, object]:
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}

    def dcp_sync(folder: Path, number: int) -> Callable[[], None]:
        dcp.save(state(), checkpoint_id=folder)
        return lambda: None

    def dcp_async(folder: Path, number: int) -> Callable[[], None]:
        future = dcp.async_save(state(), checkpoint_id=folder)
        assert isinstance(future, Future)

        def wait() -> None:
            future.result()

        return wait

    def torch_save(folder: Path, number: int) -> Callable[[], None]:
        torch.save(state(), folder / "checkpoint.pt")
        return lambda: None

    return {"dcp_sync": dcp_sync, "dcp_async": dcp_async, "torch_save": torch_save}


def measure(optim: OptimConfig, rounds: int, place: Path | None) -> dict[str, list[tuple[float, float]]]:
    """(seconds that the training waits, seconds until it is on the disk) of each contestant and round."""
    figures: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory(dir=place) as name:
        parts, job = trained(optim, Path(name))
        contestants = {"paceline": paceline(parts, job), **rivals(parts)}
        for number in range(rounds + 1):
            for contestant, save in contestants.items():
                folder = Path(name) / "rival"
                folder.mkdir()
                os.sync()
                started = time.perf_counter()
                finish = save(folder, number)
                waited = time.perf_counter() - started
                finish()
                if number:
                    figures.setdefault(contestant, []).append((waited, time.perf_counter() - started))
                shutil.rmtree(folder)
    return figures


def main() -> int:
    """Prints the table, or one JSON object; returns 0 whatever the figures are."""
    parser = report.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where to write; by default the system's temporary directory")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", CUDA_VISIBLE_DEVICES="")
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    cases, worst = [], {}
    for name, optim in OPTIMIZERS.items():
        figures = measure(optim, options.rounds, options.folder)
        sync = [waited for waited, _ in figures["dcp_sync"]]
        ratios, shown = {}, []
        for contestant, rows in figures.items():
            ratio = statistics.median(waited / base for (waited, _), base in zip(rows, sync, strict=True))
            ratios[contestant] = ratio
            worst[contestant] = max(worst.get(contestant, 0.0), ratio)
            waited_ms, whole_ms = (1000 * statistics.median(row[column] for row in rows) for column in (0, 1))
            shown.append(f"{contestant} {waited_ms:.0f} ms ({100 * ratio:.1f} %; on the disk after {whole_ms:.0f} ms)")
        sync_ms = 1000 * statistics.median(sync)
        cases.append({"model": "resnet50", "optimizer": name, "dcp_sync_ms": sync_ms, "ratios": ratios})
        print(f"resnet50, {name}: {', '.join(shown)}", file=sys.stderr)
    dist.destroy_process_group()
    report.show(
        options,
        benchmark="checkpoint",
        ratio=worst.pop("paceline"),
        goal=GOAL,
        rivals=worst,
        cases=cases,
        packages=("torch", "torchvision"),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
