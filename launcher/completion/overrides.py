"""`key=value` at the cursor: keys section by section, groups, and what a key takes."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from launcher.completion import places
from launcher.completion.word import Word
from trainer.config import names
from trainer.config.keys import all_keys

FOLDERS = ("data.root", "run.dir")
"""The keys that take a folder."""

_NAMED = ("data", "model", "optim")


def offered(given: Sequence[str], current: str) -> Iterator[Word]:
    """The overrides that `current` may become.

    Args:
        given: the words before.
        current: the word at the cursor.
    """
    plain = current.lstrip("+~")
    lead = current.removesuffix(plain)
    key, equals, value = plain.partition("=")
    if equals:
        yield from (word.after(f"{lead}{key}=") for word in _values(key, given, value))
        return
    for word in _keys(plain, config_dir(given)):
        if not any(other.lstrip("+").startswith(word.text) for other in given if word.text.endswith("=")):
            yield word.after(lead)


def config_dir(given: Sequence[str]) -> Path | None:
    """Where the user's own configurations lie, as far as the command line says it."""
    named = (word.partition("=")[2] for word in given if word.startswith("--config-dir="))
    return next((Path(name) for name in named if Path(name).is_dir()), None)


def _keys(start: str, own: Path | None) -> Iterator[Word]:
    """Groups and keys; of the sections only the one that is being written is opened."""
    section = start.rpartition(".")[0]
    groups = names.group_names(own) if not section else []
    yield from (Word(f"{group}=", "a group of settings") for group in groups)
    for path, key in all_keys().items():
        if path.rpartition(".")[0] == section and (path not in groups or key.section):
            opens = key.section or key.type is dict
            yield Word(f"{path}." if opens else f"{path}=", key.doc)


def _values(key: str, given: Sequence[str], value: str) -> Iterable[Word]:
    """What a group or a key takes; nothing where that is any number or text."""
    own = config_dir(given)
    if key in names.group_names(own):
        return map(Word, names.group_options(key, own))
    if key == "run.name":
        return places.runs(given, value)
    if key in FOLDERS:
        return places.paths(value, suffixes=None)
    if key == "model.weights":
        return _weights(given, value)
    known = all_keys().get(key)
    if known is None:
        return ()
    section, _, name = key.rpartition(".")
    if name == "name" and section in _NAMED:
        return map(Word, names.named(section))
    words = ["true", "false"] if known.type is bool else list(known.choices)
    return map(Word, [*words, "null"] if known.optional else words)


def _weights(given: Sequence[str], value: str) -> Iterator[Word]:
    """Names of weights of the model that is given, and files."""
    model = next((word.partition("=")[2] for word in given if word.startswith(("model.name=", "model="))), "")
    yield from map(Word, [*names.weights_names(model), "null"])
    yield from places.paths(value, suffixes=(".safetensors", ".pth", ".pt"))
