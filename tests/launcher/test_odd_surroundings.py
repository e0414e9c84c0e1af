"""Jobs among names, files and streams that are not as one would have them."""

import os
import subprocess
import sys
from collections.abc import Callable

from tests.launcher.conftest import ROOT, Job
from trainer.rundir import read_json

NOT_UTF_8 = os.fsdecode(b"caf\xe9")

NAMED_ODDLY = r"""
import ctypes, sys
ctypes.CDLL(None).prctl(15, b"caf\xe9", 0, 0, 0)
print("named", flush=True)
sys.stdin.read()
"""
"""A process whose name is no UTF-8, as one that was cut at its 15th byte."""


def test_names_that_are_no_utf_8_and_an_error_of_70_mb_are_nothing_special(make_job: Callable[[str], Job]) -> None:
    job = make_job(
        """
import os, sys
assert os.environ["NCCL_ODD"] == sys.argv[1]
if os.environ["RANK"] == "1":
    raise ValueError(sys.argv[1] + "x" * 70_000_000)
"""
    )
    job.script = job.script.rename(job.folder / f"{NOT_UTF_8}.py")
    neighbour = subprocess.Popen(
        [sys.executable, "-c", NAMED_ODDLY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    with neighbour:
        assert neighbour.stdout is not None
        assert neighbour.stdout.readline() == b"named\n"
        # Two nodes: the error is sent, too.
        code, _, err = job.go("cluster.nodes=2", "cluster.gpus_per_node=1", arguments=(NOT_UTF_8,), NCCL_ODD=NOT_UTF_8)
        neighbour.kill()
    assert code == 1
    assert "✗ failed: ValueError on rank 1" in err
    assert len(err) < 3_000, err
    assert (job.failure["type"], job.failure["message"][:5]) == ("ValueError", f"{NOT_UTF_8}x")
    assert read_json(job.run.job)["argv"][-1] == NOT_UTF_8
