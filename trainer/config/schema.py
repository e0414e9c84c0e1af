"""The schema: every configuration key with its type, unit, range and meaning.

Hydra composes `configs/` over these dataclasses. `key(...)` carries what validation, `paceline config explain` and
the generated documentation page need, so a key is described here and nowhere else.
"""

from dataclasses import dataclass, field
from typing import Any

LONGEST_TIMEOUT_S = 7 * 24 * 3600
"""The longest time-out: poll(2), with which queues wait, takes no more than 24 days."""


def key(
    default: Any,
    doc: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A dataclass field with its documentation.

    Args:
        default: the value when nobody sets it; a list, dict or class makes a new one for each instance.
        doc: one or two sentences for a person.
        unit: the unit of a number, in words.
        low: the smallest allowed value (inclusive).
        high: the largest allowed value (inclusive).
        choices: the allowed words of a string key.
    """
    metadata = {"doc": doc, "unit": unit, "low": low, "high": high, "choices": choices}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class RunConfig:
    """Where a run lives."""

    name: str | None = key(None, "The run's name; null makes one of the recipe's name and the time.")
    dir: str = key("runs", "The directory that holds run directories.")
    fresh: bool = key(False, "Start over in a new directory beside an existing run of that name.")
    accept_changes: bool = key(False, "Continue a run although its configuration differs in a key that matters.")


@dataclass
class EvaluateConfig:
    """When the validation split is evaluated, and what follows from it."""

    every: int | str = key("epoch", "`epoch`, `end`, or a number of optimizer steps between evaluations.")
    batch_size: int | None = key(
        None, "Validation batch per worker; null takes the training micro-batch.", unit="samples", low=1
    )
    best: str = key(
        "val/accuracy",
        "Decides which weights are the best: val/accuracy, accuracy_top5, f1, precision, recall, loss or ece; "
        "with ema.decay also val/ema_accuracy and so on.",
    )
    patience: int | None = key(
        None, "End the run after this many evaluations without an improvement; null: never.", unit="evaluations", low=1
    )
    min_delta: float = key(0.0, "The least change of the metric that counts as an improvement for patience.", low=0.0)


@dataclass
class DataConfig:
    """The images."""

    name: str = key("folder", "The data set: a name of `paceline config data`.")
    root: str | None = key(
        None,
        "For `folder`: the directory with a folder per class. Else: where a copy lies or is downloaded to.",
    )
    image_size: int | None = key(
        None,
        "Side of the square image that the model sees; null takes the weights' or the data's own.",
        unit="pixels",
        low=4,
    )
    channels: int | None = key(
        None, "1 for grey, 3 for colour; null takes what the data has and the model needs.", low=1, high=3
    )
    val_fraction: float = key(
        0.1,
        "Share of a folder without a val split that is held out, by each file's path; 0: none, and then nothing is "
        "evaluated.",
        low=0.0,
        high=0.9,
    )
    limit: int | None = key(None, "Use at most this many images of each split, for quick trials.", unit="images", low=1)
    workers: int | None = key(
        None,
        "Data-loading processes per worker; 0 loads in the training process, null decides.",
        low=0,
        high=256,
    )
    prefetch: int = key(2, "Batches that each data-loading process keeps ready.", low=1, high=64)
    timeout_s: int = key(
        300,
        "Time without a batch after which the data-loading processes are taken for hanging.",
        unit="seconds",
        low=1,
        high=LONGEST_TIMEOUT_S,
    )
    on_bad_image: str = key(
        "error",
        "What an unreadable image does: end the run, or be skipped and listed (while most can be read).",
        choices=("error", "skip"),
    )
    augment: str = key(
        "auto",
        "Training augmentation; auto takes resized_crop for images of 64 pixels and more, else crop.",
        choices=("auto", "none", "flip", "crop", "resized_crop"),
    )
    mixup: float = key(
        0.0, "MixUp: alpha of the Beta distribution of the shares; 0: no MixUp. Of both, a step takes either.", low=0.0
    )
    cutmix: float = key(0.0, "CutMix: alpha of the Beta distribution of the boxes' areas; 0: no CutMix.", low=0.0)
    drop_last: bool = key(False, "Leave out an epoch's last global batch when it is smaller than the others.")
    _target_: str | None = key(None, "Your own data: an importable callable that returns a `trainer.data.Splits`.")
    args: dict[str, Any] = key({}, "Keyword arguments for the data set or for `_target_`.")


@dataclass
class ModelConfig:
    """The network."""

    name: str = key("resnet18", "A torchvision classification model, or one of ours, by name.")
    weights: str | None = key(
        None, "`DEFAULT` or another name of torchvision's weights, a .safetensors or .pth file, or null."
    )
    args: dict[str, Any] = key({}, "Keyword arguments for the model's constructor.")
    _target_: str | None = key(None, "Your own model: an importable callable that returns an nn.Module of logits.")
    channels_last: bool = key(False, "Keep the model in channels-last memory format: often faster for convolutions.")
    compile: bool = key(False, "Compile the model with torch.compile.")


@dataclass
class OptimConfig:
    """Optimizer, schedule and loss."""

    name: str = key("sgd", "A class of torch.optim, in any case: sgd, adamw, ...")
    lr: float = key(0.1, "Peak learning rate.", low=0.0)
    weight_decay: float = key(5e-4, "Weight decay; norms and biases have none.", low=0.0)
    args: dict[str, Any] = key({}, "Further keyword arguments of the optimizer: momentum, betas, ...")
    schedule: str = key(
        "cosine",
        "Learning rate over the run, after the warm-up.",
        choices=("constant", "cosine", "step", "one_cycle"),
    )
    warmup_fraction: float = key(
        0.05,
        "Share of the run in which the rate rises: linearly, with one_cycle along a cosine.",
        low=0.0,
        high=0.9,
    )
    final_factor: float = key(0.0, "Share of the peak rate at the end (cosine, one_cycle).", low=0.0, high=1.0)
    step_epochs: list[int] = key([30, 60, 80], "Epochs at which the rate falls (step).", unit="epochs")
    step_factor: float = key(0.1, "What the rate is multiplied by at each of them (step).", low=0.0, high=1.0)
    clip_norm: float | None = key(None, "Clip the gradients' global norm to this, above 0.")
    label_smoothing: float = key(0.0, "Label smoothing of the cross entropy.", low=0.0, high=0.99)


@dataclass
class EmaConfig:
    """An exponential moving average of the weights, evaluated beside them."""

    decay: float | None = key(
        None, "0.999, 0.9999, ...: the longer the run, the nearer to 1; rises towards it. null: no average."
    )


@dataclass
class DistributedConfig:
    """How the workers talk."""

    timeout_s: int = key(
        600,
        "Time after which a collective that a rank does not join fails.",
        unit="seconds",
        low=1,
        high=LONGEST_TIMEOUT_S,
    )
    sync_batchnorm: bool = key(False, "Compute BatchNorm statistics over all ranks.")
    compression: str = key("none", "Send gradients in half precision.", choices=("none", "bf16", "fp16"))
    bucket_mb: int = key(25, "Size of DDP's gradient buckets.", unit="MiB", low=1)
    find_unused_parameters: bool = key(
        False, "Allow that parameters take no part in a step, on some ranks or on all; DDP then looks for them."
    )


@dataclass
class CheckpointConfig:
    """When a checkpoint is written and how many are kept."""

    every: str = key(
        "auto",
        "`auto` weighs the measured cost of saving against what a failure would cost; or a time, such as 10m. "
        "Either way an evaluation that is the best so far is saved as well. `evaluation`: after each of them, and at "
        "no other time.",
    )
    every_steps: int | None = key(
        None, "Optimizer steps between checkpoints; null: `every` decides.", unit="steps", low=1
    )
    keep: int = key(2, "Newest checkpoints that are kept, besides that of the best evaluation.", low=1)
    keep_every: int | None = key(
        None, "Keep for good the first checkpoint at or after every multiple of this.", unit="steps", low=1
    )


@dataclass
class ClusterConfig:
    """Where the processes run."""

    scheduler: str = key("none", "Who finds the machines: none (it is this one), or slurm.", choices=("none", "slurm"))
    nodes: int = key(1, "Machines; `paceline run` starts them all on this one.", low=1)
    gpus_per_node: int | None = key(
        None, "Workers per machine; null: one for each GPU, or 2 on a machine without one.", low=1
    )
    max_restarts: int = key(0, "Restarts from the last checkpoint after a failure.", low=0)
    hang_timeout: str | None = key(
        "auto",
        "Time without a sign of life after which the job is taken for hanging and ended: seconds, or 90s, 10m, 2h; "
        "0: never. auto or null: learnt from the run's own steps, 30 s at least; 10 minutes for other programs.",
    )
    grace_seconds: float = key(
        120.0, "Time that workers have after a request to stop, then they are killed.", unit="seconds", low=0
    )
    numa_binding: bool = key(
        True, "Keep each worker on the cores near its GPU, where a machine has several NUMA nodes."
    )
    port: int | None = key(None, "Rendezvous port; null takes a free one.", low=1, high=65535)
    partition: str | None = key(None, "Slurm's partition; null: its default.")
    account: str | None = key(None, "Slurm's account; null: your default.")
    qos: str | None = key(None, "Slurm's quality of service.")
    constraint: str | None = key(None, "Features that Slurm's nodes must have, as `h100|a100`.")
    exclude: str | None = key(None, "Slurm's nodes that are not to be used, as `node[3-4]`.")
    time: str | None = key(None, "Time limit in Slurm: 90m, 12h, or HH:MM:SS; null: the partition's.")
    cpus_per_worker: int | None = key(
        None, "CPU cores that Slurm is asked for, for each worker and its loading processes; null: its default.", low=1
    )
    memory: str | None = key(None, "Memory of each node that Slurm is asked for, as 64G; null: its default.")
    setup: list[str] = key([], "Lines of shell before the job in Slurm's batch script, such as `module load cuda`.")
    sbatch: dict[str, Any] = key({}, "Further options of sbatch by their long names, as cluster.sbatch.reservation=X.")


@dataclass
class MonitorConfig:
    """What is sampled beside the training."""

    gpus: str = key(
        "auto",
        "Sample the job's own GPUs (auto), all of the machine, or none.",
        choices=("auto", "all", "none"),
    )
    period_s: float = key(1.0, "Time between two samples.", unit="seconds", low=0.1, high=3600)


@dataclass
class WandbConfig:
    """Weights & Biases; offline where no API key is set."""

    project: str = key("paceline", "Project.")
    entity: str | None = key(None, "Team or user; null takes the account's default.")
    group: str | None = key(None, "Group of runs.")
    tags: list[str] = key([], "Tags.")
    mode: str = key(
        "auto", "auto: online where an API key is set, else offline.", choices=("auto", "online", "offline")
    )


@dataclass
class TrackingConfig:
    """Who is told, besides metrics.jsonl; choose with tracking=none, wandb or [wandb,...]."""

    wandb: WandbConfig | None = key(None, "Weights & Biases.")


@dataclass
class Config:
    """Everything that a job is asked to do."""

    recipe: str = key("", "The recipe that was chosen; set by recipe=NAME.")
    run: RunConfig = key(RunConfig, "Where the run lives.")
    seed: int = key(0, "Decides the order of samples, augmentation and initial weights.", low=0, high=2**63 - 1)
    epochs: int | None = key(10, "Passes over the training split.", low=1)
    max_steps: int | None = key(None, "Stop after this many optimizer steps, if the epochs last longer.", low=1)
    max_time: str | None = key(None, "Stop with a checkpoint in time, HH:MM:SS from the start of the command.")
    global_batch_size: int = key(256, "Samples of one optimizer step, over all workers.", unit="samples", low=1)
    micro_batch_size: int | None = key(
        None,
        "Samples that one worker takes at once; null: its whole share. Accumulation follows.",
        unit="samples",
        low=1,
    )
    precision: str = key(
        "auto", "auto chooses what the hardware is fast at.", choices=("auto", "fp32", "tf32", "bf16", "fp16")
    )
    device: str = key("auto", "auto takes a GPU where there is one.", choices=("auto", "cpu", "cuda"))
    debug: bool = key(False, "A few batches through every stage in seconds, with anomaly detection.")
    deterministic: bool = key(False, "Only deterministic kernels: the same weights bit for bit, somewhat slower.")
    on_nonfinite: str = key(
        "stop",
        "What a loss or gradients that are not finite do: stop the run, have their update left out (skip), or take "
        "the run back to its last checkpoint and leave out the steps that led there (rollback). Gradients that "
        "overflow while fp16 looks for its loss scale are no trouble, a loss that is not finite is.",
        choices=("stop", "skip", "rollback"),
    )
    log_every_steps: int = key(
        50, "Optimizer steps between rows of metrics.jsonl; never more than 10,000.", unit="steps", low=1
    )
    evaluate: EvaluateConfig = key(EvaluateConfig, "Validation.")
    data: DataConfig = key(DataConfig, "The images.")
    model: ModelConfig = key(ModelConfig, "The network.")
    optim: OptimConfig = key(OptimConfig, "Optimizer, schedule and loss.")
    ema: EmaConfig = key(EmaConfig, "Moving average of the weights.")
    distributed: DistributedConfig = key(DistributedConfig, "How the workers talk.")
    checkpoint: CheckpointConfig = key(CheckpointConfig, "Checkpoints.")
    cluster: ClusterConfig = key(ClusterConfig, "Where the processes run.")
    monitor: MonitorConfig = key(MonitorConfig, "Sampling of GPUs and host.")
    tracking: TrackingConfig = key(TrackingConfig, "Trackers.")
