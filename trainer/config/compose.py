"""Composition: overrides in Hydra's grammar -> one typed configuration, or an error of two lines."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.config import problems
from trainer.config.keys import is_known
from trainer.config.names import config_root, group_names, group_options
from trainer.config.plain import unknown_key
from trainer.config.schema import Config
from trainer.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

NAMED_GROUPS = ("data", "model", "optim")
"""Groups whose options are called after the `name` that they set."""

FREE_KEYS = ("data.args", "model.args", "optim.args")
"""Keys whose content the schema does not know."""


def compose(overrides: Sequence[str], *, config_dir: Path | None = None, config_name: str = "config") -> Config:
    """Composes the configuration once, from the files in `configs/` and the overrides.

    Args:
        overrides: in Hydra's grammar: `recipe=digits`, `optim.lr=0.1`, `model.args.width=32`, ...
        config_dir: a directory of your own configuration files beside the shipped ones.
        config_name: the primary file, without `.yaml`.

    Raises:
        ConfigError: an unknown key, group or option, a value of the wrong type, an override that cannot be
            read, a mistake in a configuration file.
    """
    try:
        from omegaconf import OmegaConf, open_dict
    except ModuleNotFoundError as error:
        raise problems.foreign_python(error) from error

    with composing(overrides, config_dir=config_dir, config_name=config_name) as raw:
        choice = raw.hydra.runtime.choices.get("recipe")
        with open_dict(raw):
            del raw["hydra"]
        with translated(overrides):
            config = OmegaConf.to_object(raw)
    assert isinstance(config, Config), "the schema must be the first entry of the defaults list"
    # The group `recipe` hides the key `recipe` from the grammar, so the choice is copied into it here.
    names = [choice] if isinstance(choice, str) else list(choice or [])
    config.recipe = "+".join(names) or config.recipe
    return config


@contextmanager
def composing(
    overrides: Sequence[str], *, config_dir: Path | None = None, config_name: str = "config"
) -> Iterator["DictConfig"]:
    """The composed configuration as Hydra has it, its own node included, while Hydra is initialised.

    Raises:
        ConfigError: as for `compose`.
    """
    import hydra

    checked = [text for group in rewrite(overrides, config_dir=config_dir) for text in group]
    with initialised(config_dir) as extra:
        with translated(overrides):
            raw = hydra.compose(config_name, [*checked, *extra], return_hydra_config=True)
        yield raw


@contextmanager
def translated(overrides: Sequence[str]) -> Iterator[None]:
    """Retells what Hydra and OmegaConf raise in the body as a ConfigError."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        yield
    # Hydra also answers some mistakes of users with a bare ValueError or an assertion.
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError, AssertionError) as error:
        raise problems.translate(error, list(overrides)) from error


@contextmanager
def initialised(config_dir: Path | None = None) -> Iterator[list[str]]:
    """Hydra, initialised on our files and the user's; yields the overrides that make it search the user's.

    Raises:
        ConfigError: `config_dir` is not a directory.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    register_schema()
    extra = [] if config_dir is None else [f"hydra.searchpath=[{_quote(f'file://{directory(config_dir)}')}]"]
    # A job of hydra.main composes as well, and Hydra refuses to be initialised twice.
    state = GlobalHydra.instance()
    outer, state.hydra = state.hydra, None
    try:
        with hydra.initialize_config_dir(str(config_root()), job_name="paceline", **version_base()):
            yield extra
    finally:
        state.hydra = outer


def directory(config_dir: Path) -> Path:
    """The user's configuration directory, absolute.

    Raises:
        ConfigError: it is not a directory.
    """
    found = config_dir.expanduser().resolve()
    if not found.is_dir():
        raise ConfigError(f"--config-dir {config_dir} is not a directory", "name the directory of your own YAML files")
    return found


def register_schema() -> None:
    """Makes the dataclasses known to Hydra as `schema`, the first entry of `configs/config.yaml`."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    if "schema.yaml" not in store.repo:
        store.store(name="schema", node=Config, provider="trainer.config.schema")


def version_base() -> dict[str, Any]:
    """The argument that keeps Hydra 1.3 from following 1.1; later versions deprecate it."""
    import hydra

    return {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}


def rewrite(overrides: Sequence[str], *, config_dir: Path | None = None, sweep: bool = False) -> list[list[str]]:
    """Checks overrides and turns each into what Hydra is to be told.

    `model.args.width=32` gets the `++` that a key unknown to the schema needs. `optim.name=adamw` chooses the
    group's file as well, or none where there is none, so that no argument of the default stays behind.

    Args:
        overrides: as written.
        config_dir: a directory of the user's configuration files.
        sweep: whether several values are allowed.

    Raises:
        ConfigError: an unknown key, group or option, an override that cannot be read.
    """
    if config_dir is not None:
        config_dir = directory(config_dir)
    problems.check_blanks(overrides)
    overrides = [at_home(text) for text in overrides]
    parsed = [parse(text) for text in overrides]
    groups = group_names(config_dir)
    for override in parsed:
        _check(override, groups, config_dir, together=None if sweep else overrides)
    chosen = {override.key_or_group for override in parsed}
    return [_rewrite_one(text, override, chosen, config_dir) for text, override in zip(overrides, parsed, strict=True)]


def at_home(text: str) -> str:
    """An override whose value is a path from `~`, which a shell leaves alone there, with the whole path."""
    key, equals, value = text.partition("=")
    return f"{key}{equals}{os.path.expanduser(value)}" if value.startswith("~") else text  # noqa: PTH111


def parse(text: str) -> "Override":
    """One override in Hydra's grammar.

    Raises:
        ConfigError: it cannot be read.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if not text.partition("=")[0].strip("+~ "):
        raise problems.malformed(text)
    try:
        return OverridesParser.create().parse_overrides([at_home(text)])[0]
    except (HydraException, ValueError) as error:
        raise problems.malformed(text) from error


def is_hydras(text: str) -> bool:
    """Whether an override is about Hydra itself."""
    return text.lstrip("+~").startswith(("hydra.", "hydra/", "hydra="))


def _check(override: "Override", groups: list[str], config_dir: Path | None, *, together: list[str] | None) -> None:
    """Refuses what cannot work.

    Args:
        override: the override.
        groups: the groups that there are.
        config_dir: a directory of the user's configuration files.
        together: all overrides; None where each may have several values.
    """
    key, text = override.key_or_group, override.input_line or ""
    if is_hydras(text) or override.package is not None:
        return
    value = text.partition("=")[2]
    if override.is_sweep_override() and together is not None:
        own = [f"--config-dir={config_dir}"] if config_dir else []
        raise problems.several_values(key, value, [*own, *together])
    if key in groups:
        _check_options(override, group_options(key, config_dir))
    elif not is_known(key):
        raise unknown_key(key)
    else:
        _check_inner(key, override.value())


def _check_options(override: "Override", options: list[str]) -> None:
    group = override.key_or_group
    if override.is_sweep_override():
        names = list(override.sweep_string_iterator()) if override.is_discrete_sweep() else []
    else:
        value = override.value()
        if isinstance(value, dict):
            _check_inner(group, value)
            return
        names = value if isinstance(value, list) else [value]
    for name in names:
        if isinstance(name, (bool, int, float)) or (name is None and not override.is_delete()):
            raise problems.unknown_option(group, (override.input_line or "").partition("=")[2], options)
        if isinstance(name, str) and not name.startswith("$") and name and name not in options:
            raise problems.unknown_option(group, name, options)


def _check_inner(key: str, value: object) -> None:
    if isinstance(value, dict):
        for path in _paths(value, key):
            if not is_known(path):
                raise unknown_key(path)


def _paths(value: dict[Any, Any], prefix: str) -> Iterator[str]:
    for name, inner in value.items():
        yield f"{prefix}.{name}"
        if isinstance(inner, dict):
            yield from _paths(inner, f"{prefix}.{name}")


def _rewrite_one(text: str, override: "Override", chosen: set[str], config_dir: Path | None) -> list[str]:
    key = override.key_or_group
    if key.startswith(tuple(f"{free}." for free in FREE_KEYS)) or key in FREE_KEYS:
        return [text if text.startswith("~") else f"++{text.lstrip('+')}"]
    group, _, name = key.rpartition(".")
    if name != "name" or group not in NAMED_GROUPS or group in chosen or override.is_sweep_override():
        return [text]
    value = override.value()
    if not isinstance(value, str) or "$" in value:
        return [text]
    options = {option.lower(): option for option in group_options(group, config_dir)}
    option = options.get(value.lower())
    return [f"{group}={option}" if option else f"{group}=[]", text]


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
