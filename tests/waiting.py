"""Waiting for what another process does where nothing of it can be listened to; where it can, tests do that."""

import os
import subprocess
import time
from collections.abc import Callable
from typing import Any


def until(
    reached: Callable[[], object], what: str, *processes: "subprocess.Popen[Any]", deadline_s: float = 120.0
) -> None:
    """Returns once `reached()` holds; fails with `what` at the deadline, or with a process's words if that ends."""
    deadline = time.monotonic() + deadline_s
    while not reached():
        for process in processes:
            assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"not within {deadline_s} s: {what}"
        os.sched_yield()
