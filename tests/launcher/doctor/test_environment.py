"""`paceline doctor`: what it says about this machine, and about machines that are worse."""

import importlib.util
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import replace
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from launcher.doctor import environment, gpu_facts, graphics, host, network, places, software
from launcher.doctor.finding import FAIL, PASS, WARN, Check
from launcher.doctor.gpu_facts import GpuFacts, Machine
from launcher.doctor.surroundings import Surroundings
from tests import stand_in_nvml
from tests.trainer_command import ROOT
from trainer.config import ClusterConfig, Config, DataConfig, RunConfig, TrackingConfig, WandbConfig

Usage = namedtuple("Usage", "total used free")
Space = namedtuple("Space", "f_frsize f_bavail f_files f_favail")


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


def test_this_machine_is_looked_at_from_all_sides_and_torch_is_tried_in_processes_of_its_own() -> None:
    done = doctor("--json", "device=cpu", "cluster.gpus_per_node=2")
    found = json.loads(done.stdout)
    states = {row["name"]: row["state"] for row in found["findings"]}
    trials = ["libraries", "matmul", "memory trial", "all-reduce", "decoding"]
    assert list(states) == [check.name for check in environment.ALWAYS] + trials
    assert [states[name] for name in trials[:4]] == [PASS] * 4
    assert "/s bus bandwidth" in done.stdout
    assert "images/s a core" in done.stdout
    assert [states[name] for name in ("python", "packages", "module names", "torch", "rendezvous")] == [PASS] * 5
    assert (done.returncode == 3) == (FAIL in states.values())
    assert doctor("optim.lrr=1").returncode == 2


def test_a_driver_too_old_for_torch_and_a_busy_gpu_are_named(tmp_path: Path) -> None:
    library = stand_in_nvml.build(tmp_path)
    # A CUDA build of torch is what pip installs here; a CPU build on a machine with a GPU is no better.
    figures = stand_in_nvml.busy_gpus(2) | {"cuda_version": 11040, "gpu1.memory_v1_used_bytes": 70 << 30}
    figures |= {"gpu0.nvlinks": 4, "gpu1.nvlinks": 4, "gpu0.p2p_status": 1, "gpu0.process": os.getpid()}
    figures |= {"gpu1.event_reasons": 0x41, "gpu1.ecc_uncorrected": 3, "gpu0.rows_failed.error": 3}
    figures |= {"gpu1.capability": 86}
    stand_in_nvml.write_figures(tmp_path / "figures", figures)
    surroundings = stand_in_nvml.environment(library, tmp_path / "figures")
    done = doctor("--quick", surroundings=surroundings)
    assert done.returncode == 3
    assert "driver 999.1 is for CUDA up to 11.4" in done.stdout
    kinds = "1x Stand-in (9.0, 80.0 GiB), 1x Stand-in (8.6, 80.0 GiB)"
    assert f"2 visible: {kinds}; memory in use already: GPU 1 (70.0 GiB)" in done.stdout
    assert "unfit: torch" in done.stdout
    assert "no image for these GPUs runs with driver 999.1 (CUDA 11.4)" in done.stdout
    assert "4 NVLinks each; no direct access between GPU 0 and 1" in done.stdout
    assert "held down: GPU 1 by heat (hardware) at 61 °C" in done.stdout
    assert f"(process {os.getpid()} of " in done.stdout
    assert "GPU 1: 3 uncorrectable errors" in done.stdout
    # Of GPUs that the job does not see nothing is said.
    done = doctor("--quick", surroundings={**surroundings, "CUDA_VISIBLE_DEVICES": "1"})
    assert "1 visible: 1x Stand-in (8.6, 80.0 GiB)" in done.stdout
    assert "GPU 0" not in done.stdout
    stand_in_nvml.write_figures(tmp_path / "figures", {"init.error": 18})
    assert "the NVIDIA driver does not answer" in doctor("--quick", surroundings=surroundings).stdout


def test_a_driver_that_hangs_is_left_alone_after_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = time.monotonic()
    monkeypatch.setattr(gpu_facts, "visible", lambda mask: time.sleep(60))
    machine = gpu_facts.look({}, limit_s=0.2)
    assert machine.problem == "the NVIDIA driver does not answer: no answer within 0.2 s"
    found = graphics.gpus(replace(here(), machine=machine))
    assert (found.state, "nvidia-smi" in found.fix) == (FAIL, True)
    monkeypatch.setattr(gpu_facts, "visible", lambda mask: os.kill(os.getpid(), signal.SIGKILL))
    assert "the process that asked ended with SIGKILL" in gpu_facts.look({}).problem
    assert time.monotonic() - begin < 30


def test_limits_that_are_too_low_are_warnings_with_their_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 26, 0, 64 << 20))
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 65536))
    found = host.shared_memory(here())
    assert (found.state, "64.0 MiB free" in found.message, "--shm-size" in found.fix) == (WARN, True, True)
    found = host.open_files(here())
    assert (found.state, found.fix) == (WARN, "ulimit -n 65536")
    assert host.processes(here()).state == WARN


def test_a_small_machine_for_the_job_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "count_cpus", lambda: 4)
    monkeypatch.setattr(host, "memory_limit", lambda: 3 << 30)
    monkeypatch.setattr(host, "memory_left", lambda: 1 << 30)
    four = Config(cluster=ClusterConfig(gpus_per_node=4))
    assert host.memory(here(four)).state == WARN
    assert "1.0 GiB available (limit 3.0 GiB) for 4 workers" in host.memory(here(four)).message
    assert host.cores(here(four)).state == PASS
    assert host.cores(here(Config(cluster=ClusterConfig(gpus_per_node=8)))).fix == "cluster.gpus_per_node=4"
    greedy = Config(cluster=ClusterConfig(gpus_per_node=2), data=DataConfig(workers=16))
    assert host.cores(here(greedy)).fix == "data.workers=2"


def test_a_run_directory_that_cannot_be_and_one_without_room_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    inside = Config(run=RunConfig(dir=str(tmp_path / "file" / "runs")))
    assert places.run_directory(here(inside)).state == FAIL
    deep = Config(run=RunConfig(dir=str(tmp_path / "deep" / "er")))
    assert places.run_directory(here(deep)).state in (PASS, WARN)
    free, inodes = 1 << 20, 1 << 20
    monkeypatch.setattr(os, "statvfs", lambda path: Space(4096, free // 4096, 1 << 30, inodes))
    found = places.run_directory(here(deep))
    assert (found.state, "1.0 MiB free" in found.message) == (FAIL, True)
    free, inodes = 1 << 40, 10
    found = places.run_directory(here(deep))
    assert (found.state, "10 more files" in found.message) == (FAIL, True)


def test_data_that_are_not_there_or_are_no_images_fail(tmp_path: Path) -> None:
    def found(root: str | None) -> tuple[str, str]:
        finding = places.data(here(Config(data=DataConfig(root=root))))
        return finding.state, finding.message

    assert found(f"{tmp_path}/nope") == (FAIL, f"data.root={tmp_path / 'nope'} does not exist")
    assert found(str(tmp_path))[0] == FAIL
    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "one.jpg").write_bytes(b"x")
    assert found(str(tmp_path))[0] == found(None)[0] == PASS


def test_other_packages_of_our_names_and_versions_that_do_not_fit_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: ["torch>=99", "no-such-thing", "other; extra == 'test'"])
    message = software.packages(here()).message
    assert "wanted >=99" in message
    assert "no-such-thing is missing" in message
    assert "other" not in message
    monkeypatch.setattr(software, "__file__", "/elsewhere/launcher/doctor/software.py")
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"trainer": ["coqui-tts-trainer"]})
    found = software.module_names(here())
    assert (found.state, str(ROOT / "trainer") in found.message) == (FAIL, True)
    assert "of the package coqui-tts-trainer" in found.message
    assert found.fix.startswith("pip uninstall coqui-tts-trainer;")


def test_a_package_of_the_index_that_was_installed_over_ours_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = tmp_path / "site-packages"
    for name in ("trainer", "launcher", "launcher/doctor"):
        (packages / name).mkdir(parents=True)
        (packages / name / "__init__.py").touch()
    monkeypatch.setattr(software, "__file__", str(packages / "launcher" / "doctor" / "software.py"))
    place = {name: packages / name / "__init__.py" for name in ("trainer", "launcher")}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: ModuleSpec(name, None, origin=str(place[name])))
    owners = {"trainer": ["paceline"], "launcher": ["paceline"]}
    monkeypatch.setattr(metadata, "packages_distributions", lambda: owners)
    assert software.module_names(here()).state == PASS
    owners["trainer"].append("coqui-trainer")
    found = software.module_names(here())
    assert (found.state, found.fix.startswith("pip uninstall coqui-trainer;")) == (FAIL, True)


def test_a_busy_port_fails_and_hidden_gpus_fail_only_who_needs_them() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = Config(cluster=ClusterConfig(port=taken.getsockname()[1]))
        assert network.rendezvous(here(config)).state == FAIL
    hidden = Machine("580.1", (13, 0), hidden=2)
    assert graphics.gpus(here()).state == PASS
    assert graphics.gpus(replace(here(), machine=hidden)).state == WARN
    found = graphics.gpus(replace(here(Config(device="cuda")), machine=hidden))
    assert (found.state, found.fix) == (FAIL, "unset CUDA_VISIBLE_DEVICES")


def test_whether_a_key_for_wandb_is_set_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/nowhere")
    used = Config(tracking=TrackingConfig(wandb=WandbConfig()))
    assert "offline" in software.wandb(here(used)).message
    insists = Config(tracking=TrackingConfig(wandb=WandbConfig(mode="online")))
    assert software.wandb(here(insists)).state == FAIL
    assert "online" in software.wandb(here(used, WANDB_API_KEY="x" * 40)).message
    assert software.wandb(here()).message == "not used"


GOOD = GpuFacts(
    0, uncorrected=0, rows_pending=False, rows_failed=False, brakes=1, persistent=True, lanes=16, most_lanes=16
)


def on(*gpus: GpuFacts, cuda: tuple[int, int] = (13, 0), config: Config | None = None) -> Surroundings:
    return Surroundings(config or Config(), {}, Machine("580.1", cuda, gpus, visible=len(gpus)))


@pytest.mark.parametrize(
    ("check", "changed", "state", "words"),
    [
        (graphics.gpu_memory, {}, PASS, "no uncorrectable errors"),
        (graphics.gpu_memory, {"uncorrected": None}, PASS, "without ECC"),
        (graphics.gpu_memory, {"uncorrected": 1}, FAIL, "GPU 0: 1 uncorrectable error since"),
        (graphics.gpu_memory, {"rows_failed": True}, FAIL, "GPU 0: a defect row"),
        (graphics.gpu_memory, {"rows_pending": True}, WARN, "rows of GPU 0 wait"),
        (graphics.gpu_clocks, {}, PASS, "nothing holds them down"),
        (graphics.gpu_clocks, {"brakes": 0x88, "celsius": 90}, WARN, "by hardware slowdown, power brake at 90 °C"),
        (graphics.gpu_clocks, {"persistent": False}, WARN, "GPU 0 without persistence mode"),
        (graphics.gpu_clocks, {"persistent": False, "has_display": True}, PASS, "nothing holds them down"),
        (graphics.gpu_links, {}, PASS, "PCI Express"),
        (graphics.gpu_links, {"lanes": 4}, WARN, "GPU 0 has 4 lanes of 16"),
        (graphics.gpu_links, {"lanes": None}, PASS, "PCI Express"),
        (graphics.gpu_links, {"nvlinks": 18}, PASS, "18 NVLinks each"),
        (graphics.gpu_programs, {}, PASS, "none"),
        (graphics.gpu_programs, {"programs": ("python (process 7 of me)",)}, WARN, "python (process 7 of me) on GPU 0"),
        (graphics.gpus, {"memory_bytes": 100, "used_bytes": 9}, PASS, "1 visible: 1x GPU (100 bytes)"),
        (graphics.gpus, {"memory_bytes": 100, "used_bytes": 11}, WARN, "memory in use already: GPU 0 (11 bytes)"),
        (graphics.gpus, {}, FAIL, "no answer from GPU 0"),
    ],
)
def test_a_gpu_is_judged(check: Check[Surroundings], changed: dict[str, Any], state: str, words: str) -> None:
    found = check(on(replace(GOOD, **changed)))
    assert (found.state, words in found.message, bool(found.fix)) == (state, True, state != PASS), found


def test_gpus_that_are_left_out_are_left_out_by_the_command_beside_the_finding() -> None:
    eight = [replace(GOOD, index=index, uncorrected=int(index == 2)) for index in range(4)]
    assert "export CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=0,1,3" in graphics.gpu_memory(on(*eight)).fix
    assert "another machine" in graphics.gpu_memory(on(eight[2])).fix


def test_links_that_differ_are_warnings_and_cards_that_reach_each_other_through_the_host_are_not() -> None:
    differ = graphics.gpu_links(on(replace(GOOD, nvlinks=18), replace(GOOD, index=1, nvlinks=17)))
    assert (differ.state, differ.message) == (WARN, "NVLinks differ: 18, 17")
    pair = replace(GOOD, unreachable=(1,)), replace(GOOD, index=1)
    apart = graphics.gpu_links(on(*pair))
    assert apart.message == "PCI Express; no direct access between GPU 0 and 1: through the host's memory"
    assert apart.state == PASS
    assert graphics.gpu_links(on(*(replace(gpu, nvlinks=4) for gpu in pair))).state == WARN


@pytest.mark.parametrize(
    ("capability", "cuda", "tag"),
    [
        ((9, 0), (13, 1), "cu130"),
        ((12, 1), (13, 0), "cu130"),
        ((7, 5), (13, 0), "cu130"),
        ((9, 0), (12, 4), "cu126"),
        ((7, 0), (13, 0), "cu126"),
        ((6, 1), (12, 0), "cu126"),
        ((10, 0), (12, 8), ""),
        ((8, 0), (11, 4), ""),
        ((3, 5), (11, 4), ""),
    ],
)
def test_the_image_for_gpu_and_driver_is_named(capability: tuple[int, int], cuda: tuple[int, int], tag: str) -> None:
    found = software.container(on(replace(GOOD, capability=capability), cuda=cuda))
    assert (found.state == PASS, f"paceline:{tag} suits" in found.message) == (bool(tag), bool(tag)), found
    assert bool(found.fix) == (not tag)


def test_gpus_of_several_generations_get_one_image_or_are_told_apart() -> None:
    volta, blackwell = (replace(GOOD, index=i, capability=c) for i, c in enumerate([(7, 0), (10, 0)]))
    assert (
        "no image has code for all these GPUs (capabilities 10.0, 7.0)"
        in software.container(on(volta, blackwell)).message
    )
    assert "paceline:cpu" in software.container(on()).message
    assert "paceline:cpu" in software.container(on(volta, config=Config(device="cpu"))).message


def test_torch_without_code_for_a_gpu_or_with_a_driver_that_is_too_old_fails_with_the_build_that_helps() -> None:
    # What pip installs here is the build for CUDA 13.0.
    assert software.torch_build(on(replace(GOOD, capability=(9, 0)))).state == PASS
    volta = software.torch_build(on(replace(GOOD, model="V100", capability=(7, 0))))
    assert (volta.state, "has no code for V100 (7.0)" in volta.message, "build cu126" in volta.fix) == (
        FAIL,
        True,
        True,
    )
    old = software.torch_build(on(replace(GOOD, capability=(9, 0)), cuda=(12, 4)))
    assert (old.state, old.fix.startswith("a newer driver, or torch's build cu126")) == (FAIL, True)
    unused = software.torch_build(on(replace(GOOD, capability=(7, 0)), config=Config(device="cpu")))
    assert unused.state == PASS


def test_xids_in_the_kernels_log_are_named_and_those_of_hardware_fail() -> None:
    # As the driver prints them.
    lost = "[74889.644138] NVRM: Xid (PCI:0000:02:00): 79, GPU has fallen off the bus.\n"
    own = "[12.1] NVRM: Xid (PCI:0000:65:00): 31, pid=7, name=python, Ch 00000008, intr 00000000. MMU Fault\n"
    assert graphics.judge_xids("nothing of ours").state == PASS
    found = graphics.judge_xids(own * 3)
    assert (found.state, found.message) == (
        WARN,
        "Xid 31 on 0000:65:00 (a kernel's access to memory that is not its own) x3",
    )
    assert "program's own error" in found.fix
    # What the GPU has mended by itself is no reason to do without it.
    mended = graphics.judge_xids("NVRM: Xid (PCI:0000:65:00): 63, pid=1, Row Remapper: New row marked for remapping")
    assert (mended.state, "--gpu-reset" in mended.fix) == (WARN, True)
    found = graphics.judge_xids(own + lost)
    assert (found.state, "Xid 79 on 0000:02:00 (the GPU has fallen off the bus)" in found.message) == (FAIL, True)


def test_the_limits_of_the_control_group_and_of_locked_memory_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "user" / "me").mkdir(parents=True)
    (tmp_path / "user" / "pids.max").write_text("max\n")
    (tmp_path / "membership").write_text("0::/user/me\n")
    monkeypatch.setattr(host, "_CGROUPS", tmp_path)
    monkeypatch.setattr(host, "_MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY,) * 2)
    assert host.processes(here()).message == "unlimited"
    assert host.locked_memory(here()).state == PASS
    (tmp_path / "user" / "pids.max").write_text("100\n")
    assert host.processes(here()).message == "at most 100, threads included"
    monkeypatch.setattr(resource, "getrlimit", lambda which: (8 << 20, 8 << 20))
    monkeypatch.setattr(host, "_INFINIBAND", tmp_path)
    assert (host.locked_memory(here()).state, host.locked_memory(here()).fix) == (WARN, "ulimit -l unlimited")


def test_a_name_of_this_machine_that_others_cannot_reach_is_a_warning_with_several_nodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "127.0.1.1")
    several = Config(cluster=ClusterConfig(nodes=2))
    assert (network.host_name(here()).state, network.host_name(here(several)).state) == (PASS, WARN)

    def unknown(name: str) -> str:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "gethostbyname", unknown)
    assert "has no address" in network.host_name(here()).message
    monkeypatch.setattr(socket, "gethostbyname", lambda name: time.sleep(60))
    monkeypatch.setattr(network, "_RESOLVE_S", 0.2)
    assert (network.host_name(here()).state, network.host_name(here(several)).state) == (WARN, FAIL)
    assert "no answer within 0.2 s of the name server" in network.host_name(here()).message


def test_what_a_job_of_ours_listens_on_is_listed_and_every_interface_is_a_warning() -> None:
    serves = (
        "import socket, sys; s = socket.create_server((sys.argv[1], 0)); print(s.getsockname()[1], flush=True); input()"
    )
    for address, state in (("127.0.0.1", PASS), ("0.0.0.0", WARN)):
        with subprocess.Popen(
            [sys.executable, "-c", serves, address],
            env={**os.environ, "PACELINE_RUN_DIR": "/runs/x"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as job:
            assert job.stdout is not None
            place = f"{address}:{job.stdout.readline().strip()}"
            found = network.listening(here())
            assert (found.state, place in found.message) == (state, True)
            # The command that has started it, which conducts several nodes, belongs to the job as well.
            with socket.create_server((address, 0)) as server:
                assert f"{address}:{server.getsockname()[1]}" in network.listening(here()).message
            job.communicate("\n")


def test_a_disk_that_is_slow_and_a_queue_that_is_half_there_are_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here_ = here(Config(run=RunConfig(dir=str(tmp_path))))
    assert "/s to the disk, reads" in places.run_directory(here_).message
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(places, "measure_speed", lambda folder, most: (1 << 20, 1 << 30, 16))
    assert places.run_directory(here_).state == WARN
    assert places.read_rate(tmp_path) is None
    for number in range(64):
        (tmp_path / f"{number}").write_bytes(bytes(1000))
    rate = places.read_rate(tmp_path)
    assert rate is not None
    assert rate[1] == pytest.approx(1000 * rate[0])
    assert software.slurm(here(PATH=str(tmp_path))).message == "not here"
    (tmp_path / "sbatch").touch(0o755)
    assert software.slurm(here(PATH=str(tmp_path))).message == "without srun, scancel, squeue, sacct, scontrol"
