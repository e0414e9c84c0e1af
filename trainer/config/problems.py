"""Hydra's and OmegaConf's exceptions, retold in two lines for people."""

import re
import shlex
import sys
import typing
from collections.abc import Sequence
from pathlib import Path

from trainer.config.keys import all_keys, is_known
from trainer.config.names import group_names, group_options, named
from trainer.config.plain import unknown_key, wrong_type
from trainer.config.suggest import closest, did_you_mean, gpus_by_number, replaced, suggest_key
from trainer.errors import ConfigError, UnfitError
from trainer.wording import command

# What people write where they want something decided for them, or nothing at all.
_UNDECIDED = ("auto", "all", "default", "none", "off", "false", "max", "")
_FULL_KEY = re.compile(r"full_key:\s*(\S+)")
_ADDED = re.compile(r"Could not append to config\. An item is already at '([^']+)'")
_DECIMAL_COMMA = re.compile(r"\d+,\d+")
_CLOSE = 0.8
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
        return _in_null_section(overrides) or ConfigError(
            _first_line(error), f"`{command('paceline')} config` lists all keys"
        )
    if full_key == "recipe" and "'DictConfig'" in str(inner):
        return ConfigError(f"the keys{where} are not at the top level", "make its first line: # @package _global_")
    path = re.sub(r"\[.*", "", full_key or "")
    if path in all_keys() and "does not support deletion" not in str(inner):
        return _wrong_type(path, inner, where, overrides)
    if added := _ADDED.search(str(error)):
        return ConfigError(f"{added[1]} is a key that is there already, and + adds new ones", f"{added[1]}=VALUE")
    if full_key and "deletion" in str(inner):
        return ConfigError(f"{full_key} cannot be removed", f"set it: {full_key}=null or another value")
    return ConfigError(_first_line(error) + where, f"`{command('paceline')} config` lists all keys")


def unimportable(package: str, error: Exception) -> UnfitError:
    """The error for a package that is installed and cannot be imported, such as a torch of another CUDA."""
    reason = (_first_line(error) if str(error) else "") or type(error).__name__
    return UnfitError(
        f"{package} cannot be imported: {reason}",
        f"`{command('paceline')} doctor` says what is wrong; `make clean setup` installs everything anew",
    )


def foreign_python(error: ModuleNotFoundError) -> UnfitError:
    """The error for a Python that lacks our packages."""
    return UnfitError(f"{sys.executable} has no package {error.name}", "use .venv/bin/python (`make setup` makes it)")


def malformed(override: str) -> ConfigError:
    """The error for an override that Hydra's grammar does not take."""
    key, equals, value = override.partition("=")
    if not equals:
        key, _, value = key.partition(":")
        known = key if key in all_keys() else suggest_key(key)
        written = f"{known or key}={value or 'VALUE'}"
        instead = ([override], [written]) if known and value else None
        return ConfigError(f"{override!r} is not KEY=VALUE: missing '='", f"write {written}", instead=instead)
    if not key.strip("+~ "):
        return ConfigError(
            f"{override!r} has no key before '='", f"write KEY=VALUE; `{command('paceline')} config` lists all keys"
        )
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
    """Refuses what a shell has cut at its blanks, a `=` by itself, a list or `{...}` in parts, or has not cut.

    Raises:
        ConfigError: there is such a thing.
    """
    for at, word in enumerate(words):
        whole, rest = word, list(words[at + 1 :])
        while _is_open(whole) and rest:
            whole += f" {rest.pop(0)}"
        if whole != word and not _is_open(whole):
            parts = words[at : len(words) - len(rest)]
            raise ConfigError(
                f"the shell has cut {word} off at a blank", f"quote it: '{whole}'", instead=(parts, [whole])
            )
        overrides = _overrides_in(word)
        if len(overrides) > 1:
            fix = " ".join(overrides)
            raise ConfigError(f"{word!r} is one word of several overrides", fix, instead=([word], overrides))
    for at in range(len(words)):
        if parts := _around_sign(words[at : at + 3]):
            whole, key = "".join(parts), parts[0].partition("=")[0]
            raise ConfigError(f"there are blanks around the '=' of {key}", f"write {whole}", instead=(parts, [whole]))


def _around_sign(words: Sequence[str]) -> Sequence[str] | None:
    """The first two or three words, where they are KEY = VALUE, KEY =VALUE or KEY= VALUE."""
    key, sign, value = [*words, "", ""][:3]
    if not sign or not is_known(key.removesuffix("=").lstrip("+~")):
        return None
    if sign == "=" and value and not key.endswith("="):
        return words[:3]
    if sign.startswith("=") and sign != "=" and "=" not in key:
        return words[:2]
    # KEY= alone sets an empty text.
    return words[:2] if key.endswith("=") and "=" not in sign and not sign.startswith(("~", "-")) else None


def _overrides_in(word: str) -> list[str]:
    """The overrides in a word: more than one where someone has quoted them together."""
    if not re.match(r"[+~]*[\w.]+=[^'\"{\[]*\s", word):
        return [word]
    found = re.split(r"\s+(?=[+~]*[\w.]+=)", word.strip())
    keys = {part.partition("=")[0].lstrip("+~") for part in found}
    return found if all(is_known(key) or key in group_names() for key in keys) else [word]


def _is_open(text: str) -> bool:
    return text.count("{") > text.count("}") or text.count("[") > text.count("]")


def unknown_option(group: str, name: str, options: list[str]) -> ConfigError:
    """The error for `GROUP=NAME` where the group has no such file."""
    problem = f"{group}={name}: there is no {group} of that name"
    listing = f"(`{command('paceline')} config {group}` lists them)"
    if f"{group}.name" in all_keys():
        known = named(group)
        spelled = next((each for each in known if each.lower() == name.lower()), None)
        near = spelled or (None if closest(name, options, cutoff=_CLOSE) else closest(name, known, cutoff=_CLOSE))
        if near:
            meant = f"{group}.name={near}"
            return ConfigError(problem, f"did you mean {meant}? {listing}", instead=([f"{group}={name}"], [meant]))
    return ConfigError(
        problem,
        f"{did_you_mean(name, options, prefix=f'{group}=')} {listing}",
        instead=replaced(group, name, options),
    )


def several_values(key: str, value: str, overrides: Sequence[str]) -> ConfigError:
    """The error for a sweep where one value is wanted.

    Args:
        key: what is set.
        value: as it was written.
        overrides: all of them.
    """
    entry = all_keys().get(key)
    if key == "device" and (by_number := gpus_by_number(value)):
        return ConfigError(f"{key}={value} is not a choice", by_number)
    problem = f"{key} takes one value here, got {value}"
    if entry is not None and typing.get_origin(entry.type) is list:
        listed = f"{key}=[{value}]"
        return ConfigError(problem, f"a list is written {listed}", instead=([f"{key}={value}"], [listed]))
    if "/" in value:
        return ConfigError(
            problem, f"if the comma belongs to it, quote it for Hydra and for the shell: {_quoted(key, value)}"
        )
    fix = shlex.join([command("python"), "-m", "trainer", "--multirun", *overrides])
    if entry is not None and entry.type is float and _DECIMAL_COMMA.fullmatch(value):
        fix = f"with a decimal point: {key}={value.replace(',', '.')}; or {fix}"
        return ConfigError(problem, fix)
    return ConfigError(f"{problem}: several make a sweep", fix)


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
            f"set a key in it; `{command('paceline')} config {path}` lists them",
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
