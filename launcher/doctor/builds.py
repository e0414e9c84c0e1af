"""Which builds of torch there are, and the container image of each: one table for doctor, images and docs."""

from collections.abc import Sequence
from dataclasses import dataclass

Version = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Build:
    """One build of torch.

    Attributes:
        tag: our image's tag, and torch's name for it.
        cuda: the CUDA version that it brings.
        driver: the oldest NVIDIA driver that it runs with, within CUDA's minor version compatibility.
        capabilities: the compute capabilities of the GPUs that it has code for, the lowest and the highest.
    """

    tag: str
    cuda: Version
    driver: int
    capabilities: tuple[Version, Version]


BUILDS = (
    Build("cu130", (13, 0), 580, ((7, 5), (12, 1))),
    Build("cu126", (12, 6), 525, ((5, 0), (9, 0))),
)
"""torch 2.14's builds, the one to prefer first.

Capabilities: "PyTorch CUDA Support Matrix" in torch's RELEASE.md; a third build, for CUDA 13.2, reaches no further.
Between them lies what CUDA 13 dropped (Maxwell 5.x, Pascal 6.x, Volta 7.0) and what 12.6 does not know (Blackwell).
Drivers: "CUDA Compatibility" in NVIDIA's documentation, minor version compatibility.
"""

CPU_TAG = "cpu"
"""The image for machines without an NVIDIA GPU."""


def fitting(capabilities: Sequence[Version], cuda: Version) -> Build | None:
    """The build for these GPUs and a driver that serves CUDA up to a version; None where no build fits both."""
    # A driver serves the minor versions of its CUDA version's major one, and all older ones.
    return next((build for build in BUILDS if build.cuda[0] <= cuda[0] and has_code(build, capabilities)), None)


def has_code(build: Build, capabilities: Sequence[Version]) -> bool:
    """Whether a build has code for all GPUs of these compute capabilities."""
    lowest, highest = build.capabilities
    return all(lowest <= capability <= highest for capability in capabilities)


def build_of(cuda: Version) -> Build | None:
    """The build for a CUDA version; None where it is not in the table."""
    return next((build for build in BUILDS if build.cuda == cuda), None)
