"""Puts the parts of one run together: data, plan, model, optimizer; checked before the first step."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F  # torch's own name for it
from torch import nn

from trainer import checkpoint, distributed
from trainer.check.sources import check_unevaluated
from trainer.config import Config
from trainer.data import datasets, loader, transforms
from trainer.data.identity import identity
from trainer.data.mixing import Mixing
from trainer.data.sampler import StepPlan, StepSampler
from trainer.data.samples import Batch, Samples
from trainer.distributed import World
from trainer.errors import ConfigError, TrainingError
from trainer.evaluate.judge import AVERAGED, RAW, Judge, check_metric
from trainer.evaluate.metrics import Scores
from trainer.evaluate.validation import Validation, Wishes
from trainer.model.ema import Ema
from trainer.model.heads import loss_and_logits
from trainer.network import build_network, input_format
from trainer.numerics.gate import Gate
from trainer.optim import build_optimizer
from trainer.precision import Precision, Scaler, agreed
from trainer.preprocessing import Preprocessing
from trainer.rundir import RunDir
from trainer.schedule import lr_factor
from trainer.training.fitting import Layout, layout_of
from trainer.training.step import Criterion, Stepper
from trainer.wording import plural


@dataclass(slots=True)
class Parts:
    """The parts of one run on one worker.

    Attributes:
        splits: the data.
        identity: the data's, see `trainer.data.identity`.
        preprocessing: what the model takes as input.
        plan: how samples are dealt to steps, ranks and micro-batches.
        total_steps: optimizer steps of the whole run.
        epochs: epochs of the whole run; the last may be a part of one.
        precision: what was chosen.
        model: not wrapped, on its device.
        layout: of its state dict, as it was built.
        stepper: takes the optimizer steps.
        workers: data-loading processes.
        validation: evaluates models on the validation split.
    """

    config: Config
    world: World
    run: RunDir
    splits: datasets.Splits
    identity: dict[str, Any]
    preprocessing: Preprocessing
    plan: StepPlan
    total_steps: int
    epochs: int
    precision: Precision
    model: nn.Module
    layout: Layout
    normaliser: nn.Module
    stepper: Stepper
    workers: int
    validation: Validation

    def batches(self, first_step: int) -> Iterator[Batch]:
        """This rank's micro-batches on the device, from a step to the end of the run, without a stop."""
        data = self.config.data
        augment = transforms.resolve_augment(data.augment, self.preprocessing)
        samples = Samples(
            self.splits.train,
            transforms.train_transform(self.preprocessing, augment, flip=self.splits.flip),
            seed=self.config.seed,
            batch_augment=transforms.batch_augment(
                self.preprocessing, augment, flip=self.splits.flip, split=self.splits.train
            ),
            skip_bad=data.on_bad_image == "skip",
            report=self.run.skipped_images,
            mixes=self.stepper.mixing is not None,
        )
        sampler = StepSampler(
            samples,
            self.plan,
            seed=self.config.seed,
            first_step=first_step,
            last_step=self.total_steps,
            with_next=self.stepper.mixing is not None,
        )
        batches = loader.load_batches(
            samples,
            sampler,
            workers=self.workers,
            prefetch=data.prefetch,
            timeout_s=data.timeout_s,
            device=self.world.device,
        )
        return loader.on_device(batches, self.world.device)

    @property
    def shared_memory_bytes(self) -> int:
        """What the batches take that the loading processes of all workers of this machine keep ready."""
        form, plan = self.preprocessing, self.plan
        partner = int(self.stepper.mixing is not None)
        images = plan.largest_micro_batch + partner + min(self.validation.batch_size, len(self.splits.val))
        ready = self.workers * self.config.data.prefetch * self.world.local_world_size
        return ready * images * form.channels * form.image_size**2

    @property
    def is_evaluated(self) -> bool:
        """Whether there are validation images."""
        return len(self.splits.val) > 0

    @property
    def ema(self) -> Ema | None:
        """The weights' moving average; None: there is none."""
        return self.stepper.ema

    @property
    def models(self) -> dict[str, nn.Module]:
        """What is evaluated, by what its metrics' names begin with."""
        return {RAW: self.model, **({AVERAGED: self.ema.model} if self.ema is not None else {})}

    @property
    def judge(self) -> Judge:
        """Decides which weights are the best."""
        options = self.config.evaluate
        return Judge(options.best, options.patience, options.min_delta)

    def evaluate(self, wishes: Wishes) -> dict[str, Scores]:
        """Scores over the whole validation split by the names' prefix; the same on all ranks.

        Args:
            wishes: whether this rank must stop.

        Raises:
            EvaluationStopped: some rank must stop; raised on all ranks.
        """
        distributed.average_buffers(self.model, self.world)
        if self.ema is not None:
            self.ema.follow_buffers()
        return self.validation.evaluate(self.models, wishes)


def assemble(config: Config, world: World, run: RunDir) -> Parts:
    """Builds the parts.

    Raises:
        PacelineError: the data, the weights or the batch arithmetic cannot work.
    """
    splits = datasets.load(config.data)
    _check_splits(splits, config, world)
    plan = replace(step_plan(config, len(splits.train), world.world_size), rank=world.rank)
    total_steps = count_steps(config, plan)
    preprocessing = input_format(config, splits.preprocessing)
    precision = agreed(config.precision, world)
    model = build_network(
        config,
        world.device,
        num_classes=len(splits.classes),
        preprocessing=preprocessing,
        # A run that goes on has its weights in the checkpoint; the pretrained ones need not be there any more.
        pretrained=not checkpoint.steps(run),
    )
    layout = layout_of(model)
    normaliser = transforms.Normaliser(preprocessing).to(world.device)
    _check_single_samples(plan, total_steps, model, normaliser, preprocessing)
    workers = loader.choose_workers(
        config.data.workers,
        in_memory=isinstance(splits.train, datasets.TensorImages),
        cores=world.own_cores(),
    )
    return Parts(
        config=config,
        world=world,
        run=run,
        splits=splits,
        identity=identity(splits),
        preprocessing=preprocessing,
        plan=plan,
        total_steps=total_steps,
        epochs=-(-total_steps // plan.steps_per_epoch),
        precision=precision,
        model=model,
        layout=layout,
        normaliser=normaliser,
        stepper=_stepper(config, world, plan, total_steps, model, normaliser, precision, len(splits.classes)),
        workers=workers,
        validation=Validation(
            config, splits, preprocessing, normaliser, precision, world, workers=workers, report=run.skipped_images
        ),
    )


def _check_splits(splits: datasets.Splits, config: Config, world: World) -> None:
    """Refuses data that is too small for what was asked.

    Raises:
        ConfigError: fewer images than workers, fewer classes than the metric to judge by needs, or no validation images
            for what follows from evaluations.
    """
    if len(splits.train) < world.world_size:
        raise ConfigError(
            f"only {plural(len(splits.train), 'training image')} for {plural(world.world_size, 'worker')}",
            f"cluster.gpus_per_node={len(splits.train)} or fewer, or more images",
        )
    check_metric(config.evaluate.best, len(splits.classes))
    if not len(splits.val):
        check_unevaluated(config)


def _stepper(
    config: Config,
    world: World,
    plan: StepPlan,
    total_steps: int,
    model: nn.Module,
    normaliser: nn.Module,
    precision: Precision,
    classes: int,
) -> Stepper:
    optim, policy = config.optim, config.on_nonfinite
    # A copy of the bare model: DDP's hooks are of no use to it.
    ema = Ema(model, config.ema.decay) if config.ema.decay is not None else None
    optimizer = build_optimizer(optim, model, world.device)
    return Stepper(
        model=distributed.data_parallel(model, world, config.distributed),
        optimizer=optimizer,
        lr_factor=lambda step: lr_factor(optim, step, total_steps, plan.steps_per_epoch),
        criterion=_criterion(optim.label_smoothing, classes),
        normaliser=normaliser,
        precision=precision,
        scaler=Scaler(enabled=precision.uses_scaler, device=world.device),
        world=world,
        clip_norm=optim.clip_norm,
        seed=config.seed,
        ema=ema,
        counts_targets=config.data.on_bad_image == "skip",
        mixing=_mixing(config),
        gate=None if policy == "stop" else Gate(model, optimizer, world.device, only_looks=policy == "rollback"),
    )


def _check_single_samples(
    plan: StepPlan, total_steps: int, model: nn.Module, normaliser: nn.Module, preprocessing: Preprocessing
) -> None:
    """Refuses now what would fail hours later: a lone sample in an epoch's last step, before a BatchNorm layer.

    Raises:
        ConfigError: the network cannot be trained on a single sample, and some rank will have one.
    """
    normalises = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    if plan.smallest_micro_batch(total_steps) > 1 or not normalises:
        return
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    side, device = preprocessing.image_size, next(model.parameters()).device
    image = torch.zeros(1, preprocessing.channels, side, side, dtype=torch.uint8, device=device)
    try:
        # As it will train: with the parts evaluating that it keeps so. A compiled one would not raise ValueError.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            model(normaliser(image))
    except ValueError as error:
        whole = replace(plan, drop_last=True).smallest_micro_batch(total_steps) > 1
        raise ConfigError(
            f"{'the last step of an epoch' if whole else 'a step'} has a single sample on some worker at once, which a "
            f"BatchNorm layer refuses ({error})",
            ", or ".join(_ways_to_two(plan, total_steps)) or "more images, or fewer workers",
        ) from error
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])


def _ways_to_two(plan: StepPlan, total_steps: int) -> Iterator[str]:
    """The overrides each of which gives every worker two samples or more at once."""
    size = plan.global_batch_size
    for options in (
        [(f"micro_batch_size={n}", replace(plan, micro_batch_size=n)) for n in range(2, 9) if plan.micro_batch_size],
        [(f"global_batch_size={n}", replace(plan, global_batch_size=n)) for n in range(size + 1, 2 * size + 1)],
        [("data.drop_last=true", replace(plan, drop_last=True))],
    ):
        better = [text for text, changed in options if changed.smallest_micro_batch(total_steps) > 1]
        yield from better[:1]


def step_plan(config: Config, samples: int, world_size: int) -> StepPlan:
    """How the samples of an epoch are dealt to `world_size` workers, as rank 0 sees it."""
    return StepPlan(
        samples=samples,
        global_batch_size=config.global_batch_size,
        world_size=world_size,
        micro_batch_size=config.micro_batch_size,
        drop_last=config.data.drop_last,
    )


def count_steps(config: Config, plan: StepPlan) -> int:
    """Optimizer steps of the whole run: its epochs, or max_steps where that is less."""
    limits = []
    if config.epochs is not None:
        limits.append(config.epochs * plan.steps_per_epoch)
    if config.max_steps is not None:
        limits.append(config.max_steps)
    if not limits:
        raise ConfigError("neither epochs nor max_steps is set, so the training would never end", "epochs=10")
    return min(limits)


def _mixing(config: Config) -> Mixing | None:
    data = config.data
    return Mixing(data.mixup, data.cutmix, config.seed) if data.mixup or data.cutmix else None


def _criterion(label_smoothing: float, classes: int) -> Criterion:
    def criterion(output: object, targets: torch.Tensor) -> torch.Tensor:
        def cross_entropy(logits: torch.Tensor) -> torch.Tensor:
            # A GPU would only notice it in some later operation, and not say what is wrong.
            if logits.shape[1] < classes:
                raise TrainingError(
                    f"the data has {classes} classes, but the model gives {plural(logits.shape[1], 'logit')}",
                    "a model of yours is given num_classes: its last layer must have as many outputs",
                )
            return F.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)

        return loss_and_logits(output, cross_entropy)[0]

    return criterion
