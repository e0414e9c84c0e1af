"""The trainer on a real GPU, through its public commands; needs no network."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer_command import free_port
from trainer.run.rows import read_json_lines
from trainer.rundir import RunDir, read_json

DIGITS = ["recipe=digits", "tracking=none", "device=cuda"]


def trainer(*arguments: str, torchrun: bool = False, expect: int = 0) -> str:
    """Runs the trainer in one process, or under torchrun with a worker on every GPU (so over NCCL)."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=gpu"] if torchrun else []
    command = [sys.executable, *launcher, "-m", "trainer", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stderr


def test_digits_are_learned_by_a_worker_on_every_gpu(tmp_path: Path) -> None:
    trainer(*DIGITS, f"run.dir={tmp_path}", "run.name=d", torchrun=True)
    run = RunDir(tmp_path / "d")
    assert read_json(run.summary)["best/accuracy"] > 0.93
    workers = read_json(run.environment)["workers"]
    assert len(workers) == torch.cuda.device_count()
    assert workers[0]["gpu"]["nccl"]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="gradients cross NCCL only between two GPUs")
def test_gradients_are_averaged_over_nccl(tmp_path: Path) -> None:
    arguments = [*DIGITS, "model=resnet18", "model.weights=null", "data.image_size=32", "max_steps=20"]
    trainer(*arguments, f"run.dir={tmp_path}", "run.name=n", torchrun=True)
    rows = [row["train/loss"] for row in read_json_lines(RunDir(tmp_path / "n").metrics) if "train/loss" in row]
    assert rows[-1] < rows[0]


@pytest.mark.parametrize("channels_last", ["true", "false"])
def test_pooling_and_memory_format_are_deterministic(tmp_path: Path, channels_last: str) -> None:
    arguments = ["data=synthetic", "data.args={size: 28, channels: 1}", "device=cuda", "tracking=none", "max_steps=20"]
    losses = []
    for name in ("a", "b"):
        options = [
            "deterministic=true",
            f"model.channels_last={channels_last}",
            f"run.dir={tmp_path}",
            f"run.name={name}",
        ]
        trainer(*arguments, *options)
        losses.append([row.get("train/loss") for row in read_json_lines(RunDir(tmp_path / name).metrics)])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_each_precision_learns_as_fp32_does(tmp_path: Path, precision: str) -> None:
    if precision in ("tf32", "bf16") and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip(f"{precision} needs compute capability 8.0")
    losses = {}
    for name in ("fp32", precision):
        trainer(*DIGITS, f"precision={name}", f"run.dir={tmp_path}", f"run.name={name}", "data.augment=none")
        rows = [row for row in read_json_lines(RunDir(tmp_path / name).metrics) if "val/loss" in row]
        losses[name] = rows[-1]["val/loss"]
    assert losses[precision] == pytest.approx(losses["fp32"], rel=0.25, abs=0.02)


def test_a_step_with_overflowing_gradients_is_skipped_and_counted() -> None:
    from trainer.precision import Scaler

    device = torch.device("cuda")
    weight = torch.nn.Parameter(torch.ones(4, device=device))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9, fused=True)
    scaler = Scaler(enabled=True, device=device)
    scaler.scale((weight * float("inf")).sum()).backward()
    assert not scaler.step(optimizer, None, [weight])
    assert torch.equal(weight.detach(), torch.ones(4, device=device))
    optimizer.zero_grad()
    scaler.scale(weight.sum()).backward()
    assert scaler.step(optimizer, None, [weight])
    assert torch.allclose(weight.detach(), torch.full((4,), 0.9, device=device))
    assert scaler.skipped == 1


def test_batches_reach_the_device_whole_and_from_pinned_memory() -> None:
    from trainer.data.loader import load_batches, on_device
    from trainer.data.sampler import StepPlan, StepSampler
    from trainer.data.samples import Samples

    device = torch.device("cuda")
    images = torch.arange(512, dtype=torch.int64).remainder(251).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 32, 32)
    split = [(images[index], index) for index in range(512)]
    samples = Samples(split, lambda image: image, seed=0)
    plan = StepPlan(512, 32)
    sampler = StepSampler(samples, plan, seed=0, first_step=0, last_step=16)
    loader = load_batches(samples, sampler, workers=2, prefetch=2, timeout_s=60, device=device)
    assert next(iter(loader))[0].is_pinned()
    seen = []
    for batch_images, targets in on_device(loader, device):
        assert batch_images.device.type == "cuda"
        assert torch.equal(batch_images[:, 0, 0, 0].cpu().long(), targets.cpu() % 251)
        seen += targets.tolist()
    assert sorted(seen) == list(range(512))


def test_a_stopped_loading_process_does_not_hold_up_the_end_through_the_thread_that_pins() -> None:
    import os
    import signal

    from tests.waiting import until
    from trainer.data import loader
    from trainer.data.sampler import StepPlan, StepSampler
    from trainer.data.samples import Samples

    samples = Samples([(torch.zeros(1, 8, 8, dtype=torch.uint8), 0)] * 512, lambda image: image, seed=0)
    sampler = StepSampler(samples, StepPlan(512, 32), seed=0, first_step=0, last_step=16)
    batches = loader.load_batches(
        samples, sampler, workers=1, prefetch=2, timeout_s=2, device=torch.device("cuda"), persistent=True
    )
    arriving = iter(batches)
    next(arriving)
    before = signal.getsignal(signal.SIGCHLD)
    try:
        os.kill(batches._iterator._workers[0].pid, signal.SIGSTOP)
        until(lambda: samples.bench.look()[0].is_stopped, "the process to be stopped")
        with pytest.raises((RuntimeError, OSError, EOFError)) as raised:
            list(arriving)
        assert "stopped by a signal" in str(loader.explain(raised.value))
        batches._iterator._shutdown_workers()
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_the_batches_before_an_unreadable_image_are_still_trained_on() -> None:
    from trainer.data.loader import on_device
    from trainer.data.samples import BadBatch
    from trainer.errors import UnfitError

    good = (torch.ones(2, 1).pin_memory(), torch.zeros(2).pin_memory())
    batches = on_device(iter([good, good, BadBatch("a.png is broken", "mend it")]), torch.device("cuda"))
    assert [float(next(batches)[0].sum()) for _ in range(2)] == [2.0, 2.0]
    with pytest.raises(UnfitError, match=r"a\.png"):
        next(batches)


def test_nvml_figures_are_recorded(tmp_path: Path) -> None:
    trainer(*DIGITS, f"run.dir={tmp_path}", "run.name=m", "monitor.period_s=0.2")
    rows = list(read_json_lines(RunDir(tmp_path / "m").monitor))
    assert any(row.get("gpu/0/memory_used_bytes", 0) > 0 for row in rows)
    assert all(0 <= row.get("gpu/0/utilization_percent", 0) <= 100 for row in rows)


def test_a_run_that_was_stopped_ends_with_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    whole = [
        *DIGITS,
        "deterministic=true",
        "precision=fp32",
        f"run.dir={tmp_path}",
        "checkpoint.every_steps=20",
    ]
    trainer(*whole, "run.name=whole")
    trainer(*whole, "run.name=cut", "max_time=00:00:01", expect=75)
    assert json.loads((tmp_path / "cut" / "status.json").read_text())["state"] == "preempted"
    trainer(*whole, "run.name=cut")
    weights = [load_file(RunDir(tmp_path / name).weights("last")) for name in ("whole", "cut")]
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


def _share(rank: int, port: int, half: bool, folder: str) -> None:
    import torch.distributed as dist

    from trainer.training.standing_in import without_trace

    # Over gloo, so that both may have the same GPU.
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    layer = torch.nn.SyncBatchNorm(4).cuda()
    inputs = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0)).cuda().requires_grad_()
    values = inputs.half() if half else inputs
    if rank == 1:
        with without_trace(layer):
            (0 * layer(values[:2] + 100).float().sum()).backward()
    else:
        layer(values).float().square().sum().backward()
    torch.save([layer.running_mean, layer.running_var, layer.weight.grad, inputs.grad], f"{folder}/{rank}.pt")
    dist.barrier()


@pytest.mark.parametrize("half", [False, True])
def test_a_rank_without_an_image_adds_nothing_to_statistics_that_all_ranks_share(tmp_path: Path, *, half: bool) -> None:
    torch.multiprocessing.spawn(_share, (free_port(), half, str(tmp_path)), nprocs=2)
    busy, idle = (torch.load(tmp_path / f"{rank}.pt", map_location="cuda") for rank in range(2))
    layer = torch.nn.BatchNorm2d(4).cuda()
    inputs = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0)).cuda().requires_grad_()
    layer(inputs.half() if half else inputs).float().square().sum().backward()
    whole = [*layer.buffers()][:2] + [parameter.grad for parameter in (layer.weight, inputs)]
    for found, expected in zip(busy, whole, strict=True):
        assert expected is not None
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3)
    for mine, others in zip(idle[:2], busy[:2], strict=True):
        assert torch.equal(mine, others)
    assert not idle[2].any()
