"""The right to train in a run, for a program that knows nothing of runs: our trainer takes it itself."""

import fcntl
import os
import sys
import time

from trainer.run.lease import in_use
from trainer.rundir import RunDir

_LOOK_S = 0.5


def take(run: RunDir) -> None:
    """Takes the run for a program that knows nothing of it, until the last of its processes has ended.

    Raises:
        InUseError: another job has it.
    """
    descriptor = os.open(run.lock, os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + _LOOK_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            # Whoever looks whether it is held has it for a moment.
            if time.monotonic() > deadline:
                raise in_use(run) from error
            time.sleep(_LOOK_S / 50)
            continue
        except OSError as error:
            # A file system without locks; `paceline doctor --storage` says what that means.
            print(f"warning: {run.lock} cannot be locked: {error.strerror}", file=sys.stderr)
        return
