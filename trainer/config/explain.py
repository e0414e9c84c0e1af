"""`paceline config`: every value, its meaning, and who set it, as text for people or as JSON."""

import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trainer import answer
from trainer.config.compose import compose, directory
from trainer.config.continuation import differences, flatten
from trainer.config.keys import Key, all_keys, get, is_known, leaves
from trainer.config.names import group_files, group_names
from trainer.config.origins import SCHEMA, Origins, trace
from trainer.config.plain import read_config, to_dict, to_yaml, unknown_key
from trainer.config.schema import Config
from trainer.errors import ConfigError


def show(overrides: Sequence[str], as_json: bool = False, *, config_dir: Path | None = None) -> str:
    """The whole configuration as YAML, each value that is not the schema's with a comment on who set it.

    Args:
        overrides: in Hydra's grammar.
        as_json: an object of `config` and `sources` (key -> who) instead.
        config_dir: a directory of the user's own configuration files.

    Raises:
        ConfigError: as for `compose`.
    """
    origins = trace(overrides, config_dir=config_dir)
    if as_json:
        sources = {path: origins.source(path) for path in flatten(origins.config)}
        return answer.as_json(config=to_dict(origins.config), sources=sources)
    return "\n".join(_yaml_lines(to_dict(origins.config), "", origins))


def recorded(run: str, as_json: bool = False) -> str:
    """The whole configuration of a run as YAML, or as an object with `config`.

    Args:
        run: its directory, or its name in `runs`.
        as_json: which of the two.

    Raises:
        ConfigError: it has none, or one that cannot be read.
    """
    config = _load(run, None)
    return answer.as_json(config=to_dict(config)) if as_json else to_yaml(config).rstrip()


def explain(key: str, overrides: Sequence[str] = (), as_json: bool = False, *, config_dir: Path | None = None) -> str:
    """One key: value, type, range, meaning, who set it and what that overrode; of a section its keys.

    Raises:
        ConfigError: an unknown key, or as for `compose`.
    """
    if not is_known(key):
        raise unknown_key(key)
    entry = all_keys().get(key)
    if entry is not None and entry.section:
        return listing(key, as_json, config_dir=config_dir)
    origins = trace(overrides, config_dir=config_dir)
    chain = origins.of(key)
    value = get(origins.config, key)
    overrode = [{"value": layer.value, "by": layer.by} for layer in reversed(chain[:-1])]
    set_by = chain[-1].by if chain else "nobody"
    # Within args the schema knows no key: they are what the constructor takes.
    described = _described(entry) if entry else {"doc": "A keyword argument of the constructor.", "takes": "a value"}
    if as_json:
        return answer.as_json(key=key, value=value, set_by=set_by, overrode=overrode, **described)
    takes = _takes(entry) if entry else described["takes"]
    lines = [f"{key} = {inline(value)}", f"  {described['doc']}", f"  takes       {takes}"]
    if entry:
        lines.append(f"  default     {inline(entry.default)}")
    lines.append(f"  set by      {set_by}")
    for position, layer in enumerate(overrode):
        lead = "overrode" if position == 0 else ""
        lines.append(f"  {lead:<10}  {layer['by']}: {inline(layer['value'])}")
    return "\n".join(lines)


def diff(a: str, b: str, as_json: bool = False, *, config_dir: Path | None = None) -> str:
    """The keys in which two configurations differ.

    Args:
        a: a run directory, the name of a run in `runs`, a config.yaml, or overrides (`"recipe=digits"`).
        b: likewise.
        as_json: an object with a list of `differences` instead.
        config_dir: a directory of the user's own configuration files.

    Raises:
        ConfigError: one of them is neither, or cannot be read or composed.
    """
    one, other = _load(a, config_dir), _load(b, config_dir)
    old, new = flatten(one), flatten(other)
    matters = differences(one, other)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if as_json:
        rows = [{"key": name, "a": old.get(name), "b": new.get(name), "matters": name in matters} for name in names]
        return answer.as_json(a=a, b=b, differences=rows)
    if not names:
        return "no difference"
    texts = [(name, inline(old.get(name)), inline(new.get(name))) for name in names]
    widths = [max(len(row[column]) for row in texts) for column in (0, 1)]
    return "\n".join(f"{name:<{widths[0]}}  {was:<{widths[1]}}  ->  {now}" for name, was, now in texts)


def listing(prefix: str = "", as_json: bool = False, *, config_dir: Path | None = None) -> str:
    """The keys, and the groups' options, under a prefix; without one all of them.

    Args:
        prefix: a group (`recipe`), a section (`optim`), the beginning of a key, or empty.
        as_json: an object of `keys` and `groups` instead.
        config_dir: a directory of the user's own configuration files.

    Raises:
        ConfigError: nothing has that prefix.
    """
    own = None if config_dir is None else directory(config_dir)
    groups = {group: group_files(group, own) for group in group_names(own) if not prefix or group == prefix}
    found = [key for path, key in leaves().items() if path.startswith(prefix) and path != "recipe"]
    if not found and not groups:
        raise unknown_key(prefix)
    if as_json:
        options = {
            group: {name: first_comment(file) for name, file in files.items()} for group, files in groups.items()
        }
        return answer.as_json(keys=[{"key": key.path, **_described(key)} for key in found], groups=options)
    return "\n".join([*_group_lines(groups), *([""] if groups and found else []), *_key_lines(found)])


def _group_lines(groups: dict[str, dict[str, Path]]) -> Iterator[str]:
    options = [
        (f"{group}={name}", first_comment(file)) for group, files in groups.items() for name, file in files.items()
    ]
    width = max((len(option) for option, _ in options), default=0)
    for option, comment in options:
        yield f"{option:<{width}}  {comment}".rstrip()


def _key_lines(keys: Sequence[Key]) -> Iterator[str]:
    shown = [f"{key.path}={inline(key.default)}" for key in keys]
    width = min(max((len(text) for text in shown), default=0), 44)
    # On a terminal the meaning is folded into a column; elsewhere a key keeps one line, for grep.
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    for key, text in zip(keys, shown, strict=True):
        meaning = f"{key.doc} Takes {_takes(key)}."
        lines = textwrap.wrap(meaning, columns - width - 2) if columns > width + 40 else [meaning]
        yield f"{text:<{width}}  {lines[0]}"
        yield from (" " * (width + 2) + line for line in lines[1:])


def first_comment(file: Path) -> str:
    """What a configuration file says of itself: the first sentence of its comment, directives aside."""
    words: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        text = line.lstrip("# ").strip()
        if line and not line.startswith("#"):
            break
        if text and not text.startswith("@"):
            words.append(text)
        if text.endswith((".", ":")):
            break
    sentence, dot, _ = " ".join(words).partition(". ")
    return (sentence + dot.strip()).rstrip(":")


def _load(text: str, config_dir: Path | None) -> Config:
    for path in (Path(text), Path(text) / "config.yaml", Path("runs") / text / "config.yaml"):
        if path.is_file():
            return read_config(path)
    if "=" in text or not text.strip():
        return compose(shlex.split(text), config_dir=config_dir)
    raise ConfigError(
        f"{text} is neither a run directory with a config.yaml, nor a file, nor overrides",
        "paceline config diff runs/NAME 'recipe=finetune optim.lr=0.1'",
    )


def _yaml_lines(values: dict[str, Any], prefix: str, origins: Origins, depth: int = 0) -> Iterator[str]:
    indent = "  " * depth
    for name, value in values.items():
        path = prefix + name
        if isinstance(value, dict) and value:
            yield f"{indent}{name}:"
            yield from _yaml_lines(value, f"{path}.", origins, depth + 1)
        else:
            source = origins.source(path)
            line = f"{indent}{name}: {inline(value)}"
            yield line if source == SCHEMA else f"{line}  # {source}"


def _described(key: Key) -> dict[str, Any]:
    return {
        "doc": key.doc,
        "takes": key.takes,
        "unit": key.unit,
        "low": key.low,
        "high": key.high,
        "choices": list(key.choices),
        "default": key.default,
    }


def _takes(key: Key) -> str:
    words = f"{key.takes}, {key.range}" if key.range else key.takes
    return f"{words} ({key.unit})" if key.unit else words


def inline(value: Any) -> str:
    """A value in one line of YAML."""
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf"), sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")
