"""Which GPUs this process may use, asked of the driver: torch would take seconds to import."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from trainer.errors import UnfitError

_PCI = Path("/sys/bus/pci/devices")


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU.

    Attributes:
        identifier: its UUID.
        kind: its product's name.
        numa_node: the NUMA node that it is attached to; None where that is not known.
    """

    identifier: str
    kind: str = ""
    numa_node: int | None = None


def count_gpus(environment: Mapping[str, str] | None = None) -> int:
    """The number of GPUs that CUDA would show to a process with this environment; 0 without a driver.

    Args:
        environment: where CUDA_VISIBLE_DEVICES is looked up; by default this process's.

    Raises:
        UnfitError: there is a driver, but it does not answer: training on the CPU instead would be no favour.
    """
    mask = (os.environ if environment is None else environment).get("CUDA_VISIBLE_DEVICES")
    if mask is not None and not mask.strip():
        return 0
    return len(visible(mask)[0])


def visible(mask: str | None) -> tuple[list[int | None], int]:
    """What a value of CUDA_VISIBLE_DEVICES leaves, as `choose` says it, and how many GPUs the machine has.

    Raises:
        UnfitError: see `count_gpus`.
    """
    identifiers = [gpu.identifier for gpu in _gpus()]
    count = len(identifiers)
    return list(range(count)) if mask is None else choose(mask, identifiers), count


def numa_nodes(environment: Mapping[str, str] | None = None) -> list[int | None]:
    """The NUMA node of each GPU that `count_gpus` counts, in CUDA's order; None where that is not known.

    Raises:
        UnfitError: see `count_gpus`.
    """
    environment = os.environ if environment is None else environment
    mask = environment.get("CUDA_VISIBLE_DEVICES")
    if mask is not None and not mask.strip():
        return []
    gpus = _gpus()
    chosen = range(len(gpus)) if mask is None else choose(mask, [gpu.identifier for gpu in gpus])
    # Of several kinds CUDA numbers the fastest first, and which is which only it knows.
    ordered = len({gpu.kind for gpu in gpus}) == 1 or environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    return [gpus[index].numa_node if index is not None and ordered else None for index in chosen]


def choose(mask: str, identifiers: Sequence[str]) -> list[int | None]:
    """Which devices a value of CUDA_VISIBLE_DEVICES leaves; CUDA stops at the first that is absent.

    Args:
        mask: indices, or beginnings of GPU or MIG UUIDs, separated by commas.
        identifiers: the UUIDs of the machine's GPUs, in order.

    Returns:
        Their indices; None for an instance of a GPU (MIG), which does not say of which.
    """
    chosen: list[int | None] = []
    for entry in (part.strip() for part in mask.split(",")):
        found: list[int | None]
        if entry.isdigit():
            found = [int(entry)] if int(entry) < len(identifiers) else []
        elif entry.startswith("MIG-"):
            # The driver lists MIG devices per GPU; whether this one exists is left to CUDA.
            found = [None] if identifiers else []
        else:
            found = [index for index, name in enumerate(identifiers) if entry and name.startswith(entry)]
        if len(found) != 1:
            break
        chosen += found
    return chosen


def driver() -> tuple[str, tuple[int, int]] | None:
    """The driver's version and its CUDA version (major, minor); None without a driver that answers."""
    import pynvml

    try:
        pynvml.nvmlInit()
        try:
            number = pynvml.nvmlSystemGetCudaDriverVersion_v2()
            return str(pynvml.nvmlSystemGetDriverVersion()), (number // 1000, number % 1000 // 10)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None


def share(mask: str | None, *, number: int, size: int) -> str:
    """CUDA_VISIBLE_DEVICES of one of several nodes that share a machine.

    Args:
        mask: the machine's, None without one; `count_gpus` has found enough for all nodes behind it.
        number: the node's.
        size: GPUs of each node.
    """
    whole = [str(index) for index in range((number + 1) * size)] if mask is None else mask.split(",")
    return ",".join(entry.strip() for entry in whole[number * size : (number + 1) * size])


def _gpus() -> list[Gpu]:
    import pynvml

    try:
        pynvml.nvmlInit()
        try:
            handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
            return [Gpu(_text(pynvml.nvmlDeviceGetUUID(handle)), *_place(handle, pynvml)) for handle in handles]
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        # NVMLError gives each of its codes a class of its own, whose instances have the code as `value`.
        code = getattr(error, "value", None)
        if code in (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED):
            return []
        raise UnfitError(
            f"the NVIDIA driver does not answer: {error}{_meaning(code, pynvml)}",
            "`nvidia-smi` shows more; device=cpu trains without GPUs",
        ) from error


def _place(handle: Any, nvml: ModuleType, root: Path = _PCI) -> tuple[str, int | None]:
    """A GPU's name and NUMA node, as far as they are known: no reason not to train."""
    try:
        name, bus = _text(nvml.nvmlDeviceGetName(handle)), _text(nvml.nvmlDeviceGetPciInfo(handle).busId)
        # NVML writes eight digits of the domain, the kernel four; it writes -1 where the firmware does not tell.
        domain, _, rest = bus.lower().partition(":")
        node = int((root / f"{int(domain, 16):04x}:{rest}" / "numa_node").read_text())
    except (nvml.NVMLError, OSError, ValueError):
        return "", None
    return name, node if node >= 0 else None


def _meaning(code: object, nvml: ModuleType) -> str:
    meanings = {
        nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "its library is newer than its kernel module; a reboot helps",
        nvml.NVML_ERROR_GPU_IS_LOST: "a GPU has fallen off the bus; a reboot helps, or the GPU is broken",
        nvml.NVML_ERROR_NO_PERMISSION: "the devices /dev/nvidia* may not be used by this user or container",
        nvml.NVML_ERROR_UNKNOWN: "the kernel's log (dmesg, NVRM) says more",
    }
    text = meanings.get(code)
    return f" ({text})" if text else ""


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
