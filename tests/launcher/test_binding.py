"""Which cores workers are bound to, on machines that are only described, and on this one."""

import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.binding import Topology, bind, described, look
from launcher.plan import Program, of_node, plan_job
from tests.trainer_command import ROOT
from trainer.config import ClusterConfig, Config, DataConfig
from trainer.cores import as_list, from_list, per_worker

SCRIPT = Program("script", "train.py")
TRAINER = Program("trainer", "trainer")


def machine(*sizes: int, gpus: tuple[int | None, ...] = (), far: int = 32) -> Topology:
    """NUMA nodes with so many cores each; two neighbours are a socket."""
    starts = [sum(sizes[:node]) for node in range(len(sizes))]
    distances = {
        one: {other: 10 if one == other else 12 if one // 2 == other // 2 else far for other in range(len(sizes))}
        for one in range(len(sizes))
    }
    nodes = {node: frozenset(range(starts[node], starts[node] + size)) for node, size in enumerate(sizes)}
    return Topology(nodes, distances, gpus)


@given(st.sets(st.integers(0, 300)))
def test_cores_are_listed_as_the_kernel_does(cores: set[int]) -> None:
    assert from_list(as_list(cores)) == cores
    assert from_list("0-3,8,10-11\n") == {0, 1, 2, 3, 8, 10, 11}
    assert as_list([8, 0, 1, 2, 3]) == "0-3,8"


@st.composite
def machines(draw: st.DrawFn) -> tuple[Topology, int, bool, int | None]:
    sizes = draw(st.lists(st.integers(0, 12), min_size=0, max_size=6))
    numbers = draw(st.permutations(range(sum(sizes))))
    nodes, start = {}, 0
    for node, size in enumerate(sizes):
        if size:
            nodes[node] = frozenset(numbers[start : start + size])
            start += size
    distances = {one: {other: draw(st.sampled_from([11, 12, 32])) for other in nodes} for one in nodes}
    workers, on_gpus = draw(st.integers(1, 9)), draw(st.booleans())
    home = (
        st.sampled_from([*nodes, *nodes, *nodes, None, 7]) if draw(st.booleans()) else st.sampled_from([*nodes, None])
    )
    gpus = tuple(draw(st.lists(home, min_size=workers, max_size=workers))) if on_gpus else ()
    return Topology(nodes, distances, gpus), workers, on_gpus, draw(st.none() | st.integers(1, 12))


@given(machines())
def test_every_core_is_divided_fairly_and_none_is_taken_that_is_not_ours(
    case: tuple[Topology, int, bool, int | None],
) -> None:
    topology, workers, on_gpus, needed = case
    everything = frozenset[int]().union(*topology.nodes.values())
    fair = len(everything) // workers
    enough = min(fair, needed or fair)
    bound = bind(topology, workers, on_gpus=on_gpus, needed=needed)
    if not bound.cores:
        assert bound.share == fair
        known = all(gpu in topology.nodes for gpu in topology.gpus)
        if known and on_gpus and fair and len(set(topology.gpus)) > 1 and not bound.why_not:
            pytest.fail("workers of several NUMA nodes, and no reason not to bind them")
        return
    assert not bound.why_not
    sets = [from_list(cores) for cores in bound.cores]
    assert len(sets) == workers
    for mine in sets:
        assert mine
        assert mine <= everything
    for one, other in combinations(sets, 2):
        # Those who share cores share all of them, so that "divided evenly" has one meaning.
        assert one == other or not one & other
    assert bound.share == min(len(mine) // sets.count(mine) for mine in sets)
    assert bound.share == min(per_worker(cores, bound.cores) for cores in bound.cores)
    assert bound.share >= enough >= 1
    for worker, home in enumerate(topology.gpus):
        assert home is not None
        assert topology.nodes[home] <= sets[worker]
        if all(len(topology.nodes[of]) // topology.gpus.count(of) >= enough for of in set(topology.gpus)):  # type: ignore[index]
            assert sets[worker] == topology.nodes[home], "near cores suffice"


TWO = machine(32, 32)
A100 = (3, 3, 1, 1, 7, 7, 5, 5)
"""The GPUs of a DGX A100 with four NUMA nodes a socket: only every other node has some."""


@pytest.mark.parametrize(
    ("topology", "workers", "needed", "words"),
    [
        (machine(64, gpus=(0,) * 8), 8, 9, ""),
        (machine(32, 32, gpus=(0, 0, 0, 0, 1, 1, 1, 1)), 8, None, "workers 0-3 on cores 0-31, 4-7 on 32-63"),
        (machine(32, 32, gpus=(1, 0)), 2, 9, "worker 0 on cores 32-63, 1 on 0-31"),
        # Half of the machine's GPUs, as another job has the others: enough near them, or else all.
        (machine(32, 32, gpus=(1, 1)), 2, 9, "workers 0-1 on cores 32-63"),
        (machine(32, 32, gpus=(1, 1)), 2, 17, ""),
        (machine(32, 32, gpus=(1, 1)), 2, None, ""),
        (machine(*[16] * 8, gpus=A100), 8, 8, "workers 0-1 on cores 48-63, 2-3 on 16-31, 4-5 on 112-127, 6-7 on 80-95"),
        (
            machine(*[16] * 8, gpus=A100),
            8,
            None,
            "workers 0-1 on cores 32-63, 2-3 on 0-31, 4-5 on 96-127, 6-7 on 64-95",
        ),
        (machine(32, 32, gpus=(0, 0, 0, 1)), 4, 9, "workers 0-2 on cores 0-31, 3 on 32-63"),
        (machine(32, 32, gpus=(0, 0, 0, 1)), 4, 11, "a worker would have 10 cores near its GPU, and may need 11"),
        (machine(32, 32, gpus=(0, None)), 2, 9, "the NUMA node of GPU 1 is not known"),
        (machine(32, 32, gpus=(0, 4)), 2, 9, "none of the cores that we may use is on NUMA node 4, GPU 1's"),
        (machine(1, 1, gpus=(0, 0, 1, 1)), 4, 9, ""),
        (TWO, 1, None, ""),
        (TWO, 2, None, "worker 0 on cores 0-31, 1 on 32-63"),
        (TWO, 4, None, "workers 0-1 on cores 0-31, 2-3 on 32-63"),
        (TWO, 3, None, "a worker would have 16 cores near its NUMA node, and may need 21"),
        (machine(8, 8, 8, 8), 2, None, "worker 0 on cores 0-15, 1 on 16-31"),
        (machine(8, 4), 2, None, "a worker would have 4 cores near its NUMA node, and may need 6"),
    ],
)
def test_machines_as_they_are(topology: Topology, workers: int, needed: int | None, words: str) -> None:
    bound = bind(topology, workers, on_gpus=bool(topology.gpus), needed=needed)
    assert (described(bound.cores) if bound.cores else bound.why_not) == words


def planned(topology: Topology, program: Program = TRAINER, **changes: Any) -> Any:
    config = Config(cluster=ClusterConfig(**changes.pop("cluster", {})), data=DataConfig(**changes))
    return plan_job(
        config, program=program, overrides=[], gpus=len(topology.gpus), cpus=64, environment={}, topology=topology
    )  # fmt: skip


def test_a_plan_binds_by_what_its_loading_processes_need_and_counts_threads_by_what_is_left() -> None:
    def threads(plan: Any) -> str:
        return next(v.value for v in plan.environment if v.name == "OMP_NUM_THREADS")

    uneven = machine(32, 32, gpus=(0, 0, 0, 1))
    assert planned(uneven).cores == ("0-31",) * 3 + ("32-63",)
    assert threads(planned(uneven)) == "10"
    refused = planned(uneven, workers=10)
    assert (refused.cores, threads(refused)) == ((), "16")
    assert refused.unbound == "a worker would have 10 cores near its GPU, and may need 11"
    # What a script of the user's needs is not known: not less than it would have.
    assert planned(uneven, SCRIPT).cores == ()
    assert planned(uneven, cluster={"numa_binding": False}).cores == ()
    two = planned(TWO, cluster={"nodes": 2, "gpus_per_node": 1})
    assert [of_node(two, node).cores for node in (0, 1)] == [("0-31",), ("32-63",)]


def test_cores_that_workers_share_are_divided_whatever_bound_them() -> None:
    assert per_worker("0-7", ["0-7", "0-7"]) == 4
    assert per_worker("0-3", ["0-3", "4-7"]) == 4
    assert per_worker("0-6", ["0-6"] * 3) == 2
    assert per_worker("0-20", ["0-20"] * 3) == 7
    assert per_worker("0-7", ["0-7", "0-7"], quota=3.5) == 2
    assert per_worker("0", ["0", "0"]) == 0


SCRIPT_TEXT = """
import os, subprocess, sys
child = [sys.executable, "-c", "import os; print(sorted(os.sched_getaffinity(0)))"]
print("child", os.environ["RANK"], subprocess.check_output(child, text=True).strip())
print("threads", os.environ["OMP_NUM_THREADS"])
"""

RUN = """
import sys
from functools import partial
from pathlib import Path
from launcher import binding
binding.look = partial(binding.look, root=Path("nodes"))
from launcher.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""`paceline` on a machine with other NUMA nodes than this one's."""


def test_workers_and_what_they_start_stay_on_their_cores_and_never_leave_ours(tmp_path: Path) -> None:
    ours = sorted(os.sched_getaffinity(0))
    if len(ours) < 2:
        pytest.skip("one core cannot be divided")
    halves = ours[::2], ours[1::2]
    for node, cores in enumerate(halves):
        (tmp_path / "nodes" / f"node{node}").mkdir(parents=True)
        (tmp_path / "nodes" / f"node{node}" / "cpulist").write_text(as_list(cores) + "\n")
        (tmp_path / "nodes" / f"node{node}" / "distance").write_text("10 20\n")
    (tmp_path / "script.py").write_text(SCRIPT_TEXT)
    assert look(root=tmp_path / "nodes").nodes == {0: frozenset(halves[0]), 1: frozenset(halves[1])}
    assert look(root=tmp_path / "nowhere").nodes == {}

    def seen(*prefix: str, cores: str) -> list[str]:
        command = [*prefix, sys.executable, "-c", RUN, "run", "run.name=job", "device=cpu", "cluster.gpus_per_node=2"]
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        done = subprocess.run(
            [*command, "--", "script.py"], cwd=tmp_path, env={**environment, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, timeout=90, check=True,
        )  # fmt: skip
        assert (cores in done.stderr) if cores else ("cores" not in done.stderr), done.stderr
        logs = sorted((tmp_path / "runs" / "job" / "logs").glob("attempt-*"))[-1]
        return [(logs / f"rank-{rank}.log").read_text() for rank in (0, 1)]

    per_half = len(ours) // 2
    bound = f"worker 0 on cores {as_list(halves[0])}, 1 on {as_list(halves[1])}"
    for rank, log in enumerate(seen(cores=bound)):
        assert f"child {rank} {sorted(halves[rank])}" in log
        assert f"threads {per_half}" in log
    # Of one NUMA node's cores alone there is nothing to choose.
    for rank, log in enumerate(seen("taskset", "-c", as_list(halves[0]), cores="")):
        assert f"child {rank} {sorted(halves[0])}" in log
        assert f"threads {max(1, len(halves[0]) // 2)}" in log
