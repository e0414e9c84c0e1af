"""GPU figures through NVML; what a GPU, a driver or a permission does not give is absent, never an error."""

import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

Report = Callable[[str, str], None]
"""Called with what could not be read and why."""

# NVML's clock event reasons (nvml.h, "nvmlClocksEventReasons"). "GPU idle", bit 0, is left out: it is no
# brake, and the utilisation says it better.
_THROTTLE_WORDS = {
    0x002: "applications_clocks_setting",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}
_GPU_IDLE = 0x001


class Gpus:
    """The GPUs of this node's part of the job.

    Args:
        which: `auto` for those of `CUDA_VISIBLE_DEVICES`, `all` for every one of the machine, `none`.
        report: told once for every kind of failure on every GPU.
        in_use: how many of the visible GPUs this node's workers use (worker i uses the i-th visible one);
            None for all of them. Only `auto` takes notice.
        visible: in place of `CUDA_VISIBLE_DEVICES`; CUDA's rules: indices, UUIDs or beginnings of UUIDs, MIG
            instances (their GPU is sampled, once), and nothing counts from the first invalid entry on.

    Indices are NVML's, by PCI bus. CUDA's agree where all GPUs are alike or CUDA_DEVICE_ORDER=PCI_BUS_ID.
    """

    def __init__(self, which: str, report: Report, *, in_use: int | None = None, visible: str | None = None) -> None:
        self._report = report
        self._told: set[tuple[int, str, int]] = set()
        self._hopeless: set[tuple[int, str]] = set()
        self._handles: list[tuple[int, Any]] = []
        self._nvml: ModuleType | None = None if which == "none" else self._open()
        if self._nvml is None:
            return
        self._readers = _readers(self._nvml)
        # These stay as they are for as long as the process lives; asking again would only cost time.
        self._permanent = {
            self._nvml.NVML_ERROR_NOT_SUPPORTED,
            self._nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
            self._nvml.NVML_ERROR_NO_PERMISSION,
        }
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") if visible is None else visible
        try:
            if which == "all" or visible is None:
                found = [self._by_index(i) for i in range(self._nvml.nvmlDeviceGetCount())]
            else:
                found = self._visible(visible)
        except self._nvml.NVMLError as error:
            self._report("the list of GPUs", str(error))
            found = []
        if which == "auto" and in_use is not None:
            found = found[:in_use]
        self._handles = [(i, handle) for i, handle in enumerate(found) if handle is not None]

    def __len__(self) -> int:
        """GPUs that are sampled."""
        return len(self._handles)

    def sample(self) -> dict[str, Any]:
        """Reads every figure once.

        Returns:
            `gpu/<i>/` and `utilization_percent` (share of time with any kernel running, 0-100),
            `memory_used_bytes`, `memory_total_bytes`, `power_watts`, `power_limit_watts`,
            `temperature_celsius`, `sm_clock_mhz`, `memory_clock_mhz`, and `throttle`: the list of reasons
            that hold the clocks down, empty when none does. What cannot be read is absent. i counts this
            node's sampled GPUs from 0.
        """
        figures: dict[str, Any] = {}
        for i, handle in self._handles:
            for name in self._readers:
                if (i, name) not in self._hopeless:
                    figures.update(self._read(i, name, handle))
        return figures

    def close(self) -> None:
        """Lets go of NVML."""
        if self._nvml is None:
            return
        try:
            self._nvml.nvmlShutdown()
        except self._nvml.NVMLError as error:
            self._report("closing NVML", str(error))
        self._nvml, self._handles = None, []

    def _open(self) -> ModuleType | None:
        import pynvml

        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            absent = (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
            # Any other error: a driver is there and does not answer, its version is not the library's, say.
            if _code(error) not in absent:
                self._report("NVML", str(error))
            return None
        return pynvml

    def _read(self, i: int, name: str, handle: Any) -> dict[str, Any]:
        assert self._nvml is not None
        try:
            return {f"gpu/{i}/{key}": value for key, value in self._readers[name](handle).items()}
        except self._nvml.NVMLError as error:
            self._failed(i, name, error)
            return {}

    def _failed(self, i: int, name: str, error: Exception) -> None:
        assert self._nvml is not None
        code = _code(error)
        if code in self._permanent:
            self._hopeless.add((i, name))
        lost = code == self._nvml.NVML_ERROR_GPU_IS_LOST
        key = (i, "" if lost else name, code)
        if key not in self._told:
            self._told.add(key)
            self._report(f"gpu/{i}" if lost else f"gpu/{i}/{name}", str(error))

    def _by_index(self, index: int) -> Any | None:
        assert self._nvml is not None
        try:
            return self._nvml.nvmlDeviceGetHandleByIndex(index)
        except self._nvml.NVMLError as error:
            self._report(f"GPU {index} of the machine", str(error))
            return None

    def _visible(self, visible: str) -> list[Any | None]:
        assert self._nvml is not None
        count = self._nvml.nvmlDeviceGetCount()
        found: list[Any | None] = []
        seen: set[int | str] = set()
        for word in (part.strip() for part in visible.split(",")):
            if word.isdigit() and int(word) < count:
                key: int | str = int(word)
            elif word.startswith(("GPU-", "MIG-")):
                key = self._index_of_uuid(word, count)
            else:
                break
            if key == "":
                break
            # Several MIG instances may lie on one GPU, whose figures are wanted once.
            if key not in seen:
                seen.add(key)
                found.append(self._by_index(int(key)))
        return found

    def _index_of_uuid(self, word: str, count: int) -> int | str:
        """NVML's index of the GPU that an entry of CUDA_VISIBLE_DEVICES names, or "" when there is none."""
        nvml = self._nvml
        assert nvml is not None
        if word.startswith("MIG-GPU-"):
            # The old form: MIG-<UUID of the GPU>/<GPU instance>/<compute instance>.
            word = word.removeprefix("MIG-").split("/")[0]
        elif word.startswith("MIG-"):
            try:
                instance = nvml.nvmlDeviceGetHandleByUUID(word.encode())
                return nvml.nvmlDeviceGetIndex(nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(instance))
            except nvml.NVMLError as error:
                self._report(f"the GPU of {word}", str(error))
                return ""
        matches = [i for i in range(count) if self._uuid(i).startswith(word)]
        return matches[0] if len(matches) == 1 else ""

    def _uuid(self, index: int) -> str:
        assert self._nvml is not None
        try:
            return str(self._nvml.nvmlDeviceGetUUID(self._nvml.nvmlDeviceGetHandleByIndex(index)))
        except self._nvml.NVMLError:
            # A lost GPU has no UUID to compare; the job's own GPUs are found without it.
            return ""


def _code(error: Exception) -> int:
    """NVML's error number; the classes are made at run time, so a type checker does not see it."""
    value = getattr(error, "value", None)
    return value if isinstance(value, int) else -1


def throttle_words(reasons: int) -> list[str]:
    """NVML's bit mask of clock event reasons in words; a bit that we do not know is `bit_0x...`."""
    reasons &= ~_GPU_IDLE
    words = [word for bit, word in _THROTTLE_WORDS.items() if reasons & bit]
    unknown = reasons & ~sum(_THROTTLE_WORDS)
    return words + [f"bit_{1 << n:#x}" for n in range(unknown.bit_length()) if unknown & 1 << n]


def _readers(nvml: ModuleType) -> dict[str, Callable[[Any], dict[str, Any]]]:
    """What is read of a GPU: a name for reports, and a function from its handle to figures."""

    def memory(handle: Any) -> dict[str, Any]:
        try:
            # The second version does not count the driver's reserve as used; nvidia-smi shows the same.
            info = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
        except nvml.NVMLError_FunctionNotFound:
            info = nvml.nvmlDeviceGetMemoryInfo(handle)
        return {"memory_used_bytes": info.used, "memory_total_bytes": info.total}

    def throttle(handle: Any) -> dict[str, Any]:
        try:
            reasons = nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
        except nvml.NVMLError_FunctionNotFound:
            # The name before driver 535.
            reasons = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
        return {"throttle": throttle_words(reasons)}

    def clock(kind: int) -> Callable[[Any], int]:
        return lambda handle: nvml.nvmlDeviceGetClockInfo(handle, kind)

    sm_clock, memory_clock = clock(nvml.NVML_CLOCK_SM), clock(nvml.NVML_CLOCK_MEM)
    return {
        "utilization_percent": lambda h: {"utilization_percent": nvml.nvmlDeviceGetUtilizationRates(h).gpu},
        "memory": memory,
        "power_watts": lambda h: {"power_watts": nvml.nvmlDeviceGetPowerUsage(h) / 1000},
        "power_limit_watts": lambda h: {"power_limit_watts": nvml.nvmlDeviceGetEnforcedPowerLimit(h) / 1000},
        "temperature_celsius": lambda h: {
            "temperature_celsius": nvml.nvmlDeviceGetTemperature(h, nvml.NVML_TEMPERATURE_GPU)
        },
        "sm_clock_mhz": lambda h: {"sm_clock_mhz": sm_clock(h)},
        "memory_clock_mhz": lambda h: {"memory_clock_mhz": memory_clock(h)},
        "throttle": throttle,
    }
