"""How the verbs read their command lines: options and words in any order, mistakes as errors for people."""

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from trainer.errors import ConfigError
from trainer.wording import command

_ELSEWHERE = {
    "--multirun": f"{command('python')} -m trainer --multirun KEY=A,B runs one job after the other",
    "--cfg": f"{command('paceline')} config show KEY=VALUE ... shows the configuration",
}
"""Hydra's own options, which `python -m trainer` takes."""


class Parser(argparse.ArgumentParser):
    """argparse with our help texts, and errors as ConfigError.

    Args:
        verb: the verb whose arguments are read.
        text: its help.
        flags: options that are on or off.
        values: options with a value, None where they are not given.
    """

    def __init__(self, verb: str, text: str, *, flags: Sequence[str] = (), values: Sequence[str] = ()) -> None:
        super().__init__(prog=f"paceline {verb}", add_help=False, allow_abbrev=False)
        self._text = text
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
            known = [name for action in self._actions for name in action.option_strings]
            option = unknown[0].partition("=")[0]
            if option in _ELSEWHERE:
                raise ConfigError(f"{self.prog} has no option {option}", _ELSEWHERE[option])
            hint = did_you_mean(unknown[0], known)
            raise ConfigError(f"unknown option {unknown[0]}{hint}", f"{self.prog} --help lists them")
        return found

    def print_text(self) -> int:
        """Prints the help; returns exit code 0."""
        print(self._text)
        return 0

    def error(self, message: str) -> NoReturn:
        """Raises what argparse would print."""
        raise ConfigError(message, f"{self.prog} --help")


def did_you_mean(word: str, known: Sequence[str] | dict[str, Any]) -> str:
    """`. Did you mean X?` where one of the known words is close, else nothing."""
    close = difflib.get_close_matches(word, known, n=1)
    return f". Did you mean {close[0]}?" if close else ""


def check_overrides(words: Sequence[str]) -> None:
    """Refuses words that are no overrides.

    Raises:
        ConfigError: see above.
    """
    for word in words:
        if "=" in word or word.startswith("~"):
            continue
        if word.endswith(".py") or Path(word).is_file():
            raise ConfigError(f"{word!r} is no override", f"a script goes behind --: paceline run -- {word}")
        raise ConfigError(f"{word!r} is no override", "overrides look like key=value, for example epochs=3")
