"""What NVML says of each GPU, read once; what a GPU, a driver or a user is not told is None."""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

_NVLINKS = 18
# nvml.h's NVML_P2P_CAPS_INDEX_READ, which nvidia-ml-py 13.615 has as a tuple.
_P2P_READ = 0


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """One GPU.

    Attributes:
        index: NVML's.
        uncorrected: memory errors that ECC could not correct since the driver was loaded.
        rows_pending: whether rows of its memory wait for a restart to be replaced.
        rows_failed: whether one could not be replaced.
        brakes: NVML's clock event reasons, as bits.
        celsius: its temperature.
        persistent: whether the driver stays loaded between two jobs.
        lanes: PCI Express lanes in use.
        most_lanes: those that GPU and slot could use.
        pcie_generation: the PCI Express generation that GPU and slot could use.
        nvlinks: active links.
        unreachable: indices of higher-numbered GPUs whose memory it cannot read directly.
        processes: pids of programs on it.
    """

    index: int
    uncorrected: int | None = None
    rows_pending: bool | None = None
    rows_failed: bool | None = None
    brakes: int | None = None
    celsius: int | None = None
    persistent: bool | None = None
    lanes: int | None = None
    most_lanes: int | None = None
    pcie_generation: int | None = None
    nvlinks: int = 0
    unreachable: tuple[int, ...] = ()
    processes: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """As people speak of it."""
        return f"GPU {self.index}"


def read() -> list[GpuFacts]:
    """The machine's GPUs; those that do not answer at all are left out."""
    import pynvml

    pynvml.nvmlInit()
    try:
        handles = {i: _ask(pynvml, "nvmlDeviceGetHandleByIndex", i) for i in range(pynvml.nvmlDeviceGetCount())}
        return [_read(pynvml, i, handles) for i, handle in handles.items() if handle is not None]
    finally:
        pynvml.nvmlShutdown()


def _read(nvml: ModuleType, index: int, handles: dict[int, Any]) -> GpuFacts:
    device = handles[index]
    rows = _ask(nvml, "nvmlDeviceGetRemappedRows", device)
    persistent = _ask(nvml, "nvmlDeviceGetPersistenceMode", device)
    running = _ask(nvml, "nvmlDeviceGetComputeRunningProcesses", device)
    links = (_ask(nvml, "nvmlDeviceGetNvLinkState", device, link) for link in range(_NVLINKS))
    return GpuFacts(
        index,
        uncorrected=_ask(
            nvml,
            "nvmlDeviceGetTotalEccErrors",
            device,
            nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            nvml.NVML_VOLATILE_ECC,
        ),
        rows_pending=rows and bool(rows[2]),
        rows_failed=rows and bool(rows[3]),
        brakes=_ask(nvml, "nvmlDeviceGetCurrentClocksEventReasons", device),
        celsius=_ask(nvml, "nvmlDeviceGetTemperature", device, nvml.NVML_TEMPERATURE_GPU),
        persistent=None if persistent is None else bool(persistent),
        lanes=_ask(nvml, "nvmlDeviceGetCurrPcieLinkWidth", device),
        most_lanes=_ask(nvml, "nvmlDeviceGetMaxPcieLinkWidth", device),
        pcie_generation=_ask(nvml, "nvmlDeviceGetMaxPcieLinkGeneration", device),
        nvlinks=sum(1 for state in links if state == 1),
        unreachable=tuple(
            other
            for other, peer in handles.items()
            if other > index and _ask(nvml, "nvmlDeviceGetP2PStatus", device, peer, _P2P_READ) not in (None, 0)
        ),
        processes=tuple(entry.pid for entry in running or ()),
    )


def _ask(nvml: ModuleType, question: str, *arguments: Any) -> Any:
    try:
        return getattr(nvml, question)(*arguments)
    except nvml.NVMLError:
        return None
