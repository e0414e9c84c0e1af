"""A worker's first moments."""

import subprocess
import sys

REDIRECTED = """
import sys
from pathlib import Path
from launcher.workers.worker import _redirect
_redirect(Path("/proc/1/no/rank-1.log"))
print("said", flush=True)
print("said", file=sys.stderr, flush=True)
"""


def test_a_log_that_cannot_be_made_is_told_and_ends_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", REDIRECTED], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert (
        done.stderr == "warning: /proc/1/no/rank-1.log cannot be written and is given up: No such file or directory\n"
    )
