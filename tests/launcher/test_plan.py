"""The plan, the count of cores and the run's name: everything that is pure."""

import dataclasses
import importlib.util
import mmap
import time
from pathlib import Path

import pytest

from launcher.plan import (
    JobPlan,
    Program,
    again_command,
    hang_timeout_s,
    plan_job,
    render,
    torchrun_command,
)
from launcher.variables import _NCCL, Variable
from trainer.check.validate import validate_launch
from trainer.config import ClusterConfig, Config, RunConfig
from trainer.cores import cgroup_quota, count_cpus
from trainer.errors import ConfigError, UnfitError
from trainer.run import runname
from trainer.wording import command

TORCH_LIBRARIES = Path(importlib.util.find_spec("torch").origin).parent / "lib"  # type: ignore[union-attr,arg-type]
SCRIPT = Program("script", "my train.py", ("--lr", "1"))
TRAINER = Program("trainer", "trainer")


def planned(
    *,
    gpus: int = 0,
    cpus: int = 8,
    program: Program = TRAINER,
    environment: dict[str, str] | None = None,
    device: str = "auto",
    workers: int | None = None,
    port: int | None = None,
    nodes: int = 1,
) -> JobPlan:
    config = Config(device=device, cluster=ClusterConfig(nodes=nodes, gpus_per_node=workers, port=port))
    overrides = ["recipe=digits", "run.fresh=true", "optim.args={a: 1}"]
    return plan_job(config, program=program, overrides=overrides, gpus=gpus, cpus=cpus, environment=environment or {})


@pytest.mark.parametrize(
    ("gpus", "asked", "device", "workers"),
    [
        (0, None, "auto", 2),
        (8, None, "auto", 8),
        (8, None, "cpu", 2),
        (8, 3, "cuda", 3),
        (0, 5, "auto", 5),
        (1, 4, "cpu", 4),
    ],
)
def test_workers_are_one_for_each_gpu_or_two_unless_asked_otherwise(
    gpus: int, asked: int | None, device: str, workers: int
) -> None:
    assert planned(gpus=gpus, workers=asked, device=device).workers_per_node == workers


@pytest.mark.parametrize(
    ("gpus", "asked", "device", "words"),
    [
        (0, None, "cuda", "no GPU is visible"),
        (2, 3, "auto", "only 2 GPUs are visible"),
        (1, 2, "cuda", "only 1 GPU is visible"),
    ],
)
def test_gpus_that_are_not_there_make_the_machine_unfit(gpus: int, asked: int | None, device: str, words: str) -> None:
    with pytest.raises(UnfitError, match=words):
        planned(gpus=gpus, workers=asked, device=device)


@pytest.mark.parametrize(("cpus", "workers", "threads"), [(8, 2, "4"), (9, 2, "4"), (1, 4, "1")])
def test_threads_are_the_cores_of_each_worker(cpus: int, workers: int, threads: str) -> None:
    values = {v.name: v.value for v in planned(cpus=cpus, workers=workers).environment}
    assert values["OMP_NUM_THREADS"] == threads


def test_nodes_on_one_machine_share_its_gpus_and_cores_and_each_has_its_command_by_hand() -> None:
    plan = planned(gpus=5, device="auto", cpus=8, nodes=2)
    assert (plan.nodes, plan.workers_per_node, plan.world_size) == (2, 2, 4)
    assert {v.name: v.value for v in plan.environment}["OMP_NUM_THREADS"] == "2"
    assert [torchrun_command(plan, node).partition("torchrun ")[2].partition(" -m ")[0] for node in (0, 1)] == [
        f"--nnodes=2 --node-rank={node} --master-addr=127.0.0.1 --master-port=29500 --nproc-per-node=2"
        for node in (0, 1)
    ]
    assert "nodes        2 (all on this machine)" in render(plan)
    with pytest.raises(UnfitError, match="only 2 GPUs are visible for each of 2 nodes"):
        planned(gpus=5, workers=3, device="auto", nodes=2)
    with pytest.raises(UnfitError, match=r"cluster\.nodes=3 on this machine, but only 2 GPUs for them"):
        planned(gpus=2, device="auto", nodes=3)
    assert planned(gpus=2, device="cpu", nodes=3).workers_per_node == 2


def test_a_users_own_thread_count_wins_and_is_marked_as_theirs() -> None:
    plan = planned(environment={"OMP_NUM_THREADS": "7", "HOME": "/x"})
    assert [v for v in plan.environment if "OMP" in v.name] == [Variable("OMP_NUM_THREADS", "7", "you")]


def test_the_workers_of_one_machine_listen_where_nobody_else_reaches_them_unless_the_user_says_where() -> None:
    def interfaces(gpus: int, **yours: str) -> dict[str, str | None]:
        plan = planned(gpus=gpus, device="auto", environment=yours)
        return {v.name: v.value for v in plan.environment if v.name.endswith("SOCKET_IFNAME")}

    assert interfaces(0) == {"GLOO_SOCKET_IFNAME": "lo"}
    assert interfaces(1) == {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    assert interfaces(1, GLOO_SOCKET_IFNAME="ib0") == {"GLOO_SOCKET_IFNAME": "ib0", "NCCL_SOCKET_IFNAME": "lo"}


def test_what_makes_nccls_failures_visible_is_set_on_gpus_alone_and_a_users_own_value_wins() -> None:
    def values(**yours: str) -> dict[str, tuple[str | None, str]]:
        plan = planned(gpus=2, device="auto", environment=yours)
        return {
            v.name: (v.value, v.source)
            for v in plan.environment
            if not v.name.startswith(("OMP", "GLOO", "NCCL_SOCKET"))
        }

    assert {name: value for name, (value, _) in values().items()} == {
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",
        "TORCH_NCCL_ENABLE_MONITORING": "1",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_FR_BUFFER_SIZE": "2000",
    }
    assert values(TORCH_NCCL_DUMP_ON_TIMEOUT="0")["TORCH_NCCL_DUMP_ON_TIMEOUT"] == ("0", "you")
    # torch takes the newer name where both are set: ours would win over theirs.
    older = values(NCCL_ASYNC_ERROR_HANDLING="0", TORCH_NCCL_TRACE_BUFFER_SIZE="50")
    assert not {"TORCH_NCCL_ASYNC_ERROR_HANDLING", "TORCH_FR_BUFFER_SIZE"} & older.keys()
    assert not any(v.name.startswith("TORCH_") for v in planned().environment)


def test_torch_knows_the_names_that_are_set_for_nccl() -> None:
    libraries = [lib for lib in TORCH_LIBRARIES.glob("libtorch_c*.so") if lib.stem in ("libtorch_cpu", "libtorch_cuda")]
    if not any("cuda" in lib.name for lib in libraries):
        pytest.skip("torch is built without CUDA")
    names = {name.encode() for names in _NCCL for name in names}
    for library in libraries:
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            names = {name for name in names if content.find(name + b"\0") < 0}
    assert not names


@pytest.mark.parametrize(
    ("given", "seconds"), [("auto", None), (None, None), ("0", 0.0), ("300", 300.0), ("1.5m", 90.0), ("2h", 7200.0)]
)
def test_the_time_of_a_hang_is_learnt_unless_it_is_set(given: str | None, seconds: float | None) -> None:
    config = Config(cluster=ClusterConfig(hang_timeout=given))
    assert hang_timeout_s(config) == seconds
    validate_launch(config)


@pytest.mark.parametrize("given", ["off", "0.5", "-1", "1d", ""])
def test_what_is_no_time_is_refused_with_what_to_write(given: str) -> None:
    with pytest.raises(ConfigError, match=r"hang_timeout=(1s or more|90s)"):
        validate_launch(Config(cluster=ClusterConfig(hang_timeout=given)))


def test_a_secret_is_in_no_plan_that_is_shown() -> None:
    plan = planned(environment={"WANDB_API_KEY": "hidden-value", "HF_ENDPOINT": "https://me:hidden-value@host"})
    assert Variable("WANDB_API_KEY", None, "you") in plan.environment
    assert "hidden-value" not in plan.to_json()


def test_a_plan_survives_its_way_to_the_agent() -> None:
    plan = planned(program=SCRIPT, environment={"NCCL_DEBUG": "INFO", "X_KEY": "abc"}, port=1234)
    assert JobPlan.from_json(plan.to_json()) == plan


def test_the_command_by_hand_can_be_pasted() -> None:
    plan = planned(program=SCRIPT, workers=2)
    assert torchrun_command(plan) == (
        f"OMP_NUM_THREADS=4 GLOO_SOCKET_IFNAME=lo {command('torchrun')} --standalone --nproc-per-node=2 "
        "'my train.py' --lr 1"
    )
    assert torchrun_command(planned(port=1234)).endswith(
        "--rdzv-endpoint=127.0.0.1:1234 --nproc-per-node=2 -m trainer recipe=digits run.fresh=true 'optim.args={a: 1}'"
    )


def test_the_command_to_go_on_names_the_run_and_does_not_start_afresh() -> None:
    assert again_command(planned(), "x-2").endswith("paceline run recipe=digits 'optim.args={a: 1}' run.name=x-2")
    assert again_command(planned(program=SCRIPT), "x").endswith("run.name=x -- 'my train.py' --lr 1")


def test_a_cpu_quota_is_found_in_the_group_and_above_it(tmp_path: Path) -> None:
    assert count_cpus() >= 1
    membership = tmp_path / "cgroup"
    membership.write_text("4:cpu,cpuacct:/job/step\n0::/a/b\n")
    assert cgroup_quota(tmp_path, membership) is None
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/cpu.max").write_text("max 100000\n")
    assert cgroup_quota(tmp_path, membership) is None
    (tmp_path / "a/cpu.max").write_text("350000 100000\n")
    assert cgroup_quota(tmp_path, membership) == 3.5
    (tmp_path / "cpu/job").mkdir(parents=True)
    (tmp_path / "cpu/job/cpu.cfs_quota_us").write_text("150000\n")
    (tmp_path / "cpu/job/cpu.cfs_period_us").write_text("100000\n")
    assert cgroup_quota(tmp_path, membership) == 1.5


NOW = time.struct_time((2026, 11, 23, 17, 12, 0, 0, 327, -1))


def test_an_unnamed_run_is_called_after_its_recipe_and_the_time_and_never_taken_twice(tmp_path: Path) -> None:
    run = RunConfig(dir=str(tmp_path))
    names = [runname.create(run, "vit/b 16", NOW).name for _ in range(3)]
    assert names == ["vit_b_16-1123-1712", "vit_b_16-1123-1712-2", "vit_b_16-1123-1712-3"]


def test_a_named_run_is_continued_and_a_fresh_one_lies_beside_it(tmp_path: Path) -> None:
    named = RunConfig(name="x", dir=str(tmp_path))
    fresh = dataclasses.replace(named, fresh=True)
    assert runname.create(named, "r").name == "x"
    (tmp_path / "x" / "kept").touch()
    assert runname.create(named, "r").name == "x"
    assert [runname.create(fresh, "r").name for _ in range(2)] == ["x-2", "x-3"]
    assert (tmp_path / "x" / "kept").exists()
    assert runname.choose(fresh, "r").name == "x-4"
    assert not (tmp_path / "x-4").exists()


@pytest.mark.parametrize("name", ["a/b", "../x", "", ".hidden", "-x", "x\n", "x" * 201])
def test_a_name_that_is_no_directory_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        runname.create(RunConfig(name=name, dir=str(tmp_path)), "r")
    assert list(tmp_path.iterdir()) == []
