"""What a run is made of between two steps: taken from the parts for a checkpoint, and put back into them."""

import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer import checkpoint
from trainer.checkpoint import Checkpoint, buffers
from trainer.data.identity import changes
from trainer.data.recall import changed_since
from trainer.data.sampler import count_shifted
from trainer.data.scan import some
from trainer.distributed import averaged_statistics
from trainer.errors import ConfigError, UnfitError
from trainer.evaluate.judge import Standing
from trainer.optim import begin_momentum
from trainer.run import saved
from trainer.rundir import RunDir
from trainer.training.assembly import Parts
from trainer.training.fitting import check_fits, check_keeps
from trainer.wording import plural

_LATE_S = 20.0


@dataclass(slots=True)
class Progress:
    """Where a run stands; plain values that are saved with every checkpoint.

    Attributes:
        step: optimizer steps taken.
        best: the best evaluation so far.
        open_interval: the `Figures` of the steps that have no row of metrics yet.
        metrics: the last evaluation's.
        pending_evaluation: the epoch, from 1, of an evaluation that is due at this step and was broken off; else 0.
        left_out: first and last of steps, counted from 1, that are passed over since they ended in numbers that are
            not finite.
        rollbacks: how often the run was taken back to a checkpoint for that.
        skipped_steps: updates that were left out one by one; without those that fp16's loss scaling has left out.
        seconds: wall time of the whole run by what it was spent on, over all attempts.
    """

    step: int = 0
    best: Standing = field(default_factory=Standing)
    open_interval: dict[str, Any] | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    pending_evaluation: int = 0
    left_out: list[list[int]] = field(default_factory=list)
    rollbacks: int = 0
    skipped_steps: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def worked_s(self) -> float:
        """Seconds that all attempts so far have worked at what is kept of them; without their starts."""
        return sum(self.seconds.get(what, 0.0) for what in ("steps", "evaluation", "checkpoint"))

    def leaves_out(self, step: int) -> bool:
        """Whether a step, counted from 1, is passed over."""
        return any(first <= step <= last for first, last in self.left_out)

    def spend(self, what: str, seconds: float) -> None:
        """Books wall time."""
        self.seconds[what] = self.seconds.get(what, 0.0) + seconds


def snapshot(parts: Parts, progress: Progress) -> Checkpoint:
    """The state of the run, to be written by rank 0; all ranks must call it.

    Raises:
        TrainingError: no other model could go on from it.
    """
    stepper = parts.stepper
    check_keeps(parts.layout, parts.model)
    tensors: dict[str, torch.Tensor] = {f"model.{name}": value for name, value in parts.model.state_dict().items()}
    tensors.update(buffers.own_to_ranks(parts.model, parts.world))
    averaged = averaged_statistics(parts.model, parts.world)
    tensors.update({f"averaged.{name}": value for name, value in averaged.items()})
    if stepper.ema is not None:
        tensors.update({f"ema.{name}": value for name, value in stepper.ema.state().items()})
    optimizer, plain = checkpoint.optimizer_tensors(stepper.optimizer, parts.model)
    tensors.update({f"optimizer.{name}": value for name, value in optimizer.items()})
    state: dict[str, Any] = {
        "progress": asdict(progress),
        "applied_steps": stepper.applied_steps,
        "scaler": stepper.scaler.state_dict(),
        "optimizer_name": type(stepper.optimizer).__name__,
        "optimizer": plain,
        "world_size": parts.world.world_size,
        "micro_batch": parts.plan.largest_micro_batch,
        "global_batch_size": parts.plan.global_batch_size,
        "drop_last": parts.plan.drop_last,
        "device": parts.world.device.type,
        "precision": parts.precision.name,
        "data": parts.identity,
    }
    return Checkpoint(tensors, state)


def weights_in(tensors: Iterable[str], *, ema: bool = False) -> dict[str, str]:
    """Name in the model's state dict -> name of the tensor of a snapshot that an evaluation would use.

    Args:
        tensors: the snapshot's.
        ema: the moving average instead of the latest weights.
    """
    # BatchNorm's statistics, averaged over the ranks, come before one rank's own.
    prefixes = ("model.", "averaged.", "ema.") if ema else ("model.", "averaged.")
    return {name.removeprefix(prefix): name for prefix in prefixes for name in tensors if name.startswith(prefix)}


def restore(parts: Parts, *, accept_changes: bool, warn: Callable[[str], None]) -> Progress:
    """Loads the newest good checkpoint, if there is one; damaged ones are put aside.

    Raises:
        ConfigError: it is another model's, or the data has changed since, and that was not accepted.
        TrainingError: all checkpoints are damaged.
        UnfitError: this node does not see the checkpoint, or those that there were are gone.
    """
    newest = find_newest(parts, warn=warn)
    if newest is None:
        parts.world.on_rank_zero(lambda: _check_missing(parts.run, accept_changes=accept_changes, warn=warn))
        return Progress()
    _check_data(newest.state["data"], parts, accept_changes=accept_changes, warn=warn)
    for change in (*_numerical_changes(newest.state, parts), *_shift(newest.state, parts)):
        warn(change)
    if (change := _other_optimizer(newest, parts)) is not None:
        warn(f"{change}: it begins without a memory")
    return put_back(parts, newest)


def find_newest(parts: Parts, *, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest good checkpoint, the same on all ranks; None where there is none yet. Damaged ones are put aside.

    Raises:
        TrainingError: all checkpoints are damaged.
        UnfitError: this node does not see the checkpoint.
    """
    saved: Checkpoint | None = None

    def newest() -> int:
        nonlocal saved
        step, saved, damaged = checkpoint.find_newest(parts.run)
        if saved is not None:
            # First, since a misfit is no damage: whoever gave the wrong model finds everything as it was.
            _check_names(saved.state, step)
            _check_classes(saved.state["data"], parts.identity)
            check_fits(saved, step, parts.model)
        for newer, damage in damaged.items():
            warn(checkpoint.put_aside(parts.run, newer, damage))
        checkpoint.remove_unfinished(parts.run)
        return step

    # One rank decides: ranks that continue from different steps would never notice.
    step = parts.world.on_rank_zero(newest)
    if not step:
        return None
    return saved if saved is not None else _load_late(parts.run.checkpoint(step))


def put_back(parts: Parts, saved: Checkpoint) -> Progress:
    """Gives the parts the state of a snapshot; returns where the run stood."""
    tensors, stepper, state = saved.tensors, parts.stepper, saved.state
    parts.model.load_state_dict(_below(tensors, "model."))
    buffers.give_back(parts.model, tensors, parts.world)
    if stepper.ema is not None:
        stepper.ema.load(_below(tensors, "ema."))
    if _other_optimizer(saved, parts) is None:
        checkpoint.restore_optimizer(stepper.optimizer, parts.model, _below(tensors, "optimizer."), state["optimizer"])
        begin_momentum(stepper.optimizer)
    stepper.scaler.load_state_dict(state["scaler"])
    stepper.applied_steps = state["applied_steps"]
    progress = Progress(**state["progress"])
    best = Standing(**state["progress"]["best"])
    # Values of different metrics cannot be compared.
    is_same = best.metric in ("", parts.judge.metric)
    progress.best = best if is_same else Standing(former=best.step or best.former)
    return progress


def _other_optimizer(saved: Checkpoint, parts: Parts) -> str | None:
    """Why the optimizer cannot go on from what was saved, in words; None: it can."""
    optimizer = parts.stepper.optimizer
    before, now = saved.state["optimizer_name"], type(optimizer).__name__
    if before != now:
        return f"the optimizer was {before} and is now {now}"
    entries = [*_below(saved.tensors, "optimizer."), *saved.state["optimizer"]]
    if checkpoint.lacks_entries(optimizer, parts.model, entries):
        return f"{now} has arguments with which it keeps more than was saved"
    return None


def _below(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _load_late(folder: Path) -> Checkpoint:
    """Loads a checkpoint that rank 0 has found good; a shared file system may show it to other nodes later."""
    deadline = time.monotonic() + _LATE_S
    while True:
        try:
            return checkpoint.load(folder)
        except checkpoint.Damaged as damage:
            if time.monotonic() > deadline:
                raise UnfitError(
                    f"{socket.gethostname()} cannot read {folder}, which rank 0 can: {damage}",
                    "run.dir must lie on a file system that all nodes share",
                ) from damage
            time.sleep(0.2)


def _numerical_changes(before: dict[str, Any], parts: Parts) -> Iterator[str]:
    """What other workers, micro-batches, devices or number formats mean for a run that goes on."""
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    found = [module for module in parts.model.modules() if isinstance(module, kinds)]
    then, now = (before["world_size"], before["micro_batch"]), (parts.world.world_size, parts.plan.largest_micro_batch)
    is_as_big = before.get("global_batch_size", parts.plan.global_batch_size) == parts.plan.global_batch_size
    if then != now and is_as_big:
        said = "the samples and their order are the same, gradients agree up to rounding"
        if found:
            said += "; BatchNorm and dropout see the samples in other groups, which is more than rounding"
        yield f"begun with {then[0]} x {then[1]} images at once, goes on with {now[0]} x {now[1]}: {said}"
    # Earlier versions did not note these.
    device, precision = before.get("device", parts.world.device.type), before.get("precision", parts.precision.name)
    goes_on = f"goes on in {parts.precision.name} on {parts.world.device.type}"
    if precision != parts.precision.name:
        yield (
            f"begun in {precision} on {device}, {goes_on}: the arithmetic is another, which is more than rounding "
            f"in the last place; precision={precision} keeps it where the hardware can"
        )
    elif device != parts.world.device.type:
        drawn = any(isinstance(module, nn.modules.dropout._DropoutNd) for module in found)
        others = "; dropout draws other numbers there, which is more than rounding" if drawn else ""
        yield f"begun in {precision} on {device}, {goes_on}: gradients agree up to rounding{others}"


def _shift(before: dict[str, Any], parts: Parts) -> Iterator[str]:
    """What it means for the images that a step has another number of them now."""
    step, plan = before["progress"]["step"], parts.plan
    # Earlier versions did not note it; other data are in another order anyway.
    if "global_batch_size" not in before or changes(before["data"], parts.identity):
        return
    then = replace(plan, global_batch_size=before["global_batch_size"], drop_last=before["drop_last"])
    counts = zip(count_shifted(then, plan, step), ("seen a second time", "left out"), strict=True)
    told = [
        f"{plural(count, 'image')} of an epoch {'is' if count == 1 else 'are'} {what}"
        for count, what in counts
        if count
    ]
    if told:
        yield (
            f"global_batch_size or data.drop_last is another now, and steps are what is counted: going on after step "
            f"{step:,}, {' and '.join(told)}"
        )


def _check_names(state: dict[str, Any], step: int) -> None:
    needed = {
        "progress", "applied_steps", "scaler", "optimizer_name", "optimizer", "world_size", "micro_batch", "data",
    }  # fmt: skip
    progress = state.get("progress", {})
    if needed - state.keys() or progress.keys() - {item.name for item in fields(Progress)}:
        raise ConfigError(
            f"the checkpoint of step {step:,} is whole, but another version of Paceline wrote it",
            "go on with that version (env.json names it), or run.fresh=true starts over beside this run",
        )


def _check_missing(run: RunDir, *, accept_changes: bool, warn: Callable[[str], None]) -> None:
    """Begins at the start only what has never had a checkpoint: a disk that is not mounted looks like an empty one."""
    if latest := saved.last_checkpoint(run):
        problem = f"this run has saved {latest}, and there is no checkpoint in {run.checkpoints} any more"
        if not accept_changes:
            raise UnfitError(
                problem,
                "if their disk is not mounted, mount it; run.fresh=true starts over beside this run, "
                "run.accept_changes=true starts it over here",
            )
        saved.start_over(run, latest)
        warn(f"{problem}: it starts over")


def _check_classes(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuses data that the run's network has no outputs for."""
    if len(before["classes"]) != len(now["classes"]):
        raise changed_since(changes(before, now), before, now)


def _check_data(before: dict[str, Any], parts: Parts, *, accept_changes: bool, warn: Callable[[str], None]) -> None:
    changed = changes(before, parts.identity)
    if not changed:
        return
    error = changed_since(changed, before, parts.identity)
    if bad := parts.splits.bad_files:
        # What was left out is missing from the count, although nobody has removed it.
        error.fix = f"{error.fix}; left out as unreadable: {some([str(one.path) for one in bad])}"
    if not accept_changes:
        raise error
    warn(f"{error.problem}; it goes on with another order of samples (run.accept_changes=true)")
