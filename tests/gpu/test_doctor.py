"""`paceline doctor` on real GPUs."""

import json
import subprocess
import sys

import torch

from launcher.doctor.finding import FAIL
from tests.trainer_command import ROOT


def test_every_gpu_multiplies_right_keeps_its_memory_and_sums_with_the_others() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "doctor", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    found = {row["name"]: row for row in json.loads(done.stdout)["findings"]}
    for name in ("torch", "GPUs", "libraries", "matmul", "memory trial", "decoding"):
        assert found[name]["state"] != FAIL, found[name]
    assert torch.cuda.get_device_name(0) in found["libraries"]["message"]
    assert found["matmul"]["message"].startswith("right on all")
    assert ("all-reduce" in found) == (torch.cuda.device_count() > 1)
