"""A user's data set whose files are gone as soon as they have been found."""

from pathlib import Path

from trainer.config import DataConfig
from trainer.data.datasets import Splits
from trainer.data.sets.folder import from_folder


def build(root: str, keep: int) -> Splits:
    """The folder's splits; training images but the first `keep` are deleted, and validation images but one."""
    splits = from_folder(Path(root), DataConfig(name="folder", root=root, on_bad_image="skip"))
    train = sorted((Path(root) / "train").rglob("*.png"))
    val = sorted((Path(root) / "val").rglob("*.png"))
    for path in [*train[keep:], *val[1:]]:
        path.unlink()
    return splits
