"""One optimizer step: micro-batches forward and backward, one exchange of gradients, one update.

    for each micro-batch of this rank's share:
        loss = sum over its samples of the loss of model(normalise(images))
        backward of loss * world_size / samples of the whole step    # DDP averages: exactly the mean over the samples
    clip, update, schedule

Nothing here waits for the device: each step's loss is added up there and read later.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn

from trainer.data.mixing import Mixing
from trainer.data.sampler import StepShare, mix_seed, seed_generators
from trainer.data.samples import Batch
from trainer.distributed import World
from trainer.model.ema import Ema
from trainer.numerics.figures import MOST_STEPS, NO_SAMPLE, PASSED_OVER, StepRecords
from trainer.numerics.gate import Gate, may_update
from trainer.precision import Precision, Scaler
from trainer.training.standing_in import stand_in, without_trace
from trainer.training.unused import check_averaged

Criterion = Callable[[object, torch.Tensor], torch.Tensor]
"""(model output, targets [B]) -> sum of the losses, a scalar."""


@dataclass(slots=True)
class StepClock:
    """Host seconds of the training steps, by what they were spent on.

    On a GPU the host runs ahead of the device, so only `data` is then what it says; the rest is launching work.
    """

    data: float = 0.0
    forward: float = 0.0
    backward: float = 0.0
    optimizer: float = 0.0


@dataclass(slots=True)
class Stepper:
    """Takes optimizer steps.

    Attributes:
        model: wrapped for data parallelism where there are several workers.
        optimizer: its param_groups have a `base_lr`.
        lr_factor: applied steps -> share of the peak learning rate.
        criterion: sums the loss over a micro-batch.
        normaliser: uint8 images -> the model's floating-point input.
        clip_norm: largest global norm of the gradients.
        seed: decides what is random inside the model, for each step and rank.
        ema: follows the weights; None: nothing does.
        counts_targets: micro-batches may lack samples (skipped images), so a step's samples are counted over all ranks.
        mixing: MixUp and CutMix; then the batches bring everyone's partner.
        gate: looks at every step's gradients; None: nobody asked for it.
        applied_steps: what the schedule has advanced by: steps, without those that fp16's loss scaling has skipped.
        records: what is known about each step, on the device.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    lr_factor: Callable[[int], float]
    criterion: Criterion
    normaliser: Callable[[torch.Tensor], torch.Tensor]
    precision: Precision
    scaler: Scaler
    world: World
    clip_norm: float | None
    seed: int
    counts_targets: bool
    mixing: Mixing | None = None
    ema: Ema | None = None
    gate: Gate | None = None
    applied_steps: int = 0
    clock: StepClock = field(default_factory=StepClock)
    records: StepRecords = field(init=False)
    _parameters: list[nn.Parameter] = field(init=False)
    _weights: dict[int, torch.Tensor] = field(default_factory=dict)
    _empty: torch.Tensor | None = None

    def __post_init__(self) -> None:
        self.records = StepRecords(MOST_STEPS, self.world.device)
        self._parameters = [p for group in self.optimizer.param_groups for p in group["params"]]

    def __call__(self, share: StepShare, batches: Iterator[Batch]) -> None:
        """Takes one step with the next micro-batches of `batches`."""
        clock, place = self.clock, self.records.begin()
        factor = self.lr_factor(self.applied_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        if self.gate is not None:
            self.gate.begin()
        if self.counts_targets:
            self._counted_micro_batches(share, batches, place)
        else:
            self._micro_batches(share, batches, place)
        started = time.perf_counter()
        self._update(place)
        # What zero_grad does, without the profiler hooks that cost more than this loop.
        for parameter in self._parameters:
            parameter.grad = None
        clock.optimizer += time.perf_counter() - started

    def leave_out(self, share: StepShare, batches: Iterator[Batch]) -> None:
        """Passes over a step: its samples are not trained on, the schedule goes on."""
        for _ in share.micro_batches:
            next(batches)
        place = self.records.begin()
        if self.world.is_rank_zero:
            self.records.skipped[place].fill_(PASSED_OVER)
        self.applied_steps += 1

    def _update(self, place: int) -> None:
        """Clips and updates, unless that must be left out; the records say what was done."""
        gate, records, left_out = self.gate, self.records, self._empty
        if gate is None or self.scaler.enabled:
            may = may_update(self.optimizer, self._empty)
        else:
            may = gate.lets_through(self._parameters, self._empty)
        applied = may and self.scaler.step(self.optimizer, self.clip_norm, self._parameters)
        overflowed = may and not applied
        if gate is not None and overflowed:
            gate.close()
        # On a GPU it is known later whether the update was left out: the schedule must not depend on that.
        counts = gate is not None or not overflowed
        if self.world.is_rank_zero:
            # fp16's gradients are looked at by the scaling, which knows their true size.
            norm = self.scaler.gradient_norm if gate is None or self.scaler.enabled else gate.norm
            if applied and norm is not None:
                records.norms[place].add_(norm)
            if gate is not None:
                records.skipped[place].add_(gate.closed)
            elif overflowed:
                records.skipped[place].fill_(1)
            if self._empty is not None:
                records.skipped[place].add_(self._empty, alpha=NO_SAMPLE)
        if gate is not None:
            left_out = gate.closed if left_out is None else torch.maximum(gate.closed, left_out)
            gate.end()
        if not counts:
            return
        self.applied_steps += 1
        if self.ema is not None:
            self.ema.update(self.applied_steps, left_out)

    def _micro_batches(self, share: StepShare, batches: Iterator[Batch], place: int) -> None:
        clock = self.clock
        last = len(share.micro_batches) - 1
        for index in range(last + 1):
            started = time.perf_counter()
            batch = next(batches)
            fetched = time.perf_counter()
            clock.data += fetched - started
            aside: AbstractContextManager[None] = nullcontext()
            if not len(batch[1]):
                batch, aside = stand_in(batch), without_trace(self.model)
            # Dropout and the like depend on step, rank and micro-batch, not on what was drawn before (loading draws,
            # too, when it happens in this process): resume is exact, and so is another number of data workers.
            seed_generators(self.world.device, mix_seed(self.seed, share.step, self.world.rank, index))
            with aside, nullcontext() if index == last else self._without_exchange():
                with self.precision.autocast(self.world.device):
                    loss = self._loss(batch, share.step)
                forwarded = time.perf_counter()
                clock.forward += forwarded - fetched
                self.scaler.scale(loss).backward(self._weight_of(share.samples, loss.dtype))
            self.records.losses[place].add_(loss.detach())
            clock.backward += time.perf_counter() - forwarded
        check_averaged(self.model, step=share.step + 1)

    def _loss(self, batch: Batch, step: int) -> torch.Tensor:
        if self.mixing is None:
            images, targets = batch
            return self.criterion(self.model(self.normaliser(images)), targets)
        images, targets, partners, partners_targets = batch
        mix = self.mixing.of_step(step, *images.shape[-2:])
        output = self.model(mix(self.normaliser(images), partners))
        # Cross entropy is linear in the target, its smoothing too: the loss of the mixed target.
        return mix.share * self.criterion(output, targets) + (1 - mix.share) * self.criterion(output, partners_targets)

    def _without_exchange(self) -> AbstractContextManager[None]:
        if isinstance(self.model, nn.parallel.DistributedDataParallel):
            return self.model.no_sync()
        return nullcontext()

    def _weight_of(self, samples: int, dtype: torch.dtype) -> torch.Tensor:
        """What a step's summed loss is multiplied by; as the gradient of the loss it needs no operation of its own."""
        if samples not in self._weights:
            value = self.world.world_size / samples
            self._weights[samples] = torch.full((), value, dtype=dtype, device=self.world.device)
        return self._weights[samples]

    def _counted_micro_batches(self, share: StepShare, batches: Iterator[Batch], place: int) -> None:
        """The same where images may be missing: all of the step's batches first, then the exact number of samples."""
        started = time.perf_counter()
        taken = [next(batches) for _ in share.micro_batches]
        self.clock.data += time.perf_counter() - started
        count = torch.zeros((), dtype=torch.float64, device=self.world.device)
        for _, targets, *_ in taken:
            count += (targets >= 0).sum()
        self.records.counted[place].add_(count)
        total = self.world.sum(count)
        # Momentum and weight decay would move the weights all the same.
        self._empty = (total == 0).float()
        total = total.clamp(min=1)
        self._micro_batches(share, iter(taken), place)
        # The true number is known on the device only: correcting the gradients afterwards keeps the host free.
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        torch._foreach_mul_(gradients, (share.samples / total).to(gradients[0].dtype))
