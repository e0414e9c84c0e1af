"""Whether a run may be continued with a given configuration."""

import json
from dataclasses import fields, is_dataclass
from typing import Any

from trainer.config.schema import Config
from trainer.errors import ConfigError

HARMLESS = (
    "recipe",
    "run",
    "max_time",
    "micro_batch_size",
    "log_every_steps",
    "on_nonfinite",
    "device",
    "evaluate.batch_size",
    "evaluate.patience",
    "evaluate.min_delta",
    "data.root",
    # An image that cannot be read has ended the run, or there was none.
    "data.on_bad_image",
    "data.workers",
    "data.prefetch",
    "data.timeout_s",
    "distributed.timeout_s",
    "distributed.bucket_mb",
    "distributed.find_unused_parameters",
    "checkpoint",
    "cluster",
    "monitor",
    "tracking",
)
"""Keys, or groups of keys, that do not decide what is computed."""

_NETWORK = ("model.name", "model._target_")
"""Keys whose change leaves nothing of a checkpoint that could be gone on with."""


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of a config dataclass."""
    values: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            values.update(flatten(value, f"{prefix}{item.name}."))
        else:
            values[prefix + item.name] = value
    return values


def differences(before: Config, now: Config) -> dict[str, tuple[Any, Any]]:
    """The keys that decide what is computed and whose values differ: key -> (before, now)."""
    old, new = flatten(before), flatten(now)
    return {
        name: (old.get(name), new.get(name))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not _is_harmless(name)
    }


def check_agreement(before: Config, now: Config, *, name: str) -> list[str]:
    """Refuses to continue run `name` with a configuration that would compute something else.

    Returns:
        What differs all the same, since `run.accept_changes` is set: `KEY was A and is now B`.

    Raises:
        ConfigError: a key that matters differs and `run.accept_changes` is not set.
    """
    changed = differences(before, now)
    shown = [f"{key} was {_typed(old)} and is now {_typed(new)}" for key, (old, new) in changed.items()]
    if shown and not now.run.accept_changes:
        ways = ["run.fresh=true starts over beside it", "another run.name begins a new one"]
        if not changed.keys() & set(_NETWORK):
            ways.append("run.accept_changes=true continues all the same")
        raise ConfigError(
            f"run {name} was begun with another configuration: {', '.join(shown)}",
            ", ".join(ways),
        )
    return shown


def _typed(value: Any) -> str:
    """A value as one types it in an override."""
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def _is_harmless(name: str) -> bool:
    return any(name == entry or name.startswith(entry + ".") for entry in HARMLESS)
