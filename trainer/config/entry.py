"""The entry of `python -m trainer`: overrides alone take the short way, options take Hydra's own."""

import os
import shlex
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.config.compose import (
    compose,
    directory,
    is_hydras,
    parse,
    register_schema,
    rewrite,
    translated,
    version_base,
)
from trainer.config.keys import is_known
from trainer.config.names import config_root
from trainer.config.schema import Config
from trainer.config.suggest import means_the_same, suggest_key
from trainer.errors import STOPPED, ConfigError, PacelineError
from trainer.wording import command

if TYPE_CHECKING:
    from omegaconf import DictConfig

Task = Callable[[Config], int]


def run(argv: Sequence[str], task: Task) -> int:
    """Composes the configuration that the arguments ask for and runs the task on it.

    With overrides alone this is one composition and one call. With an option (`--cfg job`, `--help`,
    `--multirun`, `--config-dir`, ...) or an override of Hydra's own keys, `hydra.main` does what its users
    know; `--multirun` calls the task once for each job.

    Args:
        argv: the command line without the program.
        task: takes the configuration and returns an exit code.

    Returns:
        The task's exit code, of a sweep the worst one; 2 after two lines on stderr about a wrong argument.
    """
    try:
        if any(text.startswith("-") or is_hydras(text) for text in argv):
            return _run_hydra(list(argv), task)
        config = compose(argv)
    except PacelineError as error:
        return tell(error, argv)
    return task(config)


def worst(codes: Sequence[int]) -> int:
    """The exit code of several jobs: a failure before a stop on request before success."""
    return max(codes, key=lambda code: (code != 0, code != STOPPED, code), default=0)


def tell(error: PacelineError, words: Sequence[str] = (), *, module: str = "trainer") -> int:
    """Prints an error that every rank finds, once; returns its exit code.

    Args:
        error: the error.
        words: the command line of `python -m MODULE`, to be shown as it works where the error knows that.
        module: its name.
    """
    # Under torchrun all ranks find the same mistake; one of them is enough to tell it.
    if os.environ.get("RANK", "0") == "0":
        # Who started several knows how.
        mended = error.mended(words) if words and "RANK" not in os.environ else None
        command_line = shlex.join([command("python"), "-m", module, *mended]) if mended else ""
        print(f"error: {error.problem}\n  {command_line}" if mended else f"error: {error}", file=sys.stderr)
    return error.exit_code


class _Jobs:
    """What Hydra calls once for each job; keeps the exit codes and what a job raised."""

    def __init__(self, task: Task, *, options: Any, sweeps_name: bool) -> None:
        self.task = task
        self.config_dir = Path(options.config_dir) if options.config_dir else None
        self.config_name = options.config_name or "config"
        self.sweeps_name = sweeps_name
        self.codes: list[int] = []
        self.raised: BaseException | None = None

    def __call__(self, _: "DictConfig") -> int:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        if worst(self.codes) == STOPPED or any(code > 128 for code in self.codes):
            return self.codes[-1]
        hydra = HydraConfig.get()
        overrides = list(hydra.overrides.task)
        # Composed anew, so that a job of a sweep gets what the same overrides would get by themselves.
        config = compose(overrides, config_dir=self.config_dir, config_name=self.config_name)
        if hydra.mode == RunMode.MULTIRUN:
            config = self._job(config, number=int(hydra.job.num), overrides=overrides)
        try:
            code = self.task(config)
        except BaseException as error:
            self.raised = error
            raise
        self.codes.append(code)
        return code

    def _job(self, config: Config, *, number: int, overrides: list[str]) -> Config:
        if os.environ.get("RANK", "0") == "0":
            print(f"job {number} of the sweep: {' '.join(overrides)}", file=sys.stderr)
        if config.run.name is None or self.sweeps_name:
            return config
        return replace(config, run=replace(config.run, name=f"{config.run.name}-{number}"))


def _run_hydra(argv: list[str], task: Task) -> int:
    import hydra
    from hydra._internal.utils import get_args_parser

    options, argv = _arguments(get_args_parser(), argv)
    jobs = _Jobs(task, options=options, sweeps_name=_sweeps_name(options.overrides))
    register_schema()
    main = hydra.main(config_path=str(config_root()), config_name="config", **version_base())(jobs.__call__)
    with _hydras_view(argv):
        try:
            with translated(options.overrides):
                main()
        except SystemExit as ended:
            return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except ConfigError as error:
            # A ValueError of the task is its own, however much it looks like one of Hydra's.
            if jobs.raised is not None and error.__cause__ is jobs.raised:
                raise jobs.raised from None
            raise
    return worst(jobs.codes)


def _arguments(parser: ArgumentParser, argv: list[str]) -> tuple[Any, list[str]]:
    """Hydra's options as parsed, and the command line with our overrides rewritten behind the options."""
    options, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        raise _unknown_option(unknown[0], argv)
    if options.shell_completion or options.hydra_help:
        return options, argv
    config_dir = directory(Path(options.config_dir)) if options.config_dir else None
    texts = rewrite(options.overrides, config_dir=config_dir, sweep=bool(options.multirun))
    flags = list(argv)
    for text in options.overrides:
        flags.remove(text)
    return options, [*flags, *(text for group in texts for text in group)]


def _unknown_option(text: str, argv: Sequence[str]) -> ConfigError:
    name, equals, value = text.lstrip("-").partition("=")
    key = name if is_known(name) else suggest_key(name)
    if key is None:
        return ConfigError(f"unknown option {text}", f"{command('python')} -m trainer --help")
    written = [text]
    following = argv[argv.index(text) + 1 :]
    if not equals and following and "=" not in following[0] and not following[0].startswith("--"):
        value = following[0]
        written.append(value)
    override = f"{key}={value or 'VALUE'}"
    instead = (written, [override]) if value and means_the_same(name) else None
    return ConfigError(f"unknown option {text}", f"keys are set without dashes: {override}", instead=instead)


def _sweeps_name(overrides: Sequence[str]) -> bool:
    """Whether the jobs of a sweep get different run names from the overrides themselves."""
    names = [text for text in overrides if text.lstrip("+").startswith("run.name=")]
    return any("$" in text or parse(text).is_sweep_override() for text in names)


@contextmanager
def _hydras_view(argv: list[str]) -> Iterator[None]:
    """The process as `hydra.main` wants it: its command line, and exceptions handed on instead of printed."""
    before, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = ["trainer", *argv]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = before
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error
