import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import until
from trainer.monitor.host import Host, memory_cgroup


def _host(root_pid: int | None = None) -> Host:
    return Host(lambda what, problem: pytest.fail(f"{what}: {problem}"), root_pid=root_pid)


def test_the_hosts_figures_are_there_and_plausible() -> None:
    host = _host()
    host.sample()
    Path("/dev/shm/paceline-test").write_bytes(b"x" * 2**20)
    try:
        figures = host.sample()
    finally:
        Path("/dev/shm/paceline-test").unlink()
    assert 0 <= figures["host/cpu_percent"] <= 100
    assert figures["host/cpu_count"] == len(os.sched_getaffinity(0))
    assert 0 < figures["host/memory_used_bytes"] <= figures["host/memory_total_bytes"]
    assert 2**20 <= figures["host/shm_used_bytes"] <= figures["host/shm_total_bytes"]
    rates = [value for name, value in figures.items() if name.endswith("_per_second")]
    assert rates
    assert all(rate >= 0 for rate in rates)


def test_rates_are_absent_until_there_are_two_samples() -> None:
    host = _host()
    first, second = host.sample(), host.sample()
    assert not [name for name in first if name.endswith(("per_second", "cpu_percent"))]
    assert {"host/cpu_percent", "host/job_cpu_percent"} <= second.keys()


def test_the_jobs_cpu_share_counts_child_processes_and_not_others() -> None:
    loop = "import sys\nprint('on', flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", loop], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        try:
            ours, childs = _host(root_pid=os.getpid()), _host(root_pid=child.pid)
            ours.sample(), childs.sample()
            begin = _cpu_seconds(child.pid)
            until(lambda: _cpu_seconds(child.pid) - begin > 0.3, "the child has computed")
            with_child = ours.sample()["host/job_cpu_percent"]
            of_child = childs.sample()["host/job_cpu_percent"]
        finally:
            child.kill()
    assert of_child > 5
    assert with_child >= 0.8 * of_child


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_process_tree_that_ended_is_a_gap_that_is_told_once() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    reports: list[str] = []
    host = Host(lambda what, problem: reports.append(what), root_pid=child.pid)
    for _ in range(3):
        figures = host.sample()
    assert "host/job_cpu_percent" not in figures
    assert "host/memory_used_bytes" in figures
    assert reports == ["host processes"]


def test_the_lowest_memory_limit_of_the_cgroup_and_its_parents_counts(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    step = root / "system.slice" / "job_7" / "step_0"
    step.mkdir(parents=True)
    (step / "memory.max").write_text("max\n")
    (step.parent / "memory.max").write_text("4000000\n")
    (step.parent.parent / "memory.max").write_text("9000000\n")
    membership = tmp_path / "membership"
    membership.write_text("0::/system.slice/job_7/step_0\n")
    assert memory_cgroup(membership, root) == step.parent


def test_a_container_finds_its_limit_at_the_root_whatever_path_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("4000000\n")
    membership = tmp_path / "membership"
    membership.write_text("0::/docker/abc\n")
    assert memory_cgroup(membership, tmp_path) == tmp_path


@pytest.mark.parametrize("membership", ["0::/job\n", "12:memory:/job\n", ""])
def test_without_a_limit_there_is_no_cgroup_to_look_at(tmp_path: Path, membership: str) -> None:
    (tmp_path / "membership").write_text(membership)
    assert memory_cgroup(tmp_path / "membership", tmp_path) is None
    assert memory_cgroup(tmp_path / "missing", tmp_path) is None


def test_memory_under_a_limit_is_the_cgroups_without_its_file_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory.max").write_text("4000000\n")
    (tmp_path / "memory.current").write_text("3000000\n")
    (tmp_path / "memory.stat").write_text("anon 1900000\ninactive_file 1000000\nactive_file 100000\n")
    monkeypatch.setattr("trainer.monitor.host.memory_cgroup", lambda membership, root: tmp_path)
    figures = _host().sample()
    assert figures["host/memory_used_bytes"] == 2_000_000
    assert figures["host/memory_total_bytes"] == 4_000_000
