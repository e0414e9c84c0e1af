"""The words that may stand where the cursor is, from the schema, the configuration files and the runs. No Hydra."""

import importlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from launcher.cli import VERBS
from launcher.completion import overrides, places
from launcher.completion.word import Word

SHELLS = ("bash", "zsh", "fish")
"""The shells whose scripts are there."""

_OPTION = re.compile(r"^  (?:-\w, )?(--?[\w-]+)(?: ([A-Z]+))? {2,}(.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a verb, as its help has it.

    Attributes:
        name: with its dashes.
        takes: what its value is, in one word; empty where it has none.
        text: what it does.
    """

    name: str
    takes: str
    text: str


def options_of(verb: str) -> list[Option]:
    """The options that the help of a verb names, and `--help`."""
    module = importlib.import_module(f"launcher.verbs.{VERBS[verb].module or verb}")
    found = [Option(*match.groups(default="")) for match in _OPTION.finditer(module.HELP)]
    return [*found, Option("--help", "", "what it does, with examples")]


def candidates(words: Sequence[str]) -> list[Word]:
    """What may stand at the cursor.

    Args:
        words: the command line up to the cursor, without the command; the last one, maybe empty, is being written.
    """
    *before, current = words or [""]
    return [word for word in _offered(before, current) if word.text.startswith(current)]


def _offered(before: Sequence[str], current: str) -> Iterable[Word]:
    if not before:
        names = [Word("--help", "what there is"), Word("--version")] if current.startswith("-") else []
        return [*names, *(Word(name, verb.summary) for name, verb in VERBS.items())]
    verb, *given = before
    if verb not in VERBS:
        return []
    if "--" in given:
        return _program(given[given.index("--") + 1 :], current)
    options = options_of(verb)
    valued = {option.name: option for option in options if option.takes}
    option, equals, value = current.partition("=")
    if equals and option in valued:
        return (word.after(f"{option}=") for word in _values(valued[option], given, value))
    if given and given[-1] in valued:
        return _values(valued[given[-1]], given, current)
    if current.startswith("-"):
        return (Word(option.name, option.text) for option in options)
    given = _without(given, valued)
    return _positional(verb, given, current)


def _without(given: Sequence[str], valued: Iterable[str]) -> list[str]:
    """The words that are no option's value, and the options' own where a place may be named by one."""
    left, kept = list(given), []
    while left:
        word = left.pop(0)
        if word in valued and left:
            kept.append(f"{word}={left.pop(0)}")
        else:
            kept.append(word)
    return kept


def _positional(verb: str, given: Sequence[str], current: str) -> Iterable[Word]:
    plain = [word for word in given if not word.startswith("-")]
    takes = VERBS[verb].takes
    if verb == "config":
        return _config(plain, given, current)
    if verb == "completion":
        return () if plain else map(Word, SHELLS)
    if takes == "overrides":
        return overrides.offered(given, current)
    runs = VERBS[verb].runs
    return places.runs(given, current, live=verb == "stop") if len(plain) < runs else ()


def _config(plain: Sequence[str], given: Sequence[str], current: str) -> Iterator[Word]:
    from launcher.verbs.config import TOPICS
    from trainer.config.keys import leaves
    from trainer.config.names import group_names

    if not plain:
        yield from map(Word, [*TOPICS, *group_names(overrides.config_dir(given))])
    elif plain[0] == "explain" and len(plain) == 1:
        yield from (Word(path, key.doc) for path, key in leaves().items())
    elif plain[0] in ("show", "explain"):
        if plain == ["show"]:
            yield from places.runs(given, current)
        yield from overrides.offered(given, current)
    elif plain[0] == "diff" and len(plain) < 3:
        yield from places.runs(given, current)
        yield from places.paths(current, suffixes=(".yaml",))


def _program(program: Sequence[str], current: str) -> Iterator[Word]:
    if not program:
        yield Word("-m", "a module")
        yield from places.paths(current, suffixes=(".py",))
    elif program != ["-m"]:
        yield from places.paths(current)


def _values(option: Option, given: Sequence[str], current: str) -> Iterable[Word]:
    """What an option's value may be."""
    if option.takes == "DIR":
        return places.paths(current, suffixes=None)
    return places.logged(given, option.name)
