"""The schema as a flat list of keys: what suggestions, validation, explanation and documentation share."""

import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from typing import Any

from trainer.config.schema import Config

_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    dict: "key: value pairs such as {a: 1}",
}


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the configuration.

    Attributes:
        path: dotted, from the root.
        type: of a value, without None.
        optional: whether null is allowed.
        default: of the schema; None for a section.
        doc: what it means.
        unit: of a number, in words.
        low: smallest allowed value.
        high: largest allowed value.
        choices: allowed words; empty: any.
        section: whether it holds other keys rather than a value.
    """

    path: str
    type: Any
    optional: bool
    default: Any
    doc: str
    unit: str
    low: float | None
    high: float | None
    choices: tuple[str, ...]
    section: bool

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]

    @property
    def takes(self) -> str:
        """What a value must be, in words."""
        words = f"one of {', '.join(self.choices)}" if self.choices else type_words(self.type)
        return f"{words} or null" if self.optional else words

    @property
    def range(self) -> str:
        """The allowed numbers in words, or an empty string."""
        if self.low is not None and self.high is not None:
            return f"{_number(self.low)} to {_number(self.high)}"
        if self.low is not None:
            return f"at least {_number(self.low)}"
        return f"at most {_number(self.high)}" if self.high is not None else ""


@cache
def all_keys() -> dict[str, Key]:
    """Every section and key of the schema by its dotted path, in the schema's order."""
    return {key.path: key for key in _walk(Config, "")}


def leaves() -> dict[str, Key]:
    """The keys that hold a value."""
    return {path: key for path, key in all_keys().items() if not key.section}


def is_known(path: str) -> bool:
    """Whether a dotted path names a section, a key, or lies within a key that holds free key: value pairs."""
    if path in all_keys():
        return True
    parts = path.split(".")
    parents = (all_keys().get(".".join(parts[:end])) for end in range(1, len(parts)))
    return any(parent is not None and parent.type is dict for parent in parents)


def get(config: Config, path: str) -> Any:
    """The value at a dotted path; None where a section on the way is null."""
    value: Any = config
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else getattr(value, part, None)
    return value


def bare_type(hint: Any) -> tuple[Any, bool]:
    """A type hint without None, and whether None was in it; `dict[str, Any]` becomes `dict`."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        optional = len(options) < len(typing.get_args(hint))
        return (options[0] if len(options) == 1 else tuple(options)), optional
    if typing.get_origin(hint) is dict:
        return dict, False
    return hint, False


def type_words(kind: Any) -> str:
    """A type for people: `a whole number`, `true or false`, ..."""
    if isinstance(kind, tuple):
        return " or ".join(type_words(option) for option in kind)
    if typing.get_origin(kind) is list:
        inner = {int: "whole numbers such as [30,60]", str: "texts such as [a,b]"}
        return f"a list of {inner.get(typing.get_args(kind)[0], 'values')}"
    return "a section" if is_dataclass(kind) else _WORDS.get(kind, str(kind))


def _walk(section: Any, prefix: str) -> Iterator[Key]:
    for item in fields(section):
        kind, optional = bare_type(item.type)
        inner = is_dataclass(kind)
        yield Key(
            path=prefix + item.name,
            type=kind,
            optional=optional,
            default=None if inner else _default(item),
            doc=item.metadata["doc"],
            unit=item.metadata["unit"],
            low=item.metadata["low"],
            high=item.metadata["high"],
            choices=tuple(item.metadata["choices"]),
            section=inner,
        )
        if inner:
            yield from _walk(kind, f"{prefix}{item.name}.")


def _default(item: Field[Any]) -> Any:
    if item.default is not MISSING:
        return item.default
    return item.default_factory() if item.default_factory is not MISSING else None


def _number(value: float) -> str:
    return f"{int(value)}" if float(value).is_integer() else f"{value:g}"
