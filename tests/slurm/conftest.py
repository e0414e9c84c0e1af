"""A real Slurm of four nodes on this machine, for the tests that need one."""

import os
import shutil
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "slurm" / "dev-cluster"
SLURM_CONF = "/run/paceline-dev-cluster/etc/slurm.conf"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="package")
def cluster() -> Generator[Path]:
    """The folder of its tools; the cluster is up, and goes down after the tests."""
    where = os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/sbin"))
    if os.geteuid() != 0 or shutil.which("slurmctld", path=where) is None:
        pytest.skip("the development cluster needs root and Debian's slurm-wlm, slurmdbd, munge and mariadb-server")
    done = subprocess.run([TOOLS / "up"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    yield TOOLS
    subprocess.run([TOOLS / "down"], check=True)


@pytest.fixture
def slurm(cluster: Path) -> Run:
    """Runs one of Slurm's commands, or of the cluster's tools, from the login node."""

    def run(*command: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        program = str(cluster / command[0]) if (cluster / command[0]).exists() else command[0]
        environment = {**os.environ, "SLURM_CONF": SLURM_CONF}
        done = subprocess.run(
            [program, *command[1:]], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0 or not check, done.stderr
        return done

    return run
