"""The command line of an evaluation, read and checked without torch."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.check.validate import validate
from trainer.config import Config
from trainer.config.overrides import with_overrides
from trainer.config.suggest import closest, did_you_mean
from trainer.data.scan import folders_in, layout
from trainer.errors import ConfigError, UnfitError
from trainer.run import history, runname
from trainer.rundir import RunDir
from trainer.wording import command

WEIGHTS = ("best", "last", "last_ema")
"""The weights that a run keeps, by name."""

_MATTERS = ("data", "device", "precision", "deterministic", "distributed", "evaluate.batch_size", "model.weights")
_OPTIONS = ("--json", "--help")


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be evaluated.

    Attributes:
        run: the run directory.
        config: the run's configuration with the overrides.
        weights: the file.
        label: `best`, `last` or `last_ema`, or the file's path as it was given.
        overrides: as they were given.
        as_json: print JSON instead of tables.
    """

    run: RunDir
    config: Config
    weights: Path
    label: str
    overrides: tuple[str, ...]
    as_json: bool


def read(arguments: Sequence[str]) -> Request:
    """Reads `RUN [weights=NAME] [KEY=VALUE ...] [--json]`, in any order.

    Raises:
        ConfigError: no such run, weights, key, value or option.
        UnfitError: the run has no weights yet.
    """
    options = [text for text in arguments if text.startswith("-")]
    for option in options:
        if option not in _OPTIONS:
            near = closest(option, _OPTIONS)
            raise ConfigError(
                f"unknown option {option}",
                did_you_mean(option, _OPTIONS),
                instead=([option], [near]) if near else None,
            )
    words = [text for text in arguments if "=" not in text and text not in options]
    if len(words) != 1:
        problem = f"one run at a time, got {' and '.join(words)}" if words else "no run is named"
        raise ConfigError(problem, f"{command('python')} -m trainer.evaluate RUN")
    run = RunDir(runname.find(words[0]))
    label, overrides, given = "best", [], set[str]()
    for text in arguments:
        key, _, value = text.partition("=")
        if key == "weights":
            label = value
        elif "=" in text and text not in options:
            overrides.append(text)
            given.add(key)
    # Of the last attempt: the data may have moved since the first one.
    config = with_overrides(history.latest_config(run), overrides, may=_MATTERS, purpose="an evaluation")
    validate(config if "model.weights" in given else _without_first_weights(config), world_size=1)
    _glance_at_classes(run, config)
    return Request(run, config, find_weights(run, label), label, tuple(overrides), "--json" in options)


def check_classes(run: RunDir, classes: list[str]) -> None:
    """Refuses data whose classes are not those that the run has learned.

    Raises:
        ConfigError: they differ in number, names or order.
    """
    if not run.classes.exists():
        return
    learned = json.loads(run.classes.read_text())
    if learned == classes:
        return
    unknown = [name for name in classes if name not in learned]
    missing = [name for name in learned if name not in classes]
    differences = [f"{name!r} was not learned" for name in unknown] + [f"{name!r} is missing" for name in missing]
    shown = ", ".join(differences[:4]) + (", ..." if len(differences) > 4 else "") or "they have another order"
    raise ConfigError(
        f"the classes of the data are not those of run {run.name}: {shown}",
        f"data.root=DIR with the run's {len(learned)} classes, which {run.classes} lists",
    )


def _without_first_weights(config: Config) -> Config:
    """A run's own are evaluated: those that it began with need not be there any more."""
    return replace(config, model=replace(config.model, weights=None))


def _glance_at_classes(run: RunDir, config: Config) -> None:
    """Refuses a folder none of whose classes has been learned, before a single image of it is looked at.

    Raises:
        ConfigError: see above.
        UnfitError: it cannot be read.
    """
    data = config.data
    if data._target_ is not None or data.name != "folder" or not data.root or not run.classes.exists():
        return
    names = [folder.name for folder in folders_in(layout(Path(data.root).expanduser()).train)]
    if names and not set(names) & set(json.loads(run.classes.read_text())):
        check_classes(run, names)


def find_weights(run: RunDir, label: str) -> Path:
    """The file of a run's weights by name, or a file anywhere.

    Raises:
        ConfigError: no such file, or one that is not safetensors.
        UnfitError: the run has no weights yet.
    """
    if label in WEIGHTS:
        if run.weights(label).is_file():
            return run.weights(label)
        there = [name for name in WEIGHTS if run.weights(name).is_file()]
        if there:
            raise ConfigError(f"run {run.name} has no {label} weights", f"weights={there[0]}")
        raise UnfitError(
            f"run {run.name} has no weights yet",
            "they come with its first evaluation and its first checkpoint: let it train until then",
        )
    path = Path(label).expanduser()
    if path.suffix != ".safetensors":
        offer = did_you_mean(label, WEIGHTS, prefix="weights=")
        raise ConfigError(f"weights={label} is neither a name nor a .safetensors file", offer)
    if not path.is_file():
        raise ConfigError(f"weights={label} does not exist", "give a .safetensors file, or weights=best")
    return path
