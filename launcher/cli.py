"""The `paceline` command: its verbs, its help, and the way it says what is wrong. No torch, no Hydra."""

import argparse
import difflib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from trainer.errors import ConfigError, PacelineError

if TYPE_CHECKING:
    from launcher.plan import Program

HELP = """\
Train on every GPU of this machine.

  paceline run recipe=fashion_mnist              train a recipe
  paceline run recipe=finetune data.root=/imgs   your images, a folder per class
  paceline run recipe=fashion_mnist --dry-run    show what would be started
  paceline run run.name=X ...                    again: goes on where X stopped
  paceline run -- train.py --lr 0.1              launch any script of your own
  paceline config show recipe=fashion_mnist      every value, and who set it
  paceline config explain optim.lr               what a key means
  paceline config diff A B                       what differs between two runs

  run     train on this machine        paceline run --help
  config  look at the configuration    paceline config --help

  --version  --help

Exit codes: 0 done, 1 the training failed, 2 wrong arguments, 3 unfit machine,
75 stopped with a checkpoint (run it again), 128+N ended by signal N."""

RUN_HELP = """\
paceline run [KEY=VALUE ...] [--dry-run] [--config-dir DIR] [--debug] [-- PROGRAM]

  paceline run recipe=fashion_mnist epochs=2 optim.lr=0.05
  paceline run cluster.gpus_per_node=4 -- train.py --lr 1     your own script
  paceline run cluster.gpus_per_node=4 -- -m package.train    your own module

One worker on every GPU, or two on a machine without one. `paceline config` lists the keys.
The same run.name again goes on from the last checkpoint; run.fresh=true starts over beside it.

  --dry-run         print workers, command and environment; start nothing, write nothing
  --config-dir DIR  more configuration groups (DIR/recipe/mine.yaml, ...)
  --debug           show tracebacks and torch's own messages"""

CONFIG_HELP = """\
paceline config show [KEY=VALUE ...]        every value, and who set it
paceline config explain KEY [KEY=VALUE ...] its value, type, range, meaning and origin
paceline config diff A B                    what differs; A and B are run directories or config files
paceline config GROUP                       what a group offers (data, model, recipe), or keys (optim)

  --json            for programs
  --config-dir DIR  more configuration groups"""

ALIASES = {
    "run": ("start", "train", "launch", "go", "fit", "exec"),
    "config": ("conf", "cfg", "settings", "show"),
}
"""Words that people try, by the verb they mean."""

CONFIG_TOPICS = ("show", "explain", "diff")
"""What `paceline config` does besides listing keys."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    try:
        return _dispatch(arguments)
    except PacelineError as error:
        if "--debug" in ours:
            traceback.print_exc()
        started = "" if arguments and arguments[0] == "config" else "\nnothing was started"
        print(f"error: {error}{started}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output (`| head`) has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except KeyboardInterrupt:
        return 130


def _dispatch(arguments: list[str]) -> int:
    verb = arguments[0] if arguments else "--help"
    if verb in ("--help", "-h", "help"):
        print(HELP)
        return 0
    if verb in ("--version", "-V", "version"):
        print(f"paceline {_version()}")
        return 0
    if verb not in VERBS:
        raise ConfigError(f"unknown command {verb!r}{_did_you_mean(verb)}", "paceline --help lists them")
    return VERBS[verb](arguments[1:])


def _did_you_mean(word: str) -> str:
    for verb, aliases in ALIASES.items():
        if word.lower() in aliases:
            return f". Did you mean {verb}?"
    if "=" in word:
        return f". Did you mean run {word}?"
    close = difflib.get_close_matches(word, VERBS, n=1)
    return f". Did you mean {close[0]}?" if close else ""


class _Parser(argparse.ArgumentParser):
    """argparse with our help texts, and errors as ConfigError."""

    def __init__(self, verb: str, text: str, options: Sequence[str]) -> None:
        super().__init__(prog=f"paceline {verb}", add_help=False, allow_abbrev=False)
        self._text = text
        self.add_argument("words", nargs="*")
        self.add_argument("-h", "--help", action="store_true")
        for option in options:
            action = "store" if option == "--config-dir" else "store_true"
            self.add_argument(option, action=action)

    def read(self, arguments: list[str]) -> argparse.Namespace:
        """Options and words in any order.

        Raises:
            ConfigError: an unknown option.
        """
        found, unknown = self.parse_known_intermixed_args(arguments)
        if unknown:
            known = [name for action in self._actions for name in action.option_strings]
            close = difflib.get_close_matches(unknown[0], known, n=1)
            hint = f". Did you mean {close[0]}?" if close else ""
            raise ConfigError(f"unknown option {unknown[0]}{hint}", f"{self.prog} --help lists them")
        return found

    def print_text(self) -> int:
        """Prints the help; returns exit code 0."""
        print(self._text)
        return 0

    def error(self, message: str) -> NoReturn:
        """Raises what argparse would print."""
        raise ConfigError(message, f"{self.prog} --help")


def _run(arguments: list[str]) -> int:
    parser = _Parser("run", RUN_HELP, ["--dry-run", "--debug", "--config-dir"])
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.read(arguments[:cut])
    if options.help:
        return parser.print_text()
    _check_overrides(options.words)

    from launcher import local
    from launcher.cpus import count_cpus
    from launcher.gpus import count_gpus
    from launcher.plan import again_command, plan_job, render
    from trainer import runname
    from trainer.config.compose import compose
    from trainer.config.validate import validate
    from trainer.rundir import RunDir
    from trainer.wording import short_path

    program = _program(arguments[cut + 1 :])
    config = compose(options.words, config_dir=_directory(options))
    plan = plan_job(
        config,
        program=program,
        overrides=_given(options),
        gpus=count_gpus(),
        cpus=count_cpus(),
        environment=os.environ,
        debug=options.debug,
    )
    ours = program.kind == "trainer"
    notes = validate(config, world_size=plan.world_size) if ours else []
    recipe = (config.recipe or config.model.name) if ours else program.stem
    if options.dry_run:
        path = runname.choose(config.run, recipe)
        local.check_agreement(plan, config, path)
        plan = replace(plan, run_dir=str(path), attempt=RunDir(path).next_attempt())
        print(render(replace(plan, again=again_command(plan, path.name)), notes))
        return 0
    plan = local.prepare(plan, config, recipe=recipe, argv=["paceline", "run", *arguments])
    for note in notes:
        print(note, file=sys.stderr)
    attempt = f", attempt {plan.attempt}" if plan.attempt else ""
    print(f"{plan.world_size} workers, run directory {short_path(Path(plan.run_dir))}{attempt}", file=sys.stderr)
    return local.run(plan)


def _program(words: list[str]) -> "Program":
    from launcher.plan import Program

    if not words:
        return Program("trainer", "trainer")
    if words[0] == "-m":
        if len(words) < 2:
            raise ConfigError("-m needs the name of a module", "paceline run -- -m package.module arguments")
        return Program("module", words[1], tuple(words[2:]))
    if not Path(words[0]).is_file():
        raise ConfigError(f"no such script: {words[0]}", "paceline run -- path/to/script.py arguments")
    return Program("script", words[0], tuple(words[1:]))


def _check_overrides(words: list[str]) -> None:
    for word in words:
        if "=" in word or word.startswith("~"):
            continue
        if word.endswith(".py") or Path(word).is_file():
            raise ConfigError(f"{word!r} is no override", f"a script goes behind --: paceline run -- {word}")
        raise ConfigError(f"{word!r} is no override", "overrides look like key=value, for example epochs=3")


def _directory(options: argparse.Namespace) -> Path | None:
    return Path(options.config_dir) if options.config_dir else None


def _given(options: argparse.Namespace) -> list[str]:
    """The overrides and what they were composed with, to be given again."""
    return ([f"--config-dir={options.config_dir}"] if options.config_dir else []) + list(options.words)


def _config(arguments: list[str]) -> int:
    parser = _Parser("config", CONFIG_HELP, ["--json", "--debug", "--config-dir"])
    options = parser.read(arguments)
    if options.help:
        return parser.print_text()

    from trainer.config import explain

    topic, *words = options.words or [""]
    directory, as_json = _directory(options), options.json
    if topic == "show":
        _check_overrides(words)
        text = explain.show(words, as_json, config_dir=directory)
    elif topic == "explain":
        if not words:
            raise ConfigError("explain needs a key", "paceline config explain optim.lr")
        text = explain.explain(words[0], words[1:], as_json, config_dir=directory)
    elif topic == "diff":
        if len(words) != 2:
            raise ConfigError(f"diff needs two configurations, not {len(words)}", "paceline config diff A B")
        text = explain.diff(words[0], words[1], as_json, config_dir=directory)
    elif words:
        close = difflib.get_close_matches(topic, CONFIG_TOPICS, n=1)
        hint = f". Did you mean {close[0]}?" if close else ""
        raise ConfigError(f"unknown topic {topic!r}{hint}", "paceline config --help lists them")
    else:
        text = explain.listing(topic, as_json, config_dir=directory)
    print(text)
    return 0


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("paceline")
    except metadata.PackageNotFoundError:
        return "of a checkout that is not installed"


VERBS: dict[str, Callable[[list[str]], int]] = {"run": _run, "config": _config}
"""The commands."""
