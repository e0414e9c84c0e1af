"""Did you mean: the nearest key or word, by spelling and by the names that other trainers use."""

import difflib
import re
from collections.abc import Iterable

from trainer.config.keys import all_keys
from trainer.errors import Instead

ALIASES: dict[str, str] = {
    "learning_rate": "optim.lr",
    "base_lr": "optim.lr",
    "max_lr": "optim.lr",
    "wd": "optim.weight_decay",
    "optimizer": "optim.name",
    "opt": "optim.name",
    "momentum": "optim.args.momentum",
    "betas": "optim.args.betas",
    "nesterov": "optim.args.nesterov",
    "eps": "optim.args.eps",
    "scheduler": "optim.schedule",
    "lr_scheduler": "optim.schedule",
    "sched": "optim.schedule",
    "warmup": "optim.warmup_fraction",
    "warmup_epochs": "optim.warmup_fraction",
    "warmup_steps": "optim.warmup_fraction",
    "milestones": "optim.step_epochs",
    "gamma": "optim.step_factor",
    "grad_clip": "optim.clip_norm",
    "clip_grad": "optim.clip_norm",
    "gradient_clip_val": "optim.clip_norm",
    "max_grad_norm": "optim.clip_norm",
    "smoothing": "optim.label_smoothing",
    "bs": "global_batch_size",
    "batch": "global_batch_size",
    "batch_size": "global_batch_size",
    "batchsize": "global_batch_size",
    "train_batch_size": "global_batch_size",
    "total_batch_size": "global_batch_size",
    "per_gpu_batch_size": "micro_batch_size",
    "per_device_train_batch_size": "micro_batch_size",
    "micro_batch": "micro_batch_size",
    "accumulate": "micro_batch_size",
    "accumulation_steps": "micro_batch_size",
    "grad_accum": "micro_batch_size",
    "gradient_accumulation_steps": "micro_batch_size",
    "accumulate_grad_batches": "micro_batch_size",
    "n_epochs": "epochs",
    "num_epochs": "epochs",
    "max_epochs": "epochs",
    "num_train_epochs": "epochs",
    "steps": "max_steps",
    "max_iters": "max_steps",
    "num_steps": "max_steps",
    "time_limit": "max_time",
    "timeout": "max_time",
    "hang": "cluster.hang_timeout",
    "watchdog_timeout": "cluster.hang_timeout",
    "amp": "precision",
    "fp16": "precision",
    "bf16": "precision",
    "dtype": "precision",
    "mixed_precision": "precision",
    "accelerator": "device",
    "random_seed": "seed",
    "manual_seed": "seed",
    "arch": "model.name",
    "architecture": "model.name",
    "backbone": "model.name",
    "network": "model.name",
    "pretrained": "model.weights",
    "checkpoint_path": "model.weights",
    "torch_compile": "model.compile",
    "dataset": "data.name",
    "data_dir": "data.root",
    "data_path": "data.root",
    "dataset_path": "data.root",
    "path": "data.root",
    "img_size": "data.image_size",
    "imgsz": "data.image_size",
    "input_size": "data.image_size",
    "resolution": "data.image_size",
    "size": "data.image_size",
    "num_workers": "data.workers",
    "nw": "data.workers",
    "prefetch_factor": "data.prefetch",
    "val_split": "data.val_fraction",
    "valid_fraction": "data.val_fraction",
    "subset": "data.limit",
    "augmentation": "data.augment",
    "aug": "data.augment",
    "transforms": "data.augment",
    "in_channels": "data.channels",
    "gpus": "cluster.gpus_per_node",
    "ngpus": "cluster.gpus_per_node",
    "num_gpus": "cluster.gpus_per_node",
    "devices": "cluster.gpus_per_node",
    "nproc_per_node": "cluster.gpus_per_node",
    "world_size": "cluster.gpus_per_node",
    "num_nodes": "cluster.nodes",
    "nnodes": "cluster.nodes",
    "master_port": "cluster.port",
    "restarts": "cluster.max_restarts",
    "log_every": "log_every_steps",
    "log_interval": "log_every_steps",
    "log_every_n_steps": "log_every_steps",
    "logging_steps": "log_every_steps",
    "eval_every": "evaluate.every",
    "eval_interval": "evaluate.every",
    "val_interval": "evaluate.every",
    "eval_batch_size": "evaluate.batch_size",
    "val_batch_size": "evaluate.batch_size",
    "model_ema": "ema.decay",
    "model_ema_decay": "ema.decay",
    "ema_decay": "ema.decay",
    "monitor_metric": "evaluate.best",
    "metric_for_best_model": "evaluate.best",
    "eval_metric": "evaluate.best",
    "early_stopping": "evaluate.patience",
    "early_stopping_patience": "evaluate.patience",
    "early_stopping_threshold": "evaluate.min_delta",
    "save_every": "checkpoint.every_steps",
    "save_interval": "checkpoint.every_steps",
    "save_steps": "checkpoint.every_steps",
    "save_total_limit": "checkpoint.keep",
    "keep_last": "checkpoint.keep",
    "output": "run.dir",
    "out_dir": "run.dir",
    "output_dir": "run.dir",
    "log_dir": "run.dir",
    "exp_name": "run.name",
    "experiment_name": "run.name",
    "overwrite": "run.fresh",
    "restart": "run.fresh",
    "sync_bn": "distributed.sync_batchnorm",
    "syncbn": "distributed.sync_batchnorm",
    "logger": "tracking",
    "tracker": "tracking",
    "wandb": "tracking",
    "wandb_project": "tracking.wandb.project",
    "experiment": "recipe",
}
"""Names that timm, Lightning, transformers, torchvision's references and others use -> ours."""

_OF_ANOTHER_KIND = {
    "warmup", "warmup_epochs", "warmup_steps", "accumulate", "accumulation_steps", "grad_accum",
    "gradient_accumulation_steps", "accumulate_grad_batches", "per_gpu_batch_size", "per_device_train_batch_size",
    "amp", "fp16", "bf16", "mixed_precision", "pretrained", "time_limit", "timeout", "model_ema", "early_stopping",
    "wandb",
}  # fmt: skip
"""Aliases whose values cannot be taken over: steps for a fraction, a switch for a word."""

WORDS: dict[str, dict[str, str]] = {
    "device": {"gpu": "cuda", "gpus": "cuda", "nvidia": "cuda", "rocm": "cuda", "hip": "cuda", "mps": "cpu"},
    "precision": {
        **dict.fromkeys(("32", "float", "float32", "full", "single", "32_true"), "fp32"),
        **dict.fromkeys(("16", "float16", "half", "16_mixed"), "fp16"),
        **dict.fromkeys(("bfloat16", "bfloat", "bf16_mixed"), "bf16"),
        **dict.fromkeys(("amp", "mixed", "true"), "auto"),
    },
    "data.name": {"imagefolder": "folder", "image_folder": "folder", "custom": "folder", "fake": "synthetic"},
    "model.weights": {
        **dict.fromkeys(("none", "false", "random", "scratch", "no"), "null"),
        **dict.fromkeys(("true", "pretrained", "imagenet", "imagenet1k", "yes"), "DEFAULT"),
    },
    "optim.schedule": {"none": "constant", "multistep": "step", "multi_step": "step"},
    "data.augment": {"false": "none", "off": "none", "no": "none", "true": "auto", "on": "auto", "rrc": "resized_crop"},
    "data.on_bad_image": {"ignore": "skip", "warn": "skip", "raise": "error", "stop": "error", "fail": "error"},
    "on_nonfinite": {"raise": "stop", "error": "stop", "ignore": "skip", "warn": "skip"},
    "monitor.gpus": {"false": "none", "off": "none", "0": "none", "true": "auto", "on": "auto"},
}
"""Key -> words that others use for its choices, as `_fold` leaves them -> ours."""

_NUMBERED = re.compile(r"(?:(?:cuda|gpu):)?\d+(?:,(?:(?:cuda|gpu):)?\d+)*", re.IGNORECASE)


def closest(word: str, options: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The option whose spelling is nearest, in any case, or None where none is near."""
    by_fold = {_fold(option): option for option in options}
    found = difflib.get_close_matches(_fold(word), by_fold, n=1, cutoff=cutoff)
    return by_fold[found[0]] if found else None


def suggest_key(path: str) -> str | None:
    """The key that somebody who wrote `path` most likely meant: a dotted path, or None."""
    known = list(all_keys())
    folded = _fold(path)
    section, _, name = folded.rpartition(".")
    by_fold = {_fold(key): key for key in known}
    if folded in by_fold:
        return by_fold[folded]
    for candidate in (folded, name):
        if candidate in ALIASES:
            return ALIASES[candidate]
    same_name = [key for key in known if _fold(all_keys()[key].name) == name]
    if same_name:
        near = closest(section, (key.rpartition(".")[0] for key in same_name), cutoff=0.0)
        return next((key for key in same_name if key.rpartition(".")[0] == near), same_name[0])
    if section in by_fold:
        within = {all_keys()[key].name: key for key in known if key.rpartition(".")[0] == by_fold[section]}
        near = closest(name, within)
        if near is not None:
            return within[near]
    near = closest(path, known, cutoff=0.72)
    if near is not None:
        return near
    names = {all_keys()[key].name: key for key in reversed(known)}
    near = closest(name, [*names, *ALIASES], cutoff=0.75)
    return None if near is None else names.get(near) or ALIASES[near]


def means_the_same(path: str) -> bool:
    """Whether what `suggest_key` finds for a path takes the same values."""
    folded = _fold(path)
    return not {folded, folded.rpartition(".")[2]} & _OF_ANOTHER_KIND


def replaced(path: str, word: str, choices: Iterable[str]) -> Instead | None:
    """The override to write instead of `path=word`, which is none of the choices; None where none is near.

    Args:
        path: the key or group that was set.
        word: what it was set to.
        choices: what there is.
    """
    meant = WORDS.get(path, {}).get(_fold(word)) or closest(word, choices)
    return ([f"{path}={word}"], [f"{path}={meant}"]) if meant else None


def renamed(section: str, name: str, names: Iterable[str]) -> Instead | None:
    """The key to set instead of `section.name`, which is none of the names; None where none is near."""
    near = closest(name, names)
    return ([f"{section}.{name}"], [f"{section}.{near}"]) if near else None


def did_you_mean(word: str, options: Iterable[str], *, prefix: str = "") -> str:
    """A sentence that offers the nearest option, or else lists them all.

    Args:
        word: what was written.
        options: what may be written.
        prefix: put before the offered option, such as `recipe=`.
    """
    known = sorted(options)
    near = closest(word, known)
    if near is not None:
        return f"did you mean {prefix}{near}?"
    shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"take one of: {shown}" if known else "there is none to choose"


def choice(path: str, word: str, choices: Iterable[str]) -> str:
    """A sentence that offers what to write instead of a word that is none of a key's choices."""
    if path == "device" and (by_number := gpus_by_number(word)):
        return by_number
    meant = WORDS.get(path, {}).get(_fold(word))
    return f"did you mean {path}={meant}?" if meant else did_you_mean(word, choices, prefix=f"{path}=")


def gpus_by_number(device: str) -> str | None:
    """How the GPUs are chosen that somebody has named by their numbers, as in `cuda:1` or `0,1`; None: nobody has."""
    if not _NUMBERED.fullmatch(device):
        return None
    numbers = re.sub(r"[a-z:]", "", device.lower())
    which = "those GPUs; device=cuda insists on them" if "," in numbers else "that GPU; device=cuda insists on it"
    return f"CUDA_VISIBLE_DEVICES={numbers} in front of the command chooses {which}"


def _fold(word: str) -> str:
    return word.strip().lower().replace("-", "_")
