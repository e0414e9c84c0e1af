"""Which line of a user's own code an error came from. Standard library only."""

import sysconfig
import traceback
from pathlib import Path

_OURS = Path(__file__).resolve().parent.parent
_LIBRARY = (Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))
_NOT_THEIRS = (_OURS, _OURS.with_name("launcher"), *_LIBRARY)


def innermost(frames: traceback.StackSummary) -> traceback.FrameSummary | None:
    """The innermost frame in the user's own code; where the error did not come by there, the innermost of all.

    Returns:
        None of an error that was never raised.
    """
    theirs = [frame for frame in frames if is_theirs(frame.filename)]
    return next(reversed(theirs or list(frames)), None)


def is_theirs(name: str) -> bool:
    """Whether a file of code is the user's own, and neither a library's nor ours."""
    file = Path(name)
    # `<frozen importlib._bootstrap>` is no file; a script's name may be relative.
    if name.startswith("<") or {"site-packages", "dist-packages"} & set(file.parts):
        return False
    return not any(file.is_relative_to(folder) for folder in _NOT_THEIRS)
