"""How many GPUs are counted, and what happens when the driver and torch disagree about them."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from launcher import gpus
from launcher.gpus import Gpu, choose, count_gpus, numa_nodes, share
from tests import stand_in_nvml
from tests.trainer_command import ROOT
from trainer.rundir import RunDir, read_json

Paceline = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def paceline(tmp_path: Path) -> Paceline:
    """`paceline run` where NVML is the stand-in with these figures."""
    library = stand_in_nvml.build(tmp_path)

    def run(figures: dict[str, int], *arguments: str) -> "subprocess.CompletedProcess[str]":
        stand_in_nvml.write_figures(tmp_path / "figures", figures)
        environment = stand_in_nvml.environment(library, tmp_path / "figures")
        command = [sys.executable, "-m", "launcher", "run", "recipe=digits", f"run.dir={tmp_path}", "run.name=x"]
        return subprocess.run(
            [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
        )

    return run


@pytest.mark.parametrize(
    ("mask", "count"),
    [
        ("0,1", 2),
        ("2", 1),
        ("0,7,1", 1),
        ("-1", 0),
        ("1,-1,0", 1),
        ("GPU-aa", 1),
        ("GPU-aa,GPU-b", 2),
        ("GPU-", 0),
        ("none", 0),
        ("0, 1", 2),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(mask: str, count: int) -> None:
    assert len(choose(mask, ["GPU-aa1", "GPU-b22", "GPU-c33"])) == count


def test_hidden_gpus_are_not_counted() -> None:
    assert count_gpus({"CUDA_VISIBLE_DEVICES": ""}) == 0


def test_the_numa_nodes_of_gpus_are_those_of_their_places_on_the_bus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, node in (("0000:07:00.0", 3), ("0000:0f:00.0", 1), ("0001:00:00.0", -1)):
        (tmp_path / place).mkdir()
        (tmp_path / place / "numa_node").write_text(f"{node}\n")
    buses = ["00000000:07:00.0", "00000000:0F:00.0", "00000001:00:00.0", "00000000:99:00.0"]
    nvml = SimpleNamespace(
        NVMLError=OSError,
        nvmlDeviceGetName=lambda handle: "H100",
        nvmlDeviceGetPciInfo=lambda handle: SimpleNamespace(busId=buses[handle].encode()),
    )
    places = [gpus._place(handle, nvml, tmp_path) for handle in range(4)]  # type: ignore[arg-type]
    assert [node for _, node in places] == [3, 1, None, None]
    four = [Gpu(f"GPU-{number}", "H100", number) for number in range(4)]
    monkeypatch.setattr(gpus, "_gpus", lambda: four)
    assert numa_nodes({}) == [0, 1, 2, 3]
    assert numa_nodes({"CUDA_VISIBLE_DEVICES": "3,GPU-1,MIG-x,9,0"}) == [3, 1, None]
    assert numa_nodes({"CUDA_VISIBLE_DEVICES": ""}) == []
    # CUDA puts the fastest first, whichever that is.
    four[2] = Gpu("GPU-2", "T4", 2)
    assert numa_nodes({}) == [None] * 4
    assert numa_nodes({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("figures", "workers"),
    [({"count": 4}, "4, one for each GPU"), ({"init.error": 9}, "2"), ({"init.error": 12}, "2")],
)
def test_workers_are_counted_by_gpus_and_a_driver_that_is_not_there_means_none(
    paceline: Paceline, figures: dict[str, int], workers: str
) -> None:
    done = paceline(figures, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert f"workers      {workers}\n" in done.stdout


@pytest.mark.parametrize(
    ("figures", "meaning"),
    [
        ({"init.error": 18}, "its library is newer than its kernel module"),
        ({"init.error": 4}, "may not be used by this user"),
        ({"count": 2, "gpu1.handle.error": 15}, "fallen off the bus"),
    ],
)
def test_a_driver_that_does_not_answer_is_exit_3_and_no_quiet_training_on_the_cpu(
    paceline: Paceline, figures: dict[str, int], meaning: str
) -> None:
    done = paceline(figures, "--dry-run")
    assert done.returncode == 3
    assert "the NVIDIA driver does not answer" in done.stderr
    assert meaning in done.stderr
    assert "device=cpu" in done.stderr


def test_workers_planned_for_gpus_insist_on_them_and_the_true_error_is_kept(paceline: Paceline, tmp_path: Path) -> None:
    # The stand-in has GPUs for NVML only: torch finds none that work.
    done = paceline({"count": 2})
    assert done.returncode == 3, done.stderr
    assert "device=cuda, but no usable GPU" in done.stderr
    # It came before the run was open, and so before the trainer itself knew where to keep it.
    failure = read_json(RunDir(tmp_path / "x").failure)
    assert (failure["type"], failure["exit_code"], failure["attempt"]) == ("UnfitError", 3, 0)
    assert "no usable GPU" in failure["message"]


@pytest.mark.parametrize(
    ("mask", "shares"),
    [
        (None, ["0,1", "2,3"]),
        ("3, 2,5,GPU-1,7", ["3,2", "5,GPU-1"]),
    ],
)
def test_nodes_that_share_a_machine_share_its_gpus_out(mask: str | None, shares: list[str]) -> None:
    assert [share(mask, number=number, size=2) for number in (0, 1)] == shares
