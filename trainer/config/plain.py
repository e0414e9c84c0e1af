"""The configuration as plain YAML and back, without Hydra: what a run directory holds and workers read."""

import math
import typing
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from trainer.config.keys import bare_type, type_words
from trainer.config.schema import Config
from trainer.config.suggest import means_the_same, suggest_key
from trainer.errors import ConfigError, UnfitError
from trainer.wording import command, short_path


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration (or a section of it) as nested dicts, lists and scalars, in the schema's order."""
    values = ((item.name, getattr(config, item.name)) for item in fields(config))
    return {name: to_dict(value) if is_dataclass(value) else _copy(value) for name, value in values}


def to_yaml(config: Config) -> str:
    """The configuration as YAML that `from_yaml` and people read."""
    import yaml

    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True, width=110)


def from_yaml(text: str) -> Config:
    """The configuration of a `config.yaml`; keys that it lacks take the schema's defaults.

    Raises:
        ConfigError: not YAML, an unknown key, or a value of another type.
    """
    import yaml

    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        # PyYAML has no name for a text.
        reason = getattr(error, "problem", None) or " ".join(str(error).split()).replace(' in "<unicode string>",', "")
        raise ConfigError(f"not valid YAML: {where}{reason}", "mend the file, or compose it anew") from error
    return from_dict(values or {})


def read_config(file: Path) -> Config:
    """The configuration that a file holds, such as a run's `config.yaml`.

    Raises:
        ConfigError: as `from_yaml`, naming the file.
        UnfitError: it cannot be read.
    """
    try:
        return from_yaml(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{short_path(file)}: not text: {error}", "mend the file, or compose it anew") from error
    except ConfigError as error:
        raise ConfigError(f"{short_path(file)}: {error.problem}", error.fix) from error
    except OSError as error:
        raise UnfitError(f"{short_path(file)} cannot be read: {error.strerror}", f"look at: ls -ld '{file}'") from error


def from_dict(values: Any) -> Config:
    """The configuration of nested dicts.

    Raises:
        ConfigError: an unknown key, or a value of another type.
    """
    config: Config = _section(Config, values, "")
    return config


def _section(kind: Any, values: Any, path: str) -> Any:
    if not isinstance(values, dict):
        raise ConfigError(f"{path or 'the configuration'} must hold keys, got {values!r}", "write key: value lines")
    known = {item.name: item for item in fields(kind)}
    for name in values:
        if name not in known:
            raise unknown_key(f"{path}.{name}" if path else str(name))
    made: dict[str, Any] = {}
    for name, item in known.items():
        if name in values:
            made[name] = _value(item.type, values[name], f"{path}.{name}" if path else name)
        elif item.default is MISSING and item.default_factory is MISSING:
            raise ConfigError(f"{path}.{name} is missing", "add it")
    return kind(**made)


def unknown_key(path: str, *, where: str = "") -> ConfigError:
    """The error for a key that the schema does not have.

    Args:
        path: dotted, as it was written.
        where: ` in FILE`, or empty for the command line.
    """
    near = suggest_key(path)
    offer = f". Did you mean {near}?" if near else ""
    section = (near or path).rpartition(".")[0].partition(".")[0]
    if section == "hydra":
        listing = f"{command('python')} -m trainer --hydra-help"
    else:
        listing = f"{command('paceline')} config {section}".strip()
    problem = f"unknown key {path}{where}{offer}"
    if near and not means_the_same(path):
        return ConfigError(problem, f"`{command('paceline')} config explain {near}` says what it takes")
    return ConfigError(problem, f"`{listing}` lists them", instead=([path], [near]) if near else None)


def wrong_type(path: str, kind: Any, value: str, *, where: str = "") -> ConfigError:
    """The error for a value, as it is to be shown, that a key does not take."""
    return ConfigError(
        f"{path} takes {type_words(kind)}, got {value}{where}",
        f"`{command('paceline')} config explain {path}` shows what it means",
    )


def _value(hint: Any, value: Any, path: str) -> Any:
    kind, optional = bare_type(hint)
    if value is None and optional:
        return None
    if is_dataclass(kind) and isinstance(kind, type):
        return _section(kind, value, path)
    converted = _convert(kind, value)
    if converted is MISSING:
        raise wrong_type(path, kind, repr(value))
    return converted


def _convert(kind: Any, value: Any) -> Any:
    """The value as `kind`, or MISSING where it is something else."""
    if isinstance(kind, tuple):
        fitting = (_convert(option, value) for option in kind if isinstance(value, option))
        return next(fitting, MISSING)
    if typing.get_origin(kind) is list:
        if not isinstance(value, list):
            return MISSING
        items = [_convert(typing.get_args(kind)[0], item) for item in value]
        return MISSING if MISSING in items else items
    if kind is float:
        return _float(value)
    if isinstance(value, bool) and kind is not bool:
        return MISSING
    return value if isinstance(value, kind) else MISSING


def _float(value: Any) -> Any:
    # YAML 1.1 reads 1e-3 as text, since it wants a dot in the mantissa.
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return MISSING
    try:
        number = float(value)
    except ValueError:
        return MISSING
    return MISSING if isinstance(value, str) and math.isnan(number) else number


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, (list, tuple)) else value
