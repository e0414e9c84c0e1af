"""What a process finds around it, without torch: versions, the driver and the variables that matter."""

import os
import platform
import re
import socket
from importlib import metadata
from pathlib import Path
from typing import Any

from trainer.run.variables import relevant

_PACKAGES = ("paceline", "torch", "torchvision", "hydra-core", "wandb", "numpy", "safetensors")
_DRIVER = Path("/proc/driver/nvidia/version")


def host() -> str:
    """This machine's name."""
    return socket.gethostname()


def found() -> dict[str, Any]:
    """This process's surroundings as plain values; of secrets only that they are set."""
    seen: dict[str, Any] = {
        "host": host(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "variables": {
            name: "set, not shown" if value is None else value for name, value in relevant(os.environ).items()
        },
    }
    if driver := _driver():
        seen["driver"] = driver
    return seen


def _driver(file: Path = _DRIVER) -> str | None:
    """The NVIDIA driver's version, as its kernel module says it: NVML would take its time."""
    try:
        match = re.search(r"^NVRM version:.*?\s(\d+\.\d+(\.\d+)?)\s", file.read_text(), re.MULTILINE)
    except OSError:
        return None
    return match[1] if match else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
