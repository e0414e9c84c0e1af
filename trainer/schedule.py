"""The learning rate as a pure function of the step: nothing to save, and the same after a resume."""

import math

from trainer.config.schema import OptimConfig

# torch.optim.lr_scheduler.OneCycleLR's default: the rate starts at a 25th of its peak.
ONE_CYCLE_START = 1 / 25


def lr_factor(config: OptimConfig, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """What the peak learning rate is multiplied by at one optimizer step.

    `one_cycle` is torch's OneCycleLR, whose last step has the final factor. The others warm up linearly over
    `warmup_fraction` of the run, W steps, from peak/(W+1) (LinearLR). Then `cosine` is CosineAnnealingLR over
    the rest, which would reach the final factor just after the last step, so that no step is wasted; `step`
    is MultiStepLR.

    Args:
        config: the `optim` keys.
        step: the optimizer step, from 0; beyond the end the last value holds.
        total_steps: optimizer steps of the whole run, at least 1.
        steps_per_epoch: optimizer steps of an epoch, at least 1.

    Returns:
        The factor, 0..1.
    """
    if config.schedule == "one_cycle":
        return _one_cycle(config, step, total_steps)
    warmup = min(round(config.warmup_fraction * total_steps), total_steps - 1)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "cosine":
        return _cosine(1.0, config.final_factor, (step - warmup) / (total_steps - warmup))
    if config.schedule == "step":
        passed = sum(step >= epoch * steps_per_epoch for epoch in config.step_epochs)
        return config.step_factor**passed
    assert config.schedule == "constant", config.schedule
    return 1.0


def _one_cycle(config: OptimConfig, step: int, total_steps: int) -> float:
    if total_steps == 1:
        # The only step would otherwise be the last one, whose rate is almost nothing.
        return 1.0
    top = config.warmup_fraction * total_steps - 1
    if step <= top:
        return _cosine(ONE_CYCLE_START, 1.0, step / top if top > 0 else 1.0)
    return _cosine(1.0, config.final_factor, (step - top) / (total_steps - 1 - top))


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
