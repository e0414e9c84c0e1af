"""Whether the images are still those that a run began with, as far as names and numbers tell. Standard library only."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.config.schema import Config
from trainer.data.scan import layout, scan, some
from trainer.errors import ConfigError
from trainer.rundir import RunDir, read_json

_STATE = "state.json"
_MOST_COUNTED = 50_000
"""Images up to which a folder is read as a whole before anything is started: a fraction of a second."""


def check_recalled(run: RunDir, config: Config) -> None:
    """Refuses to go on with a folder of images that has changed, before a worker would: its classes, or its number.

    What was renamed or exchanged, in a big folder or in another kind of data set, the workers find.

    Raises:
        ConfigError: it has changed, and `run.accept_changes` is not set.
        UnfitError: it cannot be read.
    """
    data = config.data
    newest = max(run.checkpoints.glob("step-????????"), default=None)
    noted = read_json(newest / _STATE).get("data") if newest is not None else None
    if not isinstance(noted, dict) or data._target_ is not None or data.name != "folder" or data.root is None:
        return
    before = noted.get("training images", 0) + noted.get("validation images", 0)
    if config.debug or config.run.accept_changes or before > _MOST_COUNTED:
        return
    places = layout(Path(data.root).expanduser())
    found = [scan(folder) for folder in (places.train, places.val) if folder is not None]
    classes, images = list(found[0].images), sum(len(paths) for part in found for paths in part.images.values())
    changed = [] if classes == noted["classes"] else [other_classes(noted["classes"], classes)]
    if data.limit is None and images != before:
        changed.append(f"images were {before:,} and are now {images:,}")
    if changed:
        raise changed_since(changed, noted, {"classes": classes})


def other_classes(before: Sequence[str], now: Sequence[str]) -> str:
    """What is different about the classes, in words."""
    kinds = {
        "new": [name for name in now if name not in before],
        "missing": [name for name in before if name not in now],
    }
    told = [f"{some(names)} {'is' if len(names) == 1 else 'are'} {kind}" for kind, names in kinds.items() if names]
    return f"the classes are others ({'; '.join(told) or 'their order is'})"


def changed_since(changed: list[str], before: Mapping[str, Any], now: Mapping[str, Any]) -> ConfigError:
    """The error for a run whose data is not what it began with.

    Args:
        changed: what has changed, in words.
        before: the identity of the data with which the run began, see `trainer.data.identity`.
        now: that of the data as it is.
    """
    fix = "run.fresh=true starts over beside it; run.accept_changes=true goes on with another order of samples"
    if len(before["classes"]) != len(now["classes"]):
        # Another number of classes needs another network.
        fix = "data.root=DIR with the classes that it began with; or run.fresh=true starts over beside it"
    problem = f"the data has changed since this run began: {', '.join(changed)}"
    return ConfigError(problem, fix, details={"changed": changed})
