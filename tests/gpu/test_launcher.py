"""`paceline run` on real GPUs: its agent forks the workers, so it must not have touched CUDA before."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.trainer_command import ROOT
from trainer.run.rows import read_json_lines
from trainer.rundir import RunDir, read_json


def paceline(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "launcher", "run", "run.name=p", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_digits_are_learned_by_forked_workers_on_every_gpu(tmp_path: Path) -> None:
    done = paceline(tmp_path, "recipe=digits", "tracking=none", f"run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    run = RunDir(tmp_path / "p")
    workers = read_json(run.environment)["workers"]
    assert [worker["device"] for worker in workers] == [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    assert read_json(run.summary)["best/accuracy"] > 0.93
    assert any(row.get("gpu/0/memory_used_bytes", 0) > 0 for row in read_json_lines(run.monitor))


def test_a_restarted_attempt_has_the_gpu_to_itself_and_cuda_works_in_its_forks(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import os, torch, torch.distributed as dist\n"
        "assert not torch.cuda.is_initialized()\n"
        "device = torch.device('cuda', int(os.environ['LOCAL_RANK']))\n"
        "torch.cuda.set_device(device)\n"
        "free, total = torch.cuda.mem_get_info()\n"
        "half = torch.ones(total // 2, dtype=torch.uint8, device=device)\n"
        "dist.init_process_group('nccl', device_id=device)\n"
        "one = torch.ones(1, device=device)\n"
        "dist.all_reduce(one)\n"
        "assert one.item() == dist.get_world_size()\n"
        "if os.environ['PACELINE_ATTEMPT'] == '0':\n"
        "    raise ValueError('broken on purpose')\n"
        "dist.destroy_process_group()\n"
    )
    done = paceline(tmp_path, "cluster.max_restarts=1", "--", "script.py")
    assert done.returncode == 0, done.stderr
    assert RunDir(tmp_path / "runs" / "p").next_attempt() == 2


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_flight_records_of_a_hang_are_kept_and_name_who_left_out_a_collective(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import os, time, torch, torch.distributed as dist\n"
        "device = torch.device('cuda', int(os.environ['LOCAL_RANK']))\n"
        "torch.cuda.set_device(device)\n"
        "dist.init_process_group('nccl', device_id=device)\n"
        "dist.all_reduce(torch.ones(1, device=device))\n"
        "def elsewhere():\n"
        "    time.sleep(600)\n"
        "if dist.get_rank() == 1:\n"
        "    elsewhere()\n"
        "dist.all_reduce(torch.ones(1, device=device))\n"
        "dist.barrier()\n"
    )
    done = paceline(tmp_path, "cluster.gpus_per_node=2", "cluster.hang_timeout=10", "--", "script.py")
    assert done.returncode == 124, done.stderr
    run = RunDir(tmp_path / "runs" / "p")
    failure = read_json(run.failure)
    assert (failure["type"], failure["rank"]) == ("Hang", 1)
    assert "in elsewhere (script.py:7)" in failure["message"]
    assert "rank 1 did not begin collective 2" in failure["meaning"]
    assert {f"flight-rank-{rank}" for rank in range(2)} <= {path.name for path in run.log(0, 0).parent.iterdir()}


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_nodes_on_one_machine_have_a_gpu_each_and_compute_what_one_computes(tmp_path: Path) -> None:
    same = ["recipe=digits", "tracking=none", f"run.dir={tmp_path}", "max_steps=6", "deterministic=true"]
    for name, places in (("one", ["cluster.gpus_per_node=2"]), ("two", ["cluster.nodes=2", "cluster.gpus_per_node=1"])):
        done = paceline(tmp_path, *same, *places, f"run.name={name}")
        assert done.returncode == 0, done.stderr
    one, two = RunDir(tmp_path / "one"), RunDir(tmp_path / "two")
    assert one.weights("last").read_bytes() == two.weights("last").read_bytes()
    names = [row["gpu"]["name"] for row in read_json(two.environment)["workers"]]
    assert len(names) == 2
    assert {row["node"] for row in read_json_lines(two.monitor)} == {0, 1}


def test_a_script_that_spins_for_ever_in_a_wait_for_its_gpu_is_ended(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import os, torch\n"
        "device = torch.device('cuda', int(os.environ['LOCAL_RANK']))\n"
        "one = torch.ones(1, device=device)\n"
        "torch.cuda._sleep(1 << 50)\n"
        "one.add(1).item()\n"
    )
    done = paceline(tmp_path, "cluster.hang_timeout=20", "--", "script.py")
    assert done.returncode == 124, done.stderr
    failure = read_json(RunDir(tmp_path / "runs" / "p").failure)
    assert "for the device in <module> (" in failure["message"]
