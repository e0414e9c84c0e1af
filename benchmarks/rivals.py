"""The contestants of step_overhead: each trains the same tiny network in its own idiomatic loop."""

import importlib.util
import logging
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # torch's own name for it
from tiny import IMAGES, LR, MICRO_BATCH, SAMPLES, TARGETS, TinyData, TinyNet, normalised
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

Run = Callable[[int, int], float]
"""(steps to warm up, steps to time) -> seconds of a timed step."""


def contestants(accumulation: int) -> dict[str, Run]:
    """Every trainer that is installed, `bare` first."""
    runners = {"bare": bare(accumulation), "paceline": paceline(accumulation)}
    if importlib.util.find_spec("lightning"):
        runners["fabric"] = fabric(accumulation)
        runners["lightning"] = lightning(accumulation)
    if importlib.util.find_spec("accelerate"):
        runners["accelerate"] = accelerate(accumulation)
    return runners


def cosine(step: int, total: int) -> float:
    """Share of the peak learning rate."""
    return 0.5 * (1 + math.cos(math.pi * step / total))


def sgd(model: nn.Module) -> torch.optim.SGD:
    """The optimizer of every contestant, in the implementation that is fastest on a CPU."""
    return torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, fused=True)


def bare(accumulation: int) -> Run:
    """A loop by hand: what one would write who wants nothing but the training."""
    world_size, rank = dist.get_world_size(), dist.get_rank()
    model: nn.Module = TinyNet()
    if world_size > 1:
        model = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True, static_graph=accumulation == 1)
    optimizer = sgd(model)

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            mine = torch.randperm(SAMPLES)[rank::world_size]
            for start in range(0, len(mine) - MICRO_BATCH + 1, MICRO_BATCH):
                chosen = mine[start : start + MICRO_BATCH]
                yield IMAGES[chosen], TARGETS[chosen]

    def run(warm_up: int, steps: int) -> float:
        stream, total, started = batches(), torch.zeros(()), 0.0
        for step in range(warm_up + steps):
            if step == warm_up:
                started = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = LR * cosine(step, warm_up + steps)
            for micro in range(accumulation):
                images, targets = next(stream)
                synchronises = micro == accumulation - 1 or world_size == 1
                with nullcontext() if synchronises else model.no_sync():
                    loss = F.cross_entropy(model(normalised(images)), targets) / accumulation
                    loss.backward()
                total += loss.detach()
            optimizer.step()
            optimizer.zero_grad()
        return (time.perf_counter() - started) / steps

    return run


def paceline(accumulation: int) -> Run:
    """The trainer itself, from assembly to metrics.jsonl; timed by the rows' own time stamps."""
    from paceline_contestant import run_trainer

    def run(warm_up: int, steps: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            return run_trainer(Path(folder), warm_up, steps, accumulation, MICRO_BATCH)

    return run


def loader() -> "DataLoader[Any]":
    """The loader of the trainers that bring none."""
    sampler = DistributedSampler(TinyData(), drop_last=True) if dist.get_world_size() > 1 else None  # type: ignore[arg-type]
    return DataLoader(
        TinyData(),
        batch_size=MICRO_BATCH,
        sampler=sampler,
        shuffle=sampler is None,
        drop_last=True,
        collate_fn=lambda b: b,
    )


def fabric(accumulation: int) -> Run:
    """Lightning Fabric, with its own wrappers of model, optimizer and loader."""
    from lightning.fabric import Fabric
    from lightning.fabric.plugins.environments import TorchElasticEnvironment
    from lightning.fabric.strategies import DDPStrategy, SingleDeviceStrategy

    world_size = dist.get_world_size()
    strategy: Any = (
        DDPStrategy(
            cluster_environment=TorchElasticEnvironment(),
            process_group_backend="gloo",
            gradient_as_bucket_view=True,
            static_graph=accumulation == 1,
        )
        if world_size > 1
        else SingleDeviceStrategy(torch.device("cpu"))
    )
    tool = Fabric(accelerator="cpu", strategy=strategy, devices=world_size)
    tool.launch()
    bare_model = TinyNet()
    model, optimizer = tool.setup(bare_model, sgd(bare_model))
    batches = tool.setup_dataloaders(loader(), use_distributed_sampler=False)

    def run(warm_up: int, steps: int) -> float:
        stream, total, started = iter(batches), torch.zeros(()), 0.0
        for step in range(warm_up + steps):
            if step == warm_up:
                started = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = LR * cosine(step, warm_up + steps)
            for micro in range(accumulation):
                batch = next(stream, None)
                if batch is None:
                    stream = iter(batches)
                    batch = next(stream)
                images, targets = batch
                with tool.no_backward_sync(model, enabled=micro < accumulation - 1 and world_size > 1):
                    loss = F.cross_entropy(model(normalised(images)), targets) / accumulation
                    tool.backward(loss)
                total += loss.detach()
            optimizer.step()
            optimizer.zero_grad()
        return (time.perf_counter() - started) / steps

    return run


def lightning(accumulation: int) -> Run:
    """Lightning's Trainer with everything optional turned off."""
    import lightning.pytorch as pl
    from lightning.fabric.plugins.environments import TorchElasticEnvironment
    from lightning.pytorch.strategies import DDPStrategy

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    world_size = dist.get_world_size()

    class Module(pl.LightningModule):
        def __init__(self, total: int) -> None:
            super().__init__()
            self.net, self.total = TinyNet(), total

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            images, targets = batch
            return F.cross_entropy(self.net(normalised(images)), targets)

        def configure_optimizers(self) -> Any:
            optimizer = sgd(self.net)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step, self.total))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    class Timer(pl.Callback):
        def __init__(self, warm_up: int) -> None:
            self.warm_up, self.started = warm_up, 0.0

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == self.warm_up and not self.started:
                self.started = time.perf_counter()

    def run(warm_up: int, steps: int) -> float:
        timer = Timer(warm_up)
        strategy: Any = "auto"
        if world_size > 1:
            strategy = DDPStrategy(
                cluster_environment=TorchElasticEnvironment(),
                process_group_backend="gloo",
                gradient_as_bucket_view=True,
                static_graph=accumulation == 1,
            )
        trainer = pl.Trainer(
            accelerator="cpu", devices=world_size, strategy=strategy, max_steps=warm_up + steps, max_epochs=-1,
            accumulate_grad_batches=accumulation, logger=False, enable_checkpointing=False, callbacks=[timer],
            enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        )  # fmt: skip
        trainer.fit(Module(warm_up + steps), loader())
        return (time.perf_counter() - timer.started) / steps

    return run


def accelerate(accumulation: int) -> Run:
    """Hugging Face accelerate, with its accumulate context."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    handlers = [DistributedDataParallelKwargs(gradient_as_bucket_view=True, static_graph=accumulation == 1)]
    tool = Accelerator(cpu=True, gradient_accumulation_steps=accumulation, kwargs_handlers=handlers)
    bare_model = TinyNet()
    model, optimizer, batches = tool.prepare(bare_model, sgd(bare_model), DataLoader(
        TinyData(), batch_size=MICRO_BATCH, shuffle=True, drop_last=True, collate_fn=lambda b: b
    ))  # fmt: skip

    def run(warm_up: int, steps: int) -> float:
        stream, total, started = iter(batches), torch.zeros(()), 0.0
        for micro in range((warm_up + steps) * accumulation):
            step, within = divmod(micro, accumulation)
            if step == warm_up and within == 0:
                started = time.perf_counter()
            batch = next(stream, None)
            if batch is None:
                stream = iter(batches)
                batch = next(stream)
            images, targets = batch
            with tool.accumulate(model):
                for group in optimizer.param_groups:
                    group["lr"] = LR * cosine(step, warm_up + steps)
                loss = F.cross_entropy(model(normalised(images)), targets)
                tool.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            total += loss.detach()
        return (time.perf_counter() - started) / steps

    return run
