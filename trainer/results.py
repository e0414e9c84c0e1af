"""What remains of a run: classes, summary, and the last lines on the terminal."""

import math
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from trainer.config import Config
from trainer.run import runname
from trainer.run.secrets import redact_words
from trainer.rundir import RunDir, write_json
from trainer.train import Outcome
from trainer.wording import command, duration, number, percent, plural, short_path, whole_percent

_TRIAL_RECIPES = ("fashion_mnist", "digits", "synthetic")


def write_classes(run: RunDir, classes: list[str]) -> None:
    """Writes the class names in the order of the logits."""
    write_json(run.classes, classes)


def summarise(outcome: Outcome, *, seconds: float) -> dict[str, Any]:
    """The run's results as plain values; fractions are 0..1, times are seconds.

    Args:
        outcome: how the training ended.
        seconds: that the run took, over all attempts.
    """
    progress, parts = outcome.progress, outcome.parts
    training = progress.seconds.get("steps", 0.0)
    trained = parts.plan.samples_before(progress.step)
    return {
        # JSON has no other numbers than finite ones.
        **{name: value if math.isfinite(value) else None for name, value in progress.metrics.items()},
        "best/accuracy": progress.best.accuracy if progress.best.step else None,
        "best/metric": parts.config.evaluate.best,
        "best/weights": parts.judge.weights,
        "best/value": progress.best.value,
        "best/epoch": progress.best.epoch,
        "best/step": progress.best.step,
        "reason": outcome.early or "all steps are done",
        "step": progress.step,
        "epochs": parts.epochs,
        "samples": trained,
        "perf/images_per_second": trained / training if training else 0.0,
        "seconds": seconds,
        "seconds_by_cause": time_by_cause(progress.seconds, on_gpu=parts.world.device.type == "cuda"),
        "parameters": sum(p.numel() for p in parts.model.parameters()),
        "preprocessing": asdict(parts.preprocessing),
        "precision": parts.precision.name,
        "world_size": parts.world.world_size,
        "skipped_steps": parts.stepper.scaler.skipped + progress.skipped_steps,
        "left_out": progress.left_out,
        "time": time.time(),
    }


def time_by_cause(seconds: dict[str, float], *, on_gpu: bool) -> dict[str, float]:
    """Where rank 0's time went; the parts add up to the whole.

    On a GPU the host's own figures for forward, backward and optimizer are the launching of work, not the work;
    what is not waiting for data is then one part, `computing`.
    """
    steps = seconds.get("steps", 0.0)
    parts = {name: seconds.get(name, 0.0) for name in ("data", "forward", "backward", "optimizer")}
    if on_gpu:
        parts = {"data": parts["data"], "computing": steps - parts["data"]}
    else:
        parts["other"] = max(0.0, steps - sum(parts.values()))
    return {
        **parts,
        "evaluation": seconds.get("evaluation", 0.0),
        "checkpoint": seconds.get("checkpoint", 0.0),
    }


def stopping_lines(step: int, run: RunDir, argv: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """The last lines of a run that was stopped after `step` steps: how to go on, unless the launcher says that."""
    stopped = f"Stopped at step {step:,} with a checkpoint"
    if "PACELINE_RUN_DIR" in environment:
        return [stopped]
    workers = environment.get("WORLD_SIZE", "1")
    start = [command("python")]
    if "TORCHELASTIC_RUN_ID" in environment:
        start = [command("torchrun"), "--standalone", f"--nproc-per-node={workers}"]
    elsewhere = workers != (environment.get("LOCAL_WORLD_SIZE", "1") if len(start) > 1 else "1")
    if elsewhere or {"-m", "--multirun"} & set(argv):
        # Several nodes, another launcher, a sweep: nobody knows here how they were started.
        return [f"{stopped}; the same command with run.name={run.name} goes on from there"]
    words = [*start, "-m", "trainer", *runname.continuing(redact_words(argv[1:]), run.name)]
    return [stopped, f"again     {shlex.join(words)}"]


def closing_lines(summary: dict[str, Any], run: RunDir, config: Config, *, hints: list[str], skipped: int) -> list[str]:
    """The last lines of a finished run."""
    causes = summary["seconds_by_cause"]
    total = sum(causes.values()) or 1.0
    spent = ", ".join(
        f"{name} {whole_percent(value / total)}" for name, value in sorted(causes.items(), key=lambda item: -item[1])
    )
    found = summary["best/accuracy"] is not None
    epoch = "" if config.debug else f" (best, epoch {summary['best/epoch']})"
    result = f"val accuracy {percent(summary['best/accuracy'])}{epoch}, " if found else ""
    weights = short_path(run.weights("best" if found else "last"))
    if found and summary["best/weights"] == "moving average":
        weights += " (moving average)"
    lines = [
        f"Done in {duration(summary['seconds'])}. {result}{number(summary['perf/images_per_second'])} images/s",
        f"time      {spent}",
        f"run       {short_path(run.path)}",
        f"view      {command('paceline')} status {short_path(run.path)}",
        f"weights   {weights}",
        f"metrics   {short_path(run.metrics)}",
    ]
    if summary["reason"] != "all steps are done":
        lines.insert(1, f"end       {summary['reason']}")
    if skipped:
        lines.append(f"skipped   {plural(skipped, 'unreadable image')}, listed in {short_path(run.skipped_images)}")
    if summary["skipped_steps"]:
        lines.append(
            f"note      {plural(summary['skipped_steps'], 'step')} skipped, for gradients that were not finite"
        )
    lines += hints
    if config.debug:
        return lines
    if config.recipe in _TRIAL_RECIPES:
        own = f"{command('paceline')} run recipe=finetune data.root=/path/with/a/folder/per/class"
        lines.append(f"next      your own images:  {own}")
    elif "val/samples" in summary:
        lines.append(f"next      class by class:  {command('python')} -m trainer.evaluate {short_path(run.path)}")
    return lines
