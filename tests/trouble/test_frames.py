"""Which frame of a traceback is the user's own."""

import traceback

import pytest
import torch

from trainer.trouble import frames
from trainer.trouble.frames import innermost

HERE = traceback.FrameSummary("script.py", 7, "work")
LIBRARY = [
    traceback.FrameSummary(file.__file__ or "", 1, "f") for file in (torch, traceback, frames)
] + [traceback.FrameSummary("<frozen runpy>", 1, "f")]  # fmt: skip


@pytest.mark.parametrize("file", ["script.py", "/home/me/trainer/net.py", "./launcher/x.py"])
def test_the_innermost_frame_of_ones_own_is_found_between_those_of_libraries(file: str) -> None:
    own = traceback.FrameSummary(file, 7, "work")
    assert innermost(traceback.StackSummary.from_list([*LIBRARY, HERE, own, *LIBRARY])) is own


def test_without_one_it_is_the_innermost_of_all() -> None:
    assert innermost(traceback.StackSummary.from_list(LIBRARY)) is LIBRARY[-1]
    assert innermost(traceback.StackSummary()) is None
