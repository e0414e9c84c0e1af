"""A run's configuration with some of its keys set anew, for what is done with the run afterwards."""

from collections.abc import Sequence
from typing import Any

from trainer.config.compose import parse
from trainer.config.keys import is_known
from trainer.config.plain import from_dict, to_dict, unknown_key
from trainer.config.schema import Config
from trainer.errors import ConfigError


def with_overrides(config: Config, overrides: Sequence[str], *, may: Sequence[str], purpose: str) -> Config:
    """A run's configuration with some keys set anew.

    Args:
        config: the run's.
        overrides: `KEY=VALUE` in Hydra's grammar.
        may: keys, or sections of keys, that may be set.
        purpose: what for, as in `an evaluation`.

    Raises:
        ConfigError: an unknown key, one that may not be set, or a value that it does not take.
    """
    values = to_dict(config)
    for text in overrides:
        override = parse(text)
        key = override.key_or_group
        if not is_known(key):
            raise unknown_key(key)
        allowed = any(key == entry or key.startswith(f"{entry}.") for entry in may)
        if not allowed or isinstance(values.get(key), dict):
            raise ConfigError(f"{key} cannot be set for {purpose}", f"these can: {', '.join(may)}")
        if override.is_sweep_override() or override.is_delete():
            raise ConfigError(f"{text} is not one value for a key", f"{key}=VALUE")
        *sections, name = key.split(".")
        place: dict[str, Any] = values
        for section in sections:
            place = place[section]
        place[name] = override.value()
    return from_dict(values)
