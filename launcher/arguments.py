"""How the verbs read their command lines: options and words in any order, mistakes as errors for people."""

import argparse
import difflib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from trainer.errors import ConfigError
from trainer.wording import command

_ELSEWHERE = {
    "--multirun": f"{command('python')} -m trainer --multirun KEY=A,B runs one job after the other",
    "--cfg": f"{command('paceline')} config show KEY=VALUE ... shows the configuration",
    "--resume": f"{command('paceline')} run run.name=NAME ... again goes on from the last checkpoint by itself",
}
"""Options of Hydra, which `python -m trainer` takes, and of other trainers."""

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
        self._text, self._takes_overrides = text, overrides
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
            problem = f"unknown option {unknown[0]}"
            if hint := did_you_mean(option, known, cutoff=_CLOSE):
                raise ConfigError(f"{problem}{hint}", f"{self.prog} --help lists them")
            if self._takes_overrides and (words := as_overrides(arguments, known)):
                mended = shlex.join([command("paceline"), *self.prog.split()[1:], *words])
                raise ConfigError(f"{problem}: keys are set without dashes", mended)
            raise ConfigError(problem, f"{self.prog} --help lists them")
        return found

    def print_text(self) -> int:
        """Prints the help; returns exit code 0."""
        print(self._text)
        return 0

    def error(self, message: str) -> NoReturn:
        """Raises what argparse would print."""
        raise ConfigError(message, f"{self.prog} --help")


def did_you_mean(word: str, known: Sequence[str] | dict[str, Any], *, cutoff: float = 0.6) -> str:
    """`. Did you mean X?` where one of the known words is close, else nothing."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=cutoff)
    return f". Did you mean {close[0]}?" if close else ""


def as_overrides(arguments: Sequence[str], known: Sequence[str] = ()) -> list[str] | None:
    """A command line as other trainers take it, `--epochs 3`, in our grammar; None where an option is none of our keys.

    Args:
        arguments: the command line.
        known: options that it may have.
    """
    from trainer.config.keys import all_keys
    from trainer.config.suggest import suggest_key

    words, found = list(arguments), []
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if not word.startswith("--") or name in known:
            found.append(word)
            continue
        key = suggest_key(name.removeprefix("--"))
        if key is not None and key in all_keys() and all_keys()[key].section:
            key = f"{key}.name" if f"{key}.name" in all_keys() else None
        if key is None:
            return None
        if not equals:
            value = words.pop(0) if words and "=" not in words[0] and not words[0].startswith("--") else "VALUE"
        found.append(f"{key}={value}")
    return found


def check_overrides(words: Sequence[str]) -> None:
    """Refuses words that are no overrides.

    Raises:
        ConfigError: see above.
    """
    from trainer.config.keys import leaves
    from trainer.config.problems import check_blanks

    check_blanks(words)
    for word, following in zip(words, [*words, "VALUE"][1:], strict=True):
        if "=" in word or word.startswith("~"):
            continue
        if word in leaves():
            raise ConfigError(f"{word!r} is no override", f"{word}={following}")
        if word.endswith(".py") or Path(word).is_file():
            raise ConfigError(f"{word!r} is no override", f"a script goes behind --: paceline run -- {word}")
        raise ConfigError(f"{word!r} is no override", "overrides look like key=value, for example epochs=3")
