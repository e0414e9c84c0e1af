"""What is said of an image that cannot be read. Standard library only."""

import os

SKIP = "data.on_bad_image=skip"
"""The override that leaves such images out."""

WAYS = f"mend or remove the file, or leave such images out with {SKIP}"
"""What can be done about one."""


class BadImage(Exception):
    """An image that cannot be read.

    Attributes:
        path: the file, printable whatever bytes its name has.
        reason: why, in a few words.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        self.path = os.fsencode(path).decode("utf-8", "replace")
        self.reason = reason
        super().__init__(self.path, reason)

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"
