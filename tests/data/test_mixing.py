"""MixUp and CutMix: the pairs, shares and boxes of a step are the same whoever trains on which of its samples."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Dataset
from torchvision.transforms import v2

from tests.trainer_command import DIGITS
from tests.workers import check_weights, on_each, run_workers, train_here
from trainer.config import DistributedConfig
from trainer.data.bad_image import BadImage
from trainer.data.mixing import Mix, Mixing
from trainer.data.sampler import KeyedPermutation, StepPlan, StepSampler
from trainer.data.samples import Samples
from trainer.distributed import World, data_parallel
from trainer.precision import Scaler, choose
from trainer.rundir import RunDir
from trainer.training.step import Stepper

SAMPLES, GLOBAL_BATCH, STEPS, SIDE, CLASSES, SMOOTHING = 21, 10, 5, 6, 3, 0.1
_generator = torch.Generator().manual_seed(0)
IMAGES = torch.randn(SAMPLES, 2, SIDE, SIDE, dtype=torch.float64, generator=_generator)
TARGETS = torch.randint(0, CLASSES, (SAMPLES,), generator=_generator)
NOTHING: frozenset[int] = frozenset()
BAD = frozenset({0, 3, 4, 5, 6, 7, 11})
BOTH = Mixing(0.8, 1.0, seed=3)


class Pictures(Dataset[Any]):
    def __init__(self, bad: frozenset[int]) -> None:
        self.bad = bad

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index in self.bad:
            raise BadImage(str(index), "bad")
        return IMAGES[index], int(TARGETS[index])


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.LazyLinear(CLASSES)).double()


def made() -> nn.Module:
    model = network()
    model(IMAGES[:1])
    return model


def criterion(output: object, targets: torch.Tensor) -> torch.Tensor:
    assert isinstance(output, torch.Tensor)
    return F.cross_entropy(output, targets, reduction="sum", label_smoothing=SMOOTHING)


def mixed_weights(
    world: World, mixing: Mixing, micro_batch: int | None, bad: frozenset[int]
) -> tuple[list[torch.Tensor], float]:
    plan = StepPlan(SAMPLES, GLOBAL_BATCH, world.world_size, world.rank, micro_batch)
    samples = Samples(Pictures(bad), lambda image: image, seed=0, skip_bad=bool(bad), mixes=True)
    sampler = StepSampler(samples, plan, seed=3, first_step=0, last_step=STEPS, with_next=True)
    model = made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    optimizer.param_groups[0]["base_lr"] = 0.5
    take = Stepper(
        model=data_parallel(model, world, DistributedConfig()),
        optimizer=optimizer,
        lr_factor=lambda _: 1.0,
        criterion=criterion,
        normaliser=lambda images: images,
        precision=choose("fp32", world.device),
        scaler=Scaler(enabled=False, device=world.device),
        world=world,
        clip_norm=None,
        seed=0,
        counts_targets=bool(bad),
        mixing=mixing,
    )
    batches = (samples.__getitems__(indices) for indices in sampler)
    for step in range(STEPS):
        take(plan.share(step), batches)  # type: ignore[arg-type]  # no batch is a BadBatch here
    assert next(batches, None) is None
    return [p.detach() for p in model.parameters()], float(world.sum(take.records.drain())[0].sum())


def reference_weights(mixing: Mixing | None, bad: frozenset[int]) -> tuple[list[torch.Tensor], float]:
    """One process and one batch a step, with one-hot targets mixed as in torchvision's references."""
    model, total = made(), 0.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for step in range(STEPS):
        epoch, within = divmod(step, 3)
        positions = np.arange(within * GLOBAL_BATCH, min((within + 1) * GLOBAL_BATCH, SAMPLES))
        order = KeyedPermutation(SAMPLES, seed=3, epoch=epoch)(positions)
        rows = []
        for sample, follower in zip(order.tolist(), np.roll(order, -1).tolist(), strict=True):
            if sample not in bad:
                rows.append((sample, sample if follower in bad else follower))
        if not rows:
            continue
        own, partner = torch.tensor(rows).T
        images, targets = IMAGES[own], F.one_hot(TARGETS[own], CLASSES).double()
        if mixing is not None:
            mix = mixing.of_step(step, SIDE, SIDE)
            targets = mix.share * targets + (1 - mix.share) * F.one_hot(TARGETS[partner], CLASSES).double()
            if mix.box is None:
                images = mix.share * images + (1 - mix.share) * IMAGES[partner]
            else:
                inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
                inside[mix.box[0] : mix.box[1], mix.box[2] : mix.box[3]] = True
                images = torch.where(inside, IMAGES[partner], images)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), targets, label_smoothing=SMOOTHING)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(rows)
    return [p.detach() for p in model.parameters()], total


@pytest.mark.parametrize("bad", [NOTHING, BAD], ids=["all_good", "bad_images"])
@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, None), (1, 3), (2, 2), (3, None), (4, 1)])
def test_the_weights_are_those_of_one_big_mixed_batch(
    world_size: int, micro_batch: int | None, bad: frozenset[int]
) -> None:
    expected, expected_loss = reference_weights(BOTH, bad)
    check_weights(on_each(world_size, mixed_weights, BOTH, micro_batch, bad), expected, expected_loss)
    unmixed, _ = reference_weights(None, bad)
    assert max(float((one - other).abs().max()) for one, other in zip(expected, unmixed, strict=True)) > 1e-3


def test_both_kinds_were_seen_above() -> None:
    boxes = [BOTH.of_step(step, SIDE, SIDE).box for step in range(STEPS)]
    assert None in boxes
    assert any(box is not None for box in boxes)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.2, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_shares_and_boxes_are_distributed_as_torchvisions(mixup: float, cutmix: float) -> None:
    drawn = [Mixing(mixup, cutmix, seed=1).of_step(step, 32, 48) for step in range(3000)]
    by_box = [mix for mix in drawn if mix.box is not None]
    assert abs(len(by_box) / len(drawn) - (0.5 if mixup and cutmix else float(cutmix > 0))) < 0.03
    torch.manual_seed(0)
    for kind, alpha, own in ((v2.MixUp, mixup, False), (v2.CutMix, cutmix, True)):
        if not alpha:
            continue
        transform = kind(alpha=alpha, num_classes=2)
        params = [transform.make_params([torch.zeros(2, 3, 32, 48)]) for _ in range(3000)]
        theirs = np.sort([float(p["lam_adjusted"] if own else p["lam"]) for p in params])
        ours = np.sort([mix.share for mix in drawn if (mix.box is not None) == own])
        quantiles = np.linspace(0.05, 0.95, 19)
        assert np.abs(np.quantile(ours, quantiles) - np.quantile(theirs, quantiles)).max() < 0.07


def test_a_box_comes_from_the_partner_and_the_share_is_its_area() -> None:
    images = torch.stack([torch.full((1, 8, 8), float(value)) for value in range(4)])
    for step in range(200):
        mix = Mixing(0.0, 1.0, seed=0).of_step(step, 8, 8)
        mixed = mix(images, torch.tensor([1, 2, 3]))
        for index in range(3):
            assert set(mixed[index].unique().tolist()) <= {index, index + 1}
            assert float((mixed[index] == index).float().mean()) == pytest.approx(mix.share)


def test_an_image_paired_with_itself_stays_as_it_is() -> None:
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    for mix in (Mix(0.3), Mix(0.5, (0, 8, 0, 4))):
        assert torch.allclose(mix(images, torch.tensor([0, 1])), images, rtol=0, atol=1e-15)


def test_a_mixed_run_that_was_stopped_goes_on_exactly(tmp_path: Path) -> None:
    arguments = ["data=synthetic", "data.args={n: 90, n_val: 10, size: 8}", *DIGITS[1:], f"run.dir={tmp_path}"]
    arguments += ["data.mixup=0.2", "data.cutmix=1", "global_batch_size=40", "micro_batch_size=12", "max_steps=8"]
    for name, stops in (("whole", [None]), ("parts", [4, None])):
        for stop_after in stops:
            run_workers(2, train_here, [*arguments, f"run.name={name}"], stop_after)
    whole, parts = (load_file(RunDir(tmp_path / name).weights("last")) for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
