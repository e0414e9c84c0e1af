"""Hydra's and OmegaConf's exceptions, retold in two lines for people."""

import re
import sys
import typing
from collections.abc import Sequence
from pathlib import Path

from trainer.config.keys import all_keys
from trainer.config.names import group_names, group_options
from trainer.config.plain import unknown_key, wrong_type
from trainer.config.suggest import closest, did_you_mean, gpus_by_number, suggest_key
from trainer.errors import ConfigError, UnfitError

# What people write where they want something decided for them, or nothing at all.
_UNDECIDED = ("auto", "all", "default", "none", "off", "false", "max", "")
_FULL_KEY = re.compile(r"full_key:\s*(\S+)")
_ADDED = re.compile(r"Could not append to config\. An item is already at '([^']+)'")
_DECIMAL_COMMA = re.compile(r"\d+,\d+")
_FILE = re.compile(r"^In '([^']+)'")
_VALUE = re.compile(r"(?:Value|value:) '?(.*?)'?(?: of type |$| is not a valid| \(type)", re.MULTILINE)


def translate(error: Exception, overrides: list[str]) -> ConfigError:
    """What an exception of Hydra or OmegaConf means for whoever wrote the overrides or a configuration file.

    Args:
        error: as Hydra raised it; the cause and the context are looked at as well.
        overrides: what was composed.
    """
    from hydra.errors import MissingConfigException, OverrideParseException
    from omegaconf.errors import (
        ConfigAttributeError,
        ConfigKeyError,
        InterpolationResolutionError,
        OmegaConfBaseException,
    )
    from yaml import YAMLError

    if isinstance(error, ConfigError):
        return error
    if isinstance(error, YAMLError):
        return ConfigError(f"a configuration file is not valid YAML: {' '.join(str(error).split())}", "mend it")
    if isinstance(error, OverrideParseException):
        return malformed(error.override)
    if isinstance(error, MissingConfigException):
        return _missing_file(error)
    inner = error if isinstance(error, OmegaConfBaseException) else error.__cause__ or error.__context__ or error
    file = _FILE.match(str(error))
    where = f" in {file[1]}.yaml" if file else ""
    full_key = getattr(inner, "full_key", None) or _full_key(str(inner))
    if isinstance(inner, InterpolationResolutionError):
        return ConfigError(
            f"{full_key or 'a value'} refers to something that is not there: {_first_line(inner)}",
            "refer to a key with ${section.key}",
        )
    if isinstance(inner, (ConfigKeyError, ConfigAttributeError)) and full_key:
        return unknown_key(full_key, where=where)
    if "is None" in str(inner) or isinstance(error, AssertionError):
        return _in_null_section(overrides) or ConfigError(_first_line(error), "`paceline config` lists all keys")
    if full_key == "recipe" and "'DictConfig'" in str(inner):
        return ConfigError(f"the keys{where} are not at the top level", "make its first line: # @package _global_")
    path = re.sub(r"\[.*", "", full_key or "")
    if path in all_keys() and "does not support deletion" not in str(inner):
        return _wrong_type(path, inner, where, overrides)
    if added := _ADDED.search(str(error)):
        return ConfigError(f"{added[1]} is a key that is there already, and + adds new ones", f"{added[1]}=VALUE")
    if full_key and "deletion" in str(inner):
        return ConfigError(f"{full_key} cannot be removed", f"set it: {full_key}=null or another value")
    return ConfigError(_first_line(error) + where, "`paceline config` lists all keys")


def foreign_python(error: ModuleNotFoundError) -> UnfitError:
    """The error for a Python that lacks our packages."""
    return UnfitError(f"{sys.executable} has no package {error.name}", "use .venv/bin/python (`make setup` makes it)")


def malformed(override: str) -> ConfigError:
    """The error for an override that Hydra's grammar does not take."""
    key, equals, value = override.partition("=")
    if not equals:
        key, _, value = key.partition(":")
        known = key if key in all_keys() else suggest_key(key)
        return ConfigError(f"{override!r} is not KEY=VALUE: missing '='", f"write {known or key}={value or 'VALUE'}")
    if not key.strip("+~ "):
        return ConfigError(f"{override!r} has no key before '='", "write KEY=VALUE; `paceline config` lists all keys")
    if value.startswith("~"):
        return ConfigError(f"{key}={value} names the home of nobody", f"{key}=/the/whole/path")
    entry = all_keys().get(key)
    if entry is not None and entry.type in (int, float, bool):
        return wrong_type(key, entry.type, f"'{value}'")
    if key in group_names():
        return unknown_option(key, value, group_options(key))
    return ConfigError(
        f"the value of {key} cannot be read: {value}", f"quote it for Hydra and for the shell: {_quoted(key, value)}"
    )


def check_blanks(words: Sequence[str]) -> None:
    """Refuses what a shell has cut at its blanks: a `=` by itself, a list or `{...}` in parts.

    Raises:
        ConfigError: there is such a thing.
    """
    for at, word in enumerate(words):
        whole, rest = word, list(words[at + 1 :])
        while _is_open(whole) and rest:
            whole += f" {rest.pop(0)}"
        if whole != word and not _is_open(whole):
            raise ConfigError(f"the shell has cut {word} off at a blank", f"quote it: '{whole}'")
    if "=" in words[1:-1]:
        at = words.index("=", 1)
        key, value = words[at - 1], words[at + 1]
        raise ConfigError(f"there are blanks around the '=' of {key}", f"write {key}={value}")


def _is_open(text: str) -> bool:
    return text.count("{") > text.count("}") or text.count("[") > text.count("]")


def unknown_option(group: str, name: str, options: list[str]) -> ConfigError:
    """The error for `GROUP=NAME` where the group has no such file."""
    return ConfigError(
        f"{group}={name}: there is no {group} of that name",
        f"{did_you_mean(name, options, prefix=f'{group}=')} (`paceline config {group}` lists them)",
    )


def several_values(key: str, value: str) -> ConfigError:
    """The error for a sweep where one value is wanted."""
    entry = all_keys().get(key)
    if key == "device" and (by_number := gpus_by_number(value)):
        return ConfigError(f"{key}={value} is not a choice", by_number)
    fix = f"python -m trainer --multirun {key}={value} sweeps over them"
    if entry is not None and entry.type is float and _DECIMAL_COMMA.fullmatch(value):
        fix = f"with a decimal point: {key}={value.replace(',', '.')}; or {fix}"
    if entry is not None and typing.get_origin(entry.type) is list:
        fix += f"; a list is written {key}=[{value}]"
    elif "/" in value:
        fix = f"if the comma belongs to it, quote it for Hydra and for the shell: {_quoted(key, value)}"
    return ConfigError(f"{key} takes one value here, got {value}", fix)


def _quoted(key: str, value: str) -> str:
    """An override as it is typed in a shell, its value one text for Hydra."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"\"{key}='{escaped}'\""


def _missing_file(error: Exception) -> ConfigError:
    found = re.search(r"(?:Could not find|Cannot find primary config) '([^']+)'", str(error))
    path = found[1] if found else str(getattr(error, "missing_cfg_file", "") or "")
    group, _, name = path.rpartition("/")
    options = re.findall(r"^\t([^\s=,]+)$", str(error), re.MULTILINE)
    if group and options:
        return unknown_option(group, name, options)
    near = closest(Path(path).name, options)
    return ConfigError(
        f"there is no configuration file {path}.yaml" if path else _first_line(error),
        f"did you mean {near}?" if near else "look at --config-dir and --config-name",
    )


def _in_null_section(overrides: list[str]) -> ConfigError | None:
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        for path, entry in all_keys().items():
            if entry.section and entry.optional and key.startswith(f"{path}."):
                group, _, name = path.rpartition(".")
                return ConfigError(f"{key} is set, but {path} is not in use", f"add {group}={name}")
    return None


def _wrong_type(path: str, inner: BaseException, where: str, overrides: list[str]) -> ConfigError:
    entry = all_keys()[path]
    written = next((text for text in reversed(overrides) if text.partition("=")[0].lstrip("+") == path), None)
    found = _VALUE.search(str(inner))
    if written is not None and not where:
        value = written.partition("=")[2]
    elif found:
        value = found[1]
    else:
        return wrong_type(path, entry.type, _first_line(inner), where=where)
    if entry.section:
        return ConfigError(
            f"{path} is a section and takes no value of its own, got '{value}'{where}",
            f"set a key in it; `paceline config {path}` lists them",
        )
    error = wrong_type(path, entry.type, f"'{value}'", where=where)
    if entry.optional and value.lower() in _UNDECIDED:
        return ConfigError(error.problem, f"{path}=null: {entry.doc}")
    return error


def _full_key(text: str) -> str | None:
    found = _FULL_KEY.search(text)
    return found[1] if found else None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
