"""How the verbs read their command lines: options and words in any order, mistakes as errors for people."""

import argparse
import difflib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from launcher.scripts import behind_dashes, is_script
from trainer.errors import ConfigError
from trainer.wording import command

_HYDRAS = {"--multirun": ("-m",), "--cfg": ("-c",), "--config-dir": ("-cd",), "--config-name": ("-cn",)}
"""Options of Hydra, which `python -m trainer` takes, and their short forms."""

_CLOSE = 0.8


class Parser(argparse.ArgumentParser):
    """argparse with our help texts, and errors as ConfigError.

    Args:
        verb: the verb whose arguments are read.
        text: its help.
        flags: options that are on or off.
        values: options with a value, None where they are not given.
        overrides: whether its words are overrides.
    """

    def __init__(
        self,
        verb: str,
        text: str,
        *,
        flags: Sequence[str] = (),
        values: Sequence[str] = (),
        overrides: bool = False,
    ) -> None:
        super().__init__(prog=f"paceline {verb}", add_help=False, allow_abbrev=False)
        self._verb, self._text, self._takes_overrides = verb, text, overrides
        self.add_argument("words", nargs="*")
        self.add_argument("-h", "--help", action="store_true")
        self.add_argument("--debug", action="store_true")
        for option in flags:
            self.add_argument(option, action="store_true")
        for option in values:
            self.add_argument(option)

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Options and words in any order.

        Raises:
            ConfigError: an unknown option.
        """
        found, unknown = self.parse_known_intermixed_args(list(arguments))
        if unknown:
            raise self._unknown(unknown[0], list(arguments))
        return found

    def _unknown(self, option: str, arguments: list[str]) -> ConfigError:
        known = [name for action in self._actions for name in action.option_strings]
        listing, name = f"{command('paceline')} {self._verb} --help lists them", option.partition("=")[0]
        problem = f"unknown option {option}"
        if self._takes_overrides:
            if self._verb == "run" and (words := behind_dashes(arguments)):
                return ConfigError("a script goes behind --", typed(self._verb, *(as_overrides(words, known) or words)))
            for meant, short in _HYDRAS.items():
                if name in (meant, *short):
                    return self._hydras(meant, option, arguments)
            if name == "--resume":
                words = [word for word in arguments if word != option]
                return ConfigError(
                    "no option --resume: the same run.name again goes on from the last checkpoint by itself",
                    typed(self._verb, *words)
                    if any(word.startswith("run.name=") for word in words)
                    else f"{typed('status')} lists the runs, and how each goes on",
                )
        if near := next(iter(difflib.get_close_matches(name, known, n=1, cutoff=_CLOSE)), None):
            meant = near + option.removeprefix(name)
            return ConfigError(f"{problem}. Did you mean {near}?", listing, instead=([option], [meant]))
        if self._takes_overrides and (words := as_overrides(arguments, known)):
            return ConfigError(f"{problem}: keys are set without dashes", typed(self._verb, *words))
        if self._takes_overrides and (key := _key_of(option)):
            explained = typed("config", "explain", key)
            return ConfigError(f"{problem}: keys are set without dashes, and {key} may be meant", explained)
        return ConfigError(problem, listing)

    def _hydras(self, meant: str, option: str, arguments: list[str]) -> ConfigError:
        """The error for an option of Hydra, with the command that does the same."""
        problem = f"{self.prog} has no option {option.partition('=')[0]}"
        at = arguments.index(option)
        before, after = arguments[:at], arguments[at + 1 :]
        value = option.partition("=")[2] or (after[0] if after and "=" not in after[0] else "")
        rest = [*before, *(after[1:] if after and value == after[0] else after)]
        if meant == "--multirun":
            ours = [word for word in [*before, *after] if word not in ("--dry-run", "--debug")]
            return ConfigError(problem, shlex.join([command("python"), "-m", "trainer", "--multirun", *ours]))
        if value and Path(value).is_dir():
            return ConfigError(f"{problem} of that meaning", typed(self._verb, *rest, "--config-dir", value))
        if meant == "--cfg":
            return ConfigError(problem, typed("config", "show", *(word for word in rest if "=" in word)))
        return ConfigError(problem, f"{command('python')} -m trainer --help lists Hydra's options")

    def print_text(self) -> int:
        """Prints the help; returns exit code 0."""
        print(self._text)
        return 0

    def error(self, message: str) -> NoReturn:
        """Raises what argparse would print."""
        raise ConfigError(message, f"{command('paceline')} {self._verb} --help")


def typed(*words: str) -> str:
    """A command line of ours as it is typed here."""
    return shlex.join([command("paceline"), *words])


def did_you_mean(word: str, known: Sequence[str] | dict[str, Any], *, cutoff: float = 0.6) -> str:
    """`. Did you mean X?` where one of the known words is close, else nothing."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=cutoff)
    return f". Did you mean {close[0]}?" if close else ""


def as_overrides(arguments: Sequence[str], known: Sequence[str] = ()) -> list[str] | None:
    """A command line as other trainers take it, `--epochs 3`, in our grammar; None where it cannot be told.

    That is where an option is none of our keys, or its value means something else there, or is missing.

    Args:
        arguments: the command line.
        known: options that it may have.
    """
    from trainer.config.keys import all_keys
    from trainer.config.suggest import means_the_same

    words, found = list(arguments), []
    while words:
        word = words.pop(0)
        if word == "--":
            return [*found, word, *words]
        option, equals, value = word.partition("=")
        if not option.startswith("-") or option in known:
            found.append(word)
            continue
        key = _key_of(option)
        if key is None or not means_the_same(option.lstrip("-")):
            return None
        if not equals:
            takes_next = words and "=" not in words[0] and not words[0].startswith("--") and not is_script(words[0])
            if takes_next:
                value = words.pop(0)
            elif key in all_keys() and all_keys()[key].type is bool:
                value = "true"
            else:
                return None
        found.append(f"{key}={value}")
    return found


def _key_of(option: str) -> str | None:
    """The key that an option of another trainer means; None where there is none with a value."""
    from trainer.config.keys import all_keys
    from trainer.config.suggest import suggest_key

    key = suggest_key(option.partition("=")[0].lstrip("-"))
    if key is not None and key in all_keys() and all_keys()[key].section:
        return f"{key}.name" if f"{key}.name" in all_keys() else None
    return key


def check_overrides(words: Sequence[str]) -> None:
    """Refuses words that are no overrides.

    Raises:
        ConfigError: see above.
    """
    from trainer.config.keys import leaves
    from trainer.config.problems import check_blanks, malformed

    check_blanks(words)
    for at, word in enumerate(words):
        if "=" in word or word.startswith("~"):
            continue
        problem = f"{word!r} is no override"
        if word in leaves():
            fix = f"`{typed('config', 'explain', word)}` shows what it takes"
            follows = at + 1 < len(words) and "=" not in words[at + 1]
            instead = (words[at : at + 2], [f"{word}={words[at + 1]}"]) if follows else None
            raise ConfigError(problem, fix, instead=instead)
        moved = behind_dashes(words) or ([*words[:at], "--", *words[at:]] if Path(word).is_file() else None)
        if moved:
            raise ConfigError(f"{problem}: a script goes behind --", typed("run", *moved))
        if ":" in word:
            raise malformed(word)
        raise ConfigError(problem, "overrides look like key=value, for example epochs=3")
