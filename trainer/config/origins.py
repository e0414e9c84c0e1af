"""Who set each value: the schema, a file of `configs/`, the user's own files or the command line."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.compose import compose, directory, initialised, is_hydras, parse, rewrite, translated
from trainer.config.keys import leaves
from trainer.config.names import config_root, group_names
from trainer.config.schema import Config

SCHEMA = "schema default"
"""The source of a value that nobody set."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One layer's word on a key.

    Attributes:
        value: what it says; of a file before interpolation.
        by: the file, or the override.
    """

    value: Any
    by: str


@dataclass(frozen=True, slots=True)
class Origins:
    """A composed configuration, and for each key the layers that set it.

    Attributes:
        config: as composed.
        settings: dotted key -> layers, the last of which won; the content of `args` has keys of its own.
    """

    config: Config
    settings: dict[str, list[Setting]]

    def of(self, path: str) -> list[Setting]:
        """The layers of a key, the schema's default first; for `args` what each says of its content."""
        key = leaves().get(path)
        chain = [Setting(key.default, SCHEMA)] if key else []
        inner: dict[str, dict[str, Any]] = {}
        for name, found in self.settings.items():
            if name == path:
                chain += found
            elif name.startswith(f"{path}."):
                for layer in found:
                    inner.setdefault(layer.by, {})[name[len(path) + 1 :]] = layer.value
        return chain + [Setting(value, by) for by, value in inner.items()]

    def source(self, path: str) -> str:
        """Who set a key last."""
        chain = self.of(path)
        return chain[-1].by if chain else SCHEMA


def trace(overrides: Sequence[str], *, config_dir: Path | None = None) -> Origins:
    """Composes the configuration and finds out who set what.

    Raises:
        ConfigError: as for `compose`.
    """
    config = compose(overrides, config_dir=config_dir)
    settings: dict[str, list[Setting]] = {}
    for path, setting in [*_from_files(overrides, config_dir), *_from_overrides(overrides, config_dir)]:
        settings.setdefault(path, []).append(setting)
    return Origins(config, settings)


def _from_files(overrides: Sequence[str], config_dir: Path | None) -> Iterator[tuple[str, Setting]]:
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    texts = [text for group in rewrite(overrides, config_dir=config_dir) for text in group]
    with initialised(config_dir) as extra, translated(overrides):
        loader = GlobalHydra.instance().config_loader()
        # The order in which Hydra merges the files; what they say is read from the files themselves.
        defaults = loader.compute_defaults_list("config", [*texts, *extra], RunMode.RUN).defaults
    for default in defaults:
        file = _file(default.config_path or "", config_dir)
        if file is None:
            continue
        content = OmegaConf.to_container(OmegaConf.load(file))
        if isinstance(content, dict):
            own = {str(name): value for name, value in content.items() if name not in ("defaults", "hydra")}
            prefix = f"{default.package}." if default.package else ""
            for path, value in _flatten(own, prefix):
                yield path, Setting(value, shown_path(file))


def _from_overrides(overrides: Sequence[str], config_dir: Path | None) -> Iterator[tuple[str, Setting]]:
    groups = group_names(None if config_dir is None else directory(config_dir))
    for text in overrides:
        override = parse(text)
        if is_hydras(text) or override.package is not None:
            continue
        value, key = override.value(), override.key_or_group
        if key in groups and not isinstance(value, dict):
            if key == "recipe":
                yield key, Setting(value, f"command line: {text}")
            continue
        found = _flatten(value, f"{key}.") if isinstance(value, dict) else [(key, value)]
        for path, inner in found:
            yield path, Setting(inner, f"command line: {text}")


def shown_path(file: Path) -> str:
    """A configuration file for people: `configs/optim/sgd.yaml`, or the path of one of the user's own."""
    root = config_root()
    return f"configs/{file.relative_to(root)}" if file.is_relative_to(root) else str(file)


def _file(config_path: str, config_dir: Path | None) -> Path | None:
    roots = [config_root()] if config_dir is None else [config_root(), directory(config_dir)]
    return next((file for root in roots if (file := root / f"{config_path}.yaml").is_file()), None)


def _flatten(values: dict[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
