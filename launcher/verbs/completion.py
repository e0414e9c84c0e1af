"""`paceline completion`: the script with which a shell completes our command lines."""

import difflib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.arguments import Parser, did_you_mean, typed
from trainer.errors import ConfigError

HELP = """\
paceline completion bash|zsh|fish

  eval "$(paceline completion bash)"     in ~/.bashrc
  eval "$(paceline completion zsh)"      in ~/.zshrc
  paceline completion fish | source      in ~/.config/fish/config.fish

Prints a script with which the tab key completes commands, options, recipes,
groups, keys, values, runs and paths. Give the whole path of paceline there if
PATH does not find it in a new shell."""


def main(arguments: Sequence[str]) -> int:
    """Prints the script, or what may stand at a cursor; returns the exit code."""
    from launcher.completion.candidates import SHELLS

    if arguments[:1] == ["reply"] and len(arguments) > 1:
        from launcher.completion.reply import reply

        print("".join(f"{line}\n" for line in reply(arguments[1], arguments[2:])), end="")
        return 0
    parser = Parser("completion", HELP)
    options = parser.read(arguments)
    if options.help:
        return parser.print_text()
    if len(options.words) != 1:
        raise ConfigError("completion takes one shell", typed("completion", "bash"))
    (shell,) = options.words
    if shell not in SHELLS:
        near = next(iter(difflib.get_close_matches(shell, SHELLS, n=1)), None)
        raise ConfigError(
            f"no completion for {shell!r}{did_you_mean(shell, SHELLS)}",
            f"{typed('completion', '--help')} lists the shells",
            instead=([shell], [near]) if near else None,
        )
    script = Path(__file__).parents[1].joinpath("completion", f"paceline.{shell}").read_text()
    print(script.replace("@PROGRAM@", shlex.quote(str(_program()))), end="")
    return 0


def _program() -> Path:
    """The command that prints this, for a shell in which what is typed cannot be found."""
    typed_as = Path(sys.argv[0])
    return typed_as.absolute() if typed_as.name == "paceline" else Path(sys.executable).with_name("paceline")
