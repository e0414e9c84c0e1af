"""What is said of workers that do not find the same around them."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.workers import run_workers
from trainer.distributed import World
from trainer.run import differences, environment, surroundings
from trainer.run.rows import read_json_lines
from trainer.rundir import RunDir, read_json


def worker(rank: int, *, per_node: int = 1, torch: str = "2.14.1", **variables: str) -> dict[str, Any]:
    node = rank // per_node
    return {
        "rank": rank,
        "node": node,
        "host": f"gpu{node:02}",
        "python": "3.11.2",
        "packages": {"torch": torch},
        "variables": {"CUDA_VISIBLE_DEVICES": str(rank), **variables},
    }


def nodes(*versions: str, per_node: int = 2) -> list[dict[str, Any]]:
    return [
        worker(rank, per_node=per_node, torch=versions[rank // per_node]) for rank in range(per_node * len(versions))
    ]


@pytest.mark.parametrize(
    ("workers", "lines"),
    [
        (nodes("2.14.1"), []),
        (nodes(*["2.14.1"] * 8), []),
        (
            nodes("2.14.1", "2.13.0", *["2.14.1"] * 6),
            ["node 1 (gpu01) has torch 2.13.0, the other 7 have 2.14.1"],
        ),
        (nodes("2.13.0", "2.14.1"), ["node 1 (gpu01) has torch 2.14.1, node 0 (gpu00) has 2.13.0"]),
        (
            nodes("3", "2", "1", "1", "2", "1", per_node=1),
            ["node 0 (gpu00) has torch 3, nodes 1,4 have 2, the other 3 have 1"],
        ),
        # Within a node it is the ranks that differ.
        (
            [worker(rank, per_node=3, torch=torch) for rank, torch in enumerate(["1", "2", "1"])],
            ["rank 1 has torch 2, the other 2 have 1"],
        ),
        (
            [worker(0), worker(1, NCCL_DEBUG="INFO"), worker(2)],
            ["node 1 (gpu01) has NCCL_DEBUG=INFO, the other 2 have none"],
        ),
        (
            [worker(0, OMP_NUM_THREADS="4"), worker(1), worker(2, OMP_NUM_THREADS="")],
            ["node 1 (gpu01) has no OMP_NUM_THREADS, node 2 (gpu02) has an empty one, node 0 (gpu00) has 4"],
        ),
        (
            [worker(rank, torch=str(rank % 2)) for rank in range(30)],
            ["nodes 1,3,5,7,9,11 ... (15 of them) have torch 1, the other 15 have 0"],
        ),
    ],
)  # fmt: skip
def test_who_differs_is_named_and_the_most_are_not(workers: list[dict[str, Any]], lines: list[str]) -> None:
    assert differences.in_words(workers) == lines


def test_thousands_of_ranks_are_compared_in_no_time() -> None:
    variables = {f"NCCL_{number}": "x" * 200 for number in range(40)}
    ranks = [
        worker(rank, per_node=8, torch="2.13.0" if rank // 8 == 77 else "2.14.1", **variables) for rank in range(8192)
    ]
    began = time.process_time()
    assert differences.in_words(ranks) == ["node 77 (gpu77) has torch 2.13.0, the other 1023 have 2.14.1"]
    usual = differences.common(ranks)
    beside = [differences.beside(rank["variables"], usual) for rank in ranks]
    assert time.process_time() - began < 3
    assert usual.keys() >= variables.keys()
    assert all(of.keys() <= {"CUDA_VISIBLE_DEVICES"} for of in beside)


def test_many_differences_are_told_in_three_lines() -> None:
    lines = list("abcd")
    assert differences.shortened(lines[:3], "there") == ["a", "b", "c"]
    assert differences.shortened(lines, "there") == ["a", "b", "2 further differences among the workers: there"]


def test_the_drivers_version_is_read_without_it(tmp_path: Path) -> None:
    file = tmp_path / "version"
    assert surroundings._driver(file) is None
    for line in (
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  Release Build  (dvs-builder@U16)",
    ):
        file.write_text(f"{line}\nGCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n")
        assert surroundings._driver(file) == "550.54.15"


def differ(world: World, folder: Path) -> list[str]:
    os.environ["NCCL_DEBUG"] = "INFO" if world.rank == 1 else "WARN"
    os.environ["HF_TOKEN"] = f"value-of-a-secret-{world.rank}"
    os.environ["NCCL_PASSED"] = f"value-of-a-secret-{world.rank}"
    return environment.write(RunDir(folder), world, attempt=0)


def test_ranks_compare_what_they_found_and_no_secret_is_shown(tmp_path: Path) -> None:
    told = run_workers(2, differ, tmp_path)
    assert told[1] == []
    assert "rank 1 has NCCL_DEBUG=INFO, rank 0 has WARN" in told[0]
    run = RunDir(tmp_path)
    for path in (run.environment, run.attempt_environment(0)):
        kept = read_json(path)
        assert kept["differences"] == told[0]
        assert [row["variables"].get("NCCL_DEBUG") for row in kept["workers"]].count(None) == 1
        assert (kept["variables"]["HF_TOKEN"], kept["variables"]["NCCL_PASSED"]) == ("set, not shown", "$HF_TOKEN")
        assert [row["rank"] for row in kept["workers"]] == [0, 1]
        assert "value-of-a-secret" not in path.read_text()
    [event] = read_json_lines(run.events)
    assert (event["event"], event["differences"]) == ("environments_differ", told[0])
