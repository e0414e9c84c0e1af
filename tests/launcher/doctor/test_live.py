"""The doctor's trials: what their figures mean, and what is said where they break or hang."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.doctor import live
from launcher.doctor.finding import FAIL, PASS, WARN
from launcher.doctor.gpu_facts import GpuFacts
from launcher.doctor.surroundings import Surroundings
from tests.waiting import until
from trainer.config import ClusterConfig, Config

TWO = Config(device="cpu", cluster=ClusterConfig(gpus_per_node=2))
H100 = ["NVIDIA H100", 9, 0]
NVLINKED = [GpuFacts(i, nvlinks=18) for i in range(2)]
NO_CUDA = {"unavailable": "No CUDA GPUs are available", "gpus": [], "architectures": [], "cudnn": None, "nccl": None}
NEWEST = [GpuFacts(i, capability=(10, 0), nvlinks=18) for i in range(2)]
ON_PCIE = [GpuFacts(i, lanes=16, pcie_generation=4) for i in range(2)]


def row(trial: str, rank: int = 0, **found: Any) -> dict[str, Any]:
    return {"trial": trial, "rank": rank, **found}


def libraries(gpus: list[Any], architectures: str) -> dict[str, Any]:
    known = {"architectures": architectures.split(), "cudnn": 92400, "nccl": "2.30.7"}
    return row("libraries", unavailable=None, gpus=gpus, **known)


def matmuls(*tflops: float, right: bool = True) -> list[dict[str, Any]]:
    return [row("matmul", rank, is_gpu=True, tflops=value, right=right) for rank, value in enumerate(tflops)]


@pytest.mark.parametrize(
    ("rows", "gpus", "state", "words"),
    [
        (
            [libraries([H100], "sm_80 sm_90 compute_90")],
            [],
            PASS,
            "cuDNN 9.24.0, NCCL 2.30.7; torch.cuda.is_available(), with code for NVIDIA H100 (9.0)",
        ),
        ([libraries([["Tesla V100", 7, 0]], "sm_75 sm_80")], [], FAIL, "no code for Tesla V100 (7.0), only for 75, 80"),
        ([libraries([["A10", 8, 6]], "sm_80")], [], PASS, "A10"),
        ([libraries([["B200", 10, 0]], "sm_90 compute_90")], [], PASS, "B200"),
        ([libraries([["B200", 10, 0]], "sm_90a")], [], FAIL, "no code for B200"),
        ([row("libraries", **NO_CUDA)], [], FAIL, "torch.cuda.is_available() is False: No CUDA GPUs are available"),
        (matmuls(400, 410, 405), [], PASS, "right on all; 400 to 410 TFLOP/s"),
        (matmuls(400, 410, 205), [], WARN, "rank 2 reaches 51 % of the others"),
        (matmuls(400, right=False), [], FAIL, "a wrong result on rank 0"),
        ([row("memory trial", bytes=1 << 30, wrong=0)], [], PASS, "1.0 GiB each"),
        ([row("memory trial", 3, bytes=1 << 30, wrong=7)], [], FAIL, "rank 3 (7 bytes)"),
        ([row("all-reduce", right=True, busbw=340e9, bytes=1 << 28)], NVLINKED, PASS, "76 % of 18 NVLinks"),
        ([row("all-reduce", right=True, busbw=20e9, bytes=1 << 28)], NVLINKED, WARN, "4 % of 18 NVLinks: slow"),
        ([row("all-reduce", right=True, busbw=680e9, bytes=1 << 28)], NEWEST, PASS, "76 % of 18 NVLinks"),
        ([row("all-reduce", right=True, busbw=15e9, bytes=1 << 28)], ON_PCIE, PASS, "48 % of PCI Express 4 x16"),
        ([row("all-reduce", right=True, busbw=1e9, bytes=1 << 28)], ON_PCIE, WARN, "slow"),
        ([row("all-reduce", right=True, busbw=1e9, bytes=1 << 24)], [], PASS, "953.7 MiB/s bus bandwidth"),
        ([row("all-reduce", right=False, busbw=1e9, bytes=1 << 24)], [], FAIL, "the sum is wrong"),
        ([row("decoding", images_per_second=600.0)], [], PASS, "600 images/s a core"),
        ([row("decoding", images_per_second=60.0)], [], WARN, "slow"),
    ],
)
def test_a_trial_is_judged(rows: list[dict[str, Any]], gpus: list[GpuFacts], state: str, words: str) -> None:
    found = live.judge(rows[0]["trial"], rows, gpus)
    assert (found.state, words in found.message, bool(found.fix)) == (state, True, state != PASS), found


def test_trials_that_hang_are_ended_at_their_limit_and_named(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import subprocess, time\nsubprocess.Popen(['sleep', '600'])\ntime.sleep(600)")
    surroundings = {**os.environ, "PYTHONPATH": str(tmp_path), "A_MARK_OF": str(tmp_path)}
    started = time.monotonic()
    (found,) = live.examine(Surroundings(TWO, surroundings), limit_s=2.0)
    assert (found.state, found.message) == (FAIL, "no answer within 2 s: libraries hangs")
    assert time.monotonic() - started < 60
    mark = f"A_MARK_OF={tmp_path}"
    until(
        lambda: not any(_is_marked(folder, mark) for folder in Path("/proc").glob("[0-9]*")),
        "all are gone",
        deadline_s=20,
    )


def _is_marked(folder: Path, mark: str) -> bool:
    try:
        return mark.encode() in (folder / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


def test_trials_that_break_are_told_with_what_it_means(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(
        "raise ImportError('libcudart.so.99: cannot open shared object file: No such file or directory')"
    )
    (found,) = live.examine(Surroundings(TWO, {**os.environ, "PYTHONPATH": str(tmp_path)}))
    assert found.state == FAIL
    assert "libraries failed: ImportError: libcudart.so.99: cannot open" in found.message
    assert "a native library is missing" in found.fix


def test_the_rank_that_does_not_come_to_its_end_is_named() -> None:
    rows = [libraries([], ""), *matmuls(1, 1, 1)[:2]]
    assert live.broken(rows, 3, "", limit_s=90).message == "no answer within 90 s: matmul on rank 2 hangs"
    died = live.broken([libraries([], ""), *matmuls(1, 1)], 2, "x\nCUDA error: out of memory\n", limit_s=None)
    assert died.message == "memory trial on rank 0, 1 failed: CUDA error: out of memory"
    assert died.fix.startswith("the GPU is out of memory")
