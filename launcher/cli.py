"""The `paceline` command: finds the verb, and says what is wrong in a few lines. No torch, no Hydra, no rich."""

import difflib
import importlib
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from launcher.arguments import as_overrides, typed
from launcher.scripts import FOR_PROGRAMS, behind_dashes, is_script, starts_python
from launcher.streams import complete, outlive_readers, take_any_name
from trainer.errors import ConfigError, PacelineError, UnfitError
from trainer.wording import command


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb of the command.

    Attributes:
        summary: what it does, for `paceline --help`; at most 50 characters.
        aliases: words that people try for it.
        starts: whether it starts something, so that after an error it is worth saying that nothing was started.
        module: the file under `launcher.verbs`, by default called like the verb.
        takes: `overrides` where its words are those; else empty.
        runs: how many runs it takes.
    """

    summary: str
    aliases: tuple[str, ...] = ()
    starts: bool = False
    module: str = ""
    takes: str = ""
    runs: int = 0


VERBS = {
    "run": Verb(
        "train on this machine",
        ("start", "train", "launch", "go", "fit", "exec"),
        starts=True,
        takes="overrides",
    ),
    "submit": Verb("queue a training on Slurm", ("queue", "sbatch", "batch", "srun"), starts=True, takes="overrides"),
    "status": Verb(
        "all runs, or one: state, step, rate, ETA",
        ("ps", "ls", "list", "runs", "jobs", "top", "watch", "info", "history"),
        runs=1,
    ),
    "logs": Verb("what a rank has printed", ("log", "tail", "output", "cat", "less", "follow", "attach"), runs=1),
    "stop": Verb("ask a run to end; a training saves first", ("kill", "cancel", "end", "scancel", "abort"), runs=1),
    "diff": Verb("the first step at which two runs part", ("compare", "cmp", "versus"), runs=2),
    "replay": Verb("do some steps again, and compare", ("redo", "reproduce", "rerun"), runs=1),
    "doctor": Verb(
        "what is wrong with this machine, or with a disk",
        ("check", "env", "diagnose", "health"),
        takes="overrides",
    ),
    "config": Verb("look at the configuration", ("conf", "cfg", "settings", "show")),
    "completion": Verb("the tab key, for bash, zsh and fish", ("complete", "completions", "autocomplete")),
}
"""The commands."""

_RESUME = ("resume", "continue", "restart")
_MODULES = {
    ("evaluate", "eval", "test", "validate", "val", "score"): ("trainer.evaluate", "RUN"),
    ("order", "samples"): ("trainer.data.order", "RUN", "--step", "STEP"),
}
"""What people try as a command that is one of the trainer's modules."""

_NAMES = "\n".join(f"  {name:<12}{verb.summary}" for name, verb in VERBS.items())
HELP = f"""\
Train on every GPU of this machine.

  paceline run recipe=fashion_mnist              train a recipe
  paceline run recipe=finetune data.root=/imgs   your images, a folder per class
  paceline run run.name=X ...                    again: goes on where X stopped
  paceline run -- train.py --lr 0.1              launch any script of your own
  paceline config explain optim.lr               what a key means

{_NAMES}

  paceline VERB --help    --version

Exit codes: 0 done, 1 the training failed, 2 wrong arguments, 3 unfit machine,
75 stopped with a checkpoint (run it again), 124 hung, 128+N ended by signal N."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line; returns its exit code."""
    complete()
    outlive_readers()
    take_any_name()
    arguments = list(sys.argv[1:] if argv is None else argv)
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    try:
        code = _dispatch(arguments)
        # What it cannot take is to be told here, and not by Python's own end.
        sys.stdout.flush()
        return code
    except PacelineError as error:
        return _tell(error, arguments, debug="--debug" in ours)
    except BrokenPipeError:
        # The reader of our output (`| head`) has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:
        if isinstance(error, PermissionError) and error.filename is not None:
            problem = f"{os.fsdecode(error.filename)}: no permission to use it"
            return _tell(UnfitError(problem, "is it another user's?"), arguments, debug="--debug" in ours)
        if error.filename is not None or _takes_more(sys.stdout):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        print(f"error: cannot write to standard output: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _tell(error: PacelineError, arguments: list[str], *, debug: bool) -> int:
    """Says what is wrong, and what to type; returns the exit code."""
    if debug:
        traceback.print_exc()
    verb = VERBS.get(arguments[0]) if arguments else None
    started = "\nnothing was started" if verb is None or verb.starts else ""
    mended = error.mended(arguments)
    text = f"{error.problem}\n  {typed(*mended)}" if mended else str(error)
    print(f"error: {text}{started}", file=sys.stderr)
    return error.exit_code


def _takes_more(stream: TextIO) -> bool:
    """Whether a stream takes an empty line."""
    try:
        os.write(stream.fileno(), b"\n")
    except OSError:
        return False
    return True


def _dispatch(arguments: list[str]) -> int:
    name = arguments[0] if arguments else "--help"
    if name in ("--help", "-h", "help"):
        print(HELP)
        return 0
    if name in ("--version", "-V", "version"):
        print(f"paceline {_version()}")
        return 0
    if name not in VERBS:
        raise _unknown(name, arguments[1:])
    try:
        os.getcwd()  # noqa: PTH109  # pathlib takes 10 ms
    except FileNotFoundError as error:
        raise ConfigError("the current directory has been deleted", "cd to another one") from error
    verb = importlib.import_module(f"launcher.verbs.{VERBS[name].module or name}")
    return int(verb.main(arguments[1:]))


def _unknown(name: str, rest: list[str]) -> ConfigError:
    """The error for a command that is none, with the one that was probably meant."""
    problem = f"unknown command {name!r}"
    if (is_script(name) or starts_python(name)) and (words := behind_dashes([name, *rest])):
        return ConfigError(f"{problem}. Did you mean run?", typed("run", *words))
    if name.startswith("-") and (overrides := as_overrides([name, *rest])):
        return ConfigError(f"{problem}: keys are set without dashes", typed("run", *overrides))
    if "=" in name:
        return ConfigError(f"{problem}. Did you mean run {name}?", typed("run", name, *rest))
    word = name.lower()
    if word in _RESUME:
        return _resuming(problem, rest)
    for aliases, (module, *example) in _MODULES.items():
        if word in aliases:
            what = shlex.join([command("python"), "-m", module, *(rest or example)])
            return ConfigError(f"{problem}. Did you mean python -m {module}?", what)
    meant = next((verb for verb in VERBS if word in VERBS[verb].aliases), None)
    meant = meant or next(iter(difflib.get_close_matches(word, VERBS, n=1)), None)
    if meant is None:
        return ConfigError(problem, f"{typed('--help')} lists them")
    if meant == "run" and len(rest) == 1 and _is_run(rest[0]):
        return _resuming(problem, rest)
    if meant == "run" and "--" not in rest:
        rest = behind_dashes(rest) or rest
        rest = as_overrides(rest) or rest
    return ConfigError(f"{problem}. Did you mean {meant}?", typed(meant, *rest))


def _resuming(problem: str, rest: list[str]) -> ConfigError:
    """The error with the command that goes on with the run that is named, as it was begun."""
    from launcher import runs
    from trainer.run import runname
    from trainer.rundir import RunDir

    problem = f"{problem}: running a run again goes on from its last checkpoint"
    if not rest:
        return ConfigError(problem, f"{typed('status')} lists the runs, and how each goes on")
    name, *more = rest
    run = RunDir(runname.find(name.removeprefix("run.name=")))
    words = runs.again(run)
    if words is None and (overrides := runs.again_by_trainer(run)):
        return ConfigError(problem, shlex.join([command("python"), "-m", "trainer", *overrides, *more]))
    if words is None:
        return ConfigError(problem, f"the command that began {run.name}, again, with run.name={run.name}")
    own = words.index("--") if "--" in words else len(words)
    # What does not matter to every program is for the script.
    its = [word for word in more if own < len(words) and not word.startswith(FOR_PROGRAMS)]
    ours = [word for word in more if word not in its]
    return ConfigError(problem, typed("run", *words[:own], *ours, *words[own:], *its))


def _is_run(word: str) -> bool:
    from trainer.run.runname import is_run

    return "=" not in word and is_run(Path("runs", word))


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("paceline")
    except metadata.PackageNotFoundError:
        return "of a checkout that is not installed"
