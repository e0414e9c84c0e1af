"""`paceline doctor`: what it says about this machine, and about machines that are worse."""

import json
import resource
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from importlib import metadata
from pathlib import Path

import pytest

from launcher.doctor import environment
from launcher.doctor.environment import Surroundings
from launcher.doctor.finding import FAIL, PASS, WARN
from tests import stand_in_nvml
from tests.trainer_command import ROOT
from trainer.config import ClusterConfig, Config, DataConfig, RunConfig, TrackingConfig, WandbConfig

Usage = namedtuple("Usage", "total used free")


def here(config: Config | None = None, **variables: str) -> Surroundings:
    return Surroundings(config or Config(), {"CUDA_VISIBLE_DEVICES": "", **variables})


def doctor(*arguments: str, surroundings: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    script = (
        f"import sys; from launcher.cli import main; code = main(['doctor', *{list(arguments)!r}]); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    return subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=surroundings, capture_output=True, text=True, check=False
    )


def test_this_machine_is_looked_at_from_all_sides_without_torch() -> None:
    done = doctor("--json")
    found = json.loads(done.stdout)
    states = {row["name"]: row["state"] for row in found["findings"]}
    assert len(states) == len(environment.CHECKS)
    assert [states[name] for name in ("python", "packages", "module names", "torch", "rendezvous")] == [PASS] * 5
    assert (done.returncode == 3) == (FAIL in states.values())
    assert doctor("optim.lrr=1").returncode == 2


def test_a_driver_too_old_for_torch_and_a_busy_gpu_are_named(tmp_path: Path) -> None:
    library = stand_in_nvml.build(tmp_path)
    # A CUDA build of torch is what pip installs here; a CPU build on a machine with a GPU is no better.
    figures = stand_in_nvml.busy_gpus(2) | {"cuda_version": 11040, "gpu1.memory_v1_used_bytes": 70 << 30}
    stand_in_nvml.write_figures(tmp_path / "figures", figures)
    surroundings = stand_in_nvml.environment(library, tmp_path / "figures")
    done = doctor(surroundings=surroundings)
    assert done.returncode == 3
    assert "driver 999.1 is for CUDA up to 11.4" in done.stdout
    assert "2 visible; in use already: GPU 1 (70.0 GiB)" in done.stdout
    assert "unfit: torch" in done.stdout
    stand_in_nvml.write_figures(tmp_path / "figures", {"init.error": 18})
    assert "the NVIDIA driver does not answer" in doctor(surroundings=surroundings).stdout


def test_limits_that_are_too_low_are_warnings_with_their_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 26, 0, 64 << 20))
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 65536))
    found = environment.shared_memory(here())
    assert (found.state, "64.0 MiB free" in found.message, "--shm-size" in found.fix) == (WARN, True, True)
    found = environment.open_files(here())
    assert (found.state, found.fix) == (WARN, "ulimit -n 65536 (the hard limit is 65536)")
    assert environment.processes(here()).state == WARN


def test_a_small_machine_for_the_job_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "count_cpus", lambda: 4)
    monkeypatch.setattr(environment, "memory_limit", lambda: 3 << 30)
    four = Config(cluster=ClusterConfig(gpus_per_node=4))
    assert environment.memory(here(four)).state == WARN
    assert "limit 3.0 GiB" in environment.memory(here(four)).message
    assert environment.cores(here(four)).state == PASS
    assert environment.cores(here(Config(cluster=ClusterConfig(gpus_per_node=8)))).fix == "cluster.gpus_per_node=4"
    greedy = Config(cluster=ClusterConfig(gpus_per_node=2), data=DataConfig(workers=16))
    assert environment.cores(here(greedy)).fix == "data.workers=2"


def test_a_run_directory_that_cannot_be_and_one_without_room_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    inside = Config(run=RunConfig(dir=str(tmp_path / "file" / "runs")))
    assert environment.run_directory(here(inside)).state == FAIL
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 0, 1 << 20))
    found = environment.run_directory(here(Config(run=RunConfig(dir=str(tmp_path / "deep" / "er")))))
    assert (found.state, "1.0 MiB free" in found.message) == (FAIL, True)


def test_data_that_are_not_there_or_are_no_images_fail(tmp_path: Path) -> None:
    def found(root: str | None) -> tuple[str, str]:
        finding = environment.data(here(Config(data=DataConfig(root=root))))
        return finding.state, finding.message

    assert found(f"{tmp_path}/nope") == (FAIL, f"data.root={tmp_path / 'nope'} does not exist")
    assert found(str(tmp_path))[0] == FAIL
    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "one.jpg").write_bytes(b"x")
    assert found(str(tmp_path))[0] == found(None)[0] == PASS


def test_other_packages_of_our_names_and_versions_that_do_not_fit_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: ["torch>=99", "no-such-thing", "other; extra == 'test'"])
    message = environment.packages(here()).message
    assert "wanted >=99" in message
    assert "no-such-thing is missing" in message
    assert "other" not in message
    monkeypatch.setattr(environment, "__file__", "/elsewhere/launcher/doctor/environment.py")
    found = environment.module_names(here())
    assert (found.state, str(ROOT / "trainer") in found.message) == (FAIL, True)


def test_a_busy_port_fails_and_hidden_gpus_fail_only_who_needs_them() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = Config(cluster=ClusterConfig(port=taken.getsockname()[1]))
        assert environment.rendezvous(here(config)).state == FAIL
    assert environment.gpus(here()).state == PASS
    assert environment.gpus(here(Config(device="cuda"))).state == FAIL


def test_whether_a_key_for_wandb_is_set_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_has_login", lambda: False)
    used = Config(tracking=TrackingConfig(wandb=WandbConfig()))
    assert "offline" in environment.wandb(here(used)).message
    assert "online" in environment.wandb(here(used, WANDB_API_KEY="x" * 40)).message
    assert environment.wandb(here()).message == "not used"
