"""The configuration under the coming Hydra, installed beside the environment rather than into it."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

VERSION = "1.4.0rc3"
CACHE = Path(sys.prefix) / "cache" / f"hydra-core-{VERSION}"


@pytest.fixture(scope="module")
def coming_hydra() -> Path:
    """A directory with the coming Hydra and what it needs; kept from run to run."""
    if CACHE.is_dir():
        return CACHE
    CACHE.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE.parent) as folder:
        target = Path(folder) / "packages"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--pre", "--target", str(target)]
        done = subprocess.run([*command, f"hydra-core=={VERSION}"], capture_output=True, text=True)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            pytest.skip(f"pip cannot get hydra-core {VERSION}: {reason}")
        shutil.move(target, CACHE)
    return CACHE


def test_the_configuration_works_with_the_coming_hydra_and_without_warnings(coming_hydra: Path) -> None:
    here = Path(__file__).parent
    files = [here / f"test_config_{name}.py" for name in ("compose", "entry", "explain")]
    environment = {**os.environ, "PYTHONPATH": str(coming_hydra), "PACELINE_TEST_HYDRA": "1.4"}
    strict = ["-W", "error::UserWarning", "-W", "error::DeprecationWarning:hydra"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *strict, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=here.parents[1])
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
