"""What NVML says of driver and GPUs, read once; what a GPU, a driver or a user is not told is None."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

import psutil

from launcher.doctor.apart import NoAnswer, ask
from launcher.gpus import driver, visible
from trainer.errors import UnfitError

_LIMIT_S = 30.0
"""Seconds: without persistence mode a driver takes some for each GPU before it answers."""

_NVLINKS = 18
# nvml.h's NVML_P2P_CAPS_INDEX_READ, which nvidia-ml-py 13.615 has as a tuple.
_P2P_READ = 0


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """One GPU.

    Attributes:
        index: NVML's.
        model: its name.
        capability: its compute capability, (major, minor).
        memory_bytes: its memory.
        used_bytes: how much of it is taken.
        uncorrected: memory errors that ECC could not correct since the driver was loaded.
        rows_pending: whether rows or pages of its memory wait for a restart to be replaced.
        rows_failed: whether one could not be replaced.
        brakes: NVML's clock event reasons, as bits.
        celsius: its temperature.
        persistent: whether the driver stays loaded between two jobs.
        has_display: whether a display is on, which keeps the driver loaded, too.
        lanes: PCI Express lanes in use.
        most_lanes: those that GPU and slot could use.
        pcie_generation: the PCI Express generation that GPU and slot could use.
        nvlinks: active links.
        unreachable: indices of higher-numbered GPUs whose memory it cannot read directly.
        programs: what runs on it, as `python (process 77 of alice)`.
    """

    index: int
    model: str = "GPU"
    capability: tuple[int, int] | None = None
    memory_bytes: int | None = None
    used_bytes: int | None = None
    uncorrected: int | None = None
    rows_pending: bool | None = None
    rows_failed: bool | None = None
    brakes: int | None = None
    celsius: int | None = None
    persistent: bool | None = None
    has_display: bool | None = None
    lanes: int | None = None
    most_lanes: int | None = None
    pcie_generation: int | None = None
    nvlinks: int = 0
    unreachable: tuple[int, ...] = ()
    programs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As people speak of it."""
        return f"GPU {self.index}"


@dataclass(frozen=True, slots=True)
class Machine:
    """The driver and the GPUs that a job may use.

    Attributes:
        driver: the driver's version; empty without one.
        cuda: up to which CUDA version it serves, (major, minor).
        gpus: those that CUDA_VISIBLE_DEVICES leaves; all, where it has instances of GPUs (MIG).
        visible: how many devices that are for CUDA.
        hidden: GPUs that it does not leave.
        problem: why the driver does not answer; empty where it does.
        fix: what to do about that.
    """

    driver: str = ""
    cuda: tuple[int, int] = (0, 0)
    gpus: tuple[GpuFacts, ...] = ()
    visible: int = 0
    hidden: int = 0
    problem: str = ""
    fix: str = ""


def look(environment: Mapping[str, str], limit_s: float = _LIMIT_S) -> Machine:
    """Asks the driver, in a process of its own: one that hangs would take its caller with it."""
    try:
        found: dict[str, Any] = ask(lambda: _answer(environment.get("CUDA_VISIBLE_DEVICES")), limit_s)
    except NoAnswer as error:
        fix = "`timeout 30 nvidia-smi` and `dmesg | grep NVRM` may say more; a restart of the machine; or device=cpu"
        return Machine(problem=f"the NVIDIA driver does not answer: {error}", fix=fix)
    gpus = tuple(_from_json(row) for row in found.pop("gpus"))
    found["cuda"] = tuple(found["cuda"])
    return Machine(**found, gpus=gpus)


def _answer(mask: str | None) -> dict[str, Any]:
    try:
        return asdict(_read(mask))
    except UnfitError as error:
        return asdict(Machine(problem=error.problem, fix=error.fix))


def _from_json(row: dict[str, Any]) -> GpuFacts:
    for name, value in row.items():
        row[name] = tuple(value) if isinstance(value, list) else value
    return GpuFacts(**row)


def _read(mask: str | None) -> Machine:
    """The machine's GPUs; of those that do not answer at all nothing is known but their index."""
    import pynvml

    # What does not answer here is told by `visible` in words.
    version, cuda = driver() or ("", (0, 0))
    chosen, count = visible(mask)
    if not count:
        return Machine(version, cuda)
    pynvml.nvmlInit()
    try:
        handles = {i: _ask(pynvml, "nvmlDeviceGetHandleByIndex", i) for i in range(count)}
        whole = {index for index in chosen if index is not None}
        own = whole if len(whole) == len(chosen) else set(handles)
        gpus = tuple(_describe(pynvml, index, {i: handles[i] for i in own}) for index in sorted(own))
    finally:
        pynvml.nvmlShutdown()
    return Machine(version, cuda, gpus, len(chosen), count - len(own))


def _describe(nvml: ModuleType, index: int, handles: dict[int, Any]) -> GpuFacts:
    device = handles[index]
    if device is None:
        return GpuFacts(index)
    memory = _ask(nvml, "nvmlDeviceGetMemoryInfo", device)
    rows = _ask(nvml, "nvmlDeviceGetRemappedRows", device)
    pages = _ask(nvml, "nvmlDeviceGetRetiredPagesPendingStatus", device)
    brakes = _ask(nvml, "nvmlDeviceGetCurrentClocksEventReasons", device)
    if brakes is None:
        # Drivers before 535.
        brakes = _ask(nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", device)
    capability = _ask(nvml, "nvmlDeviceGetCudaComputeCapability", device)
    running = _ask(nvml, "nvmlDeviceGetComputeRunningProcesses", device)
    links = (_ask(nvml, "nvmlDeviceGetNvLinkState", device, link) for link in range(_NVLINKS))
    counters = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
    return GpuFacts(
        index,
        model=str(_ask(nvml, "nvmlDeviceGetName", device) or "GPU"),
        capability=capability and (int(capability[0]), int(capability[1])),
        memory_bytes=memory and int(memory.total),
        used_bytes=memory and int(memory.used),
        uncorrected=_ask(nvml, "nvmlDeviceGetTotalEccErrors", device, *counters),
        rows_pending=bool(pages) if rows is None and pages is not None else rows and bool(rows[2]),
        rows_failed=rows and bool(rows[3]),
        brakes=brakes,
        celsius=_ask(nvml, "nvmlDeviceGetTemperature", device, nvml.NVML_TEMPERATURE_GPU),
        persistent=_yes(_ask(nvml, "nvmlDeviceGetPersistenceMode", device)),
        has_display=_yes(_ask(nvml, "nvmlDeviceGetDisplayActive", device)),
        lanes=_ask(nvml, "nvmlDeviceGetCurrPcieLinkWidth", device),
        most_lanes=_ask(nvml, "nvmlDeviceGetMaxPcieLinkWidth", device),
        pcie_generation=_ask(nvml, "nvmlDeviceGetMaxPcieLinkGeneration", device),
        nvlinks=sum(1 for state in links if state == 1),
        unreachable=tuple(
            other
            for other, peer in handles.items()
            if other > index and _ask(nvml, "nvmlDeviceGetP2PStatus", device, peer, _P2P_READ) not in (None, 0)
        ),
        programs=tuple(_program(entry.pid) for entry in running or ()),
    )


def _program(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        return f"{process.name()} (process {pid} of {process.username()})"
    except psutil.Error:
        # Another container's, whose processes have other numbers here.
        return f"process {pid}"


def _yes(value: Any) -> bool | None:
    return None if value is None else bool(value)


def _ask(nvml: ModuleType, question: str, *arguments: Any) -> Any:
    try:
        return getattr(nvml, question)(*arguments)
    except nvml.NVMLError:
        return None
