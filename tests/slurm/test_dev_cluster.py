"""The development cluster: jobs run on it, its nodes fail as told, and nothing of it is left or listens outside."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import psutil
import pytest

from tests.mounts import mounted
from tests.slurm.conftest import TOOLS, Run
from tests.waiting import until

_REACH = "timeout 3 bash -c '</dev/tcp/{}/6818' 2>/dev/null && echo reached || echo not reached"


def reach(slurm: Run, there: str) -> str:
    return slurm("node", "exec", "node1", "bash", "-c", _REACH.format(there)).stdout.strip()


def processes_of_the_cluster() -> list[str]:
    names = {"slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd", "slurmstepd"}
    return [one.name() for one in psutil.process_iter() if one.name() in names]


def test_a_job_gets_nodes_with_names_addresses_and_gpus_of_their_own_and_is_accounted(slurm: Run) -> None:
    script = "echo $(hostname) $(getent hosts node2 | cut -d' ' -f1) gpus $CUDA_VISIBLE_DEVICES"
    done = slurm("srun", "-J", "look", "-N2", "--ntasks-per-node=1", "--gres=gpu:2", "bash", "-c", script)
    assert sorted(done.stdout.splitlines()) == ["node1 198.18.77.12 gpus 0,1", "node2 198.18.77.12 gpus 0,1"]
    account = ("sacct", "-n", "-X", "-P", "--name=look", "--format=state,nodelist")
    until(lambda: slurm(*account).stdout == "COMPLETED|node[1-2]\n", "the job is accounted for")


def test_a_node_is_cut_off_crashes_or_loses_its_daemon_and_is_healed(slurm: Run) -> None:
    assert reach(slurm, "node3") == "reached"
    slurm("node", "cut", "node3")
    assert reach(slurm, "node3") == "not reached"
    slurm("node", "heal", "node3")
    assert reach(slurm, "node3") == "reached"
    slurm("node", "kill-slurmd", "node3")
    assert reach(slurm, "node3") == "not reached"
    assert slurm("node", "exec", "node3", "hostname").stdout == "node3\n"
    slurm("node", "heal", "node3")
    assert reach(slurm, "node3") == "reached"
    slurm("node", "crash", "node3")
    assert reach(slurm, "node3") == "not reached"
    gone = slurm("node", "exec", "node3", "hostname", check=False)
    assert (gone.returncode, gone.stderr.splitlines()[0]) == (3, "error: node3 does not run")
    slurm("node", "heal", "node3")
    assert slurm("srun", "-w", "node3", "hostname").stdout == "node3\n"


def test_what_is_mounted_below_tmp_is_gone_when_it_is_unmounted(slurm: Run, tmp_path: Path) -> None:
    """A node has a copy of all mounts, which would keep a disk from being another one under the same name."""
    slurm("down")
    with mounted(tmp_path / "disk", size="64k") as disk:
        slurm("up")
        assert str(disk) not in slurm("node", "exec", "node1", "cat", "/proc/mounts").stdout
        assert str(disk) in Path("/proc/mounts").read_text()


def test_up_leaves_a_cluster_alone_that_another_checkout_has_started(slurm: Run) -> None:
    slurm("down")
    subprocess.run(["ip", "link", "add", "paceline0", "type", "veth", "peer", "name", "paceline1"], check=True)
    try:
        for verb in ("up", "down"):
            refused = slurm(verb, check=False)
            assert refused.returncode == 3
            assert refused.stderr.startswith("error: the cluster was started from another folder\n")
            assert "paceline0" in psutil.net_if_addrs()
    finally:
        subprocess.run(["ip", "link", "delete", "paceline0"], check=True)
        slurm("up")


def test_up_finds_a_cluster_that_is_up(slurm: Run) -> None:
    assert slurm("up").stdout.startswith("the cluster is up: ")


def test_nothing_of_it_listens_on_this_machine(slurm: Run) -> None:
    assert {"slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd"} <= set(processes_of_the_cluster())
    listening = {
        psutil.Process(one.pid).name()
        for one in psutil.net_connections("inet")
        if one.status == psutil.CONN_LISTEN and one.pid
    }
    assert listening.isdisjoint({"slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd"})


def test_after_down_nothing_is_left(slurm: Run) -> None:
    slurm("down")
    assert processes_of_the_cluster() == []
    assert "paceline0" not in psutil.net_if_addrs()
    down = slurm("node", "crash", "node1", check=False)
    assert (down.returncode, down.stderr) == (3, "error: the cluster is down\n  slurm/dev-cluster/up\n")
    # The other files' tests have it up.
    slurm("up")


@pytest.mark.skipif(os.geteuid() != 0, reason="to become another user takes root")
def test_an_ordinary_user_is_told_what_it_takes() -> None:
    # Where another user can read them.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        tools = shutil.copytree(TOOLS, Path(folder, "tools"))
        done = subprocess.run([tools / "up"], user="nobody", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (3, "  sudo slurm/dev-cluster/up")
