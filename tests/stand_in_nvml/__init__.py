"""A stand-in for NVIDIA's management library, for machines without a GPU.

Give it to a process of its own through `environment`: who sees it believes in GPUs, torch included.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest


def build(folder: Path) -> Path:
    """Compiles the stand-in into `folder`, which it returns; skips the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the stand-in NVML")
    source = Path(__file__).with_name("nvml.c")
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", str(source)]
    subprocess.run([*command, "-o", str(folder / "libnvidia-ml.so.1")], check=True)
    return folder


def environment(library: Path, figures: Path) -> dict[str, str]:
    """Our environment with the stand-in first on the library path and its figures from `figures`."""
    paths = [str(library), os.environ.get("LD_LIBRARY_PATH", "")]
    without = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    return {
        **without,
        "LD_LIBRARY_PATH": ":".join(path for path in paths if path),
        "PACELINE_STAND_IN_NVML": str(figures),
    }


def write_figures(path: Path, figures: Mapping[str, int]) -> None:
    """Replaces the stand-in's figures at once; nvml.c lists their names."""
    temporary = path.with_suffix(".new")
    temporary.write_text("".join(f"{name} {value}\n" for name, value in figures.items()))
    temporary.replace(path)


def busy_gpus(count: int) -> dict[str, int]:
    """Figures of `count` GPUs at work, GPU i at 90 + i per cent."""
    figures = {"count": count}
    for i in range(count):
        figures |= {
            f"gpu{i}.utilization_percent": 90 + i,
            f"gpu{i}.memory_used_bytes": (i + 1) * 2**30,
            f"gpu{i}.memory_v1_used_bytes": (i + 1) * 2**30 + 2**29,
            f"gpu{i}.memory_total_bytes": 80 * 2**30,
            f"gpu{i}.power_mw": 350_500 + i,
            f"gpu{i}.power_limit_mw": 700_000,
            f"gpu{i}.temperature_celsius": 60 + i,
            f"gpu{i}.sm_clock_mhz": 1980,
            f"gpu{i}.memory_clock_mhz": 2619,
        }
    return figures
