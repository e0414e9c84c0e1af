import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import stand_in_nvml


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the stand-in library."""
    return stand_in_nvml.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="session")
def with_gpus(nvml_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Runs a script where NVML is the stand-in with 8 busy GPUs; the script prints JSON in its last line.

    `FIGURES` in the script is the path of the stand-in's figures.
    """

    def run(script: str) -> Any:
        figures = tmp_path_factory.mktemp("figures") / "figures"
        stand_in_nvml.write_figures(figures, stand_in_nvml.busy_gpus(8))
        done = subprocess.run(
            [sys.executable, "-c", f"from pathlib import Path\nFIGURES = Path({str(figures)!r})\n{script}"],
            env=stand_in_nvml.environment(nvml_library, figures),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run
