"""The GPUs, as NVML and the kernel's log tell of them: who uses them, their defects, brakes and links."""

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence

from launcher.doctor import gpu_facts
from launcher.doctor.finding import FAIL, PASS, WARN, Check, Finding
from launcher.doctor.gpu_facts import GpuFacts
from launcher.doctor.surroundings import Surroundings
from launcher.gpus import busy_gpus, count_gpus, driver
from launcher.plan import CPU_WORKERS
from trainer import wording
from trainer.errors import UnfitError

_DMESG_S = 5.0
_SHOWN = 4
# NVML's clock event reasons that say that a GPU is held back by its cooling or its power supply.
_BRAKES = {0x08: "hardware slowdown", 0x20: "heat (software)", 0x40: "heat (hardware)", 0x80: "power brake"}
_XID = re.compile(r"NVRM: Xid \(PCI:(?P<bus>[0-9a-fA-F:.]+)\): (?P<number>\d+)")
_OF_PROGRAMS = {
    13: "a kernel's exception",
    31: "a kernel's access to memory that is not its own",
    43: "a stopped program",
    45: "a program that was ended",
}
_OF_HARDWARE = {
    48: "an uncorrectable memory error",
    63: "memory was remapped",
    64: "memory could not be remapped",
    74: "an NVLink error",
    79: "the GPU has fallen off the bus",
    92: "many corrected memory errors",
    94: "a contained memory error",
    95: "an uncontained memory error",
    119: "the GPU's own processor does not answer",
}


def gpus(here: Surroundings) -> Finding:
    """The GPUs that a job would use, and who else is on them."""
    try:
        visible = count_gpus(here.environment)
    except UnfitError as error:
        return Finding("GPUs", FAIL, error.problem, error.fix)
    if visible == 0:
        hidden = here.environment.get("CUDA_VISIBLE_DEVICES") is not None and driver() is not None
        why = f", CUDA_VISIBLE_DEVICES={here.environment.get('CUDA_VISIBLE_DEVICES')!r} hides them" if hidden else ""
        state = FAIL if here.config.device == "cuda" else WARN if hidden else PASS
        return Finding(
            "GPUs",
            state,
            f"none visible{why}: {CPU_WORKERS} CPU workers",
            "unset CUDA_VISIBLE_DEVICES" if hidden else "",
        )
    text = f"{visible} visible"
    if busy := busy_gpus():
        return Finding("GPUs", WARN, f"{text}; in use already: {', '.join(busy)}", "nvidia-smi shows by whom")
    return Finding("GPUs", PASS, text)


def gpu_memory(here: Surroundings) -> Finding:
    """Errors in the GPUs' memory that ECC could not correct, and rows that wait for a restart to be replaced."""
    return judge_memory(gpu_facts.read())


def judge_memory(gpus: Sequence[GpuFacts]) -> Finding:
    """The same for given GPUs."""
    name = "GPU memory"
    broken = [
        f"{gpu.name}: {wording.plural(gpu.uncorrected, 'uncorrectable error')} since the driver was loaded"
        for gpu in gpus
        if gpu.uncorrected
    ]
    broken += [f"{gpu.name}: a defect row could not be replaced" for gpu in gpus if gpu.rows_failed]
    if broken:
        return Finding(name, FAIL, "; ".join(broken), "leave that GPU out (CUDA_VISIBLE_DEVICES), have it replaced")
    if waiting := [gpu.name for gpu in gpus if gpu.rows_pending]:
        message = f"rows of {', '.join(waiting)} wait to be replaced"
        return Finding(name, WARN, message, "nvidia-smi --gpu-reset, or a restart of the machine")
    known = any(gpu.uncorrected is not None for gpu in gpus)
    return Finding(name, PASS, "no uncorrectable errors" if known else "without ECC: errors go unnoticed")


def gpu_clocks(here: Surroundings) -> Finding:
    """What holds the clocks down, and whether the driver stays loaded between two jobs."""
    return judge_clocks(gpu_facts.read())


def judge_clocks(gpus: Sequence[GpuFacts]) -> Finding:
    """The same for given GPUs."""
    name = "GPU clocks"
    if held := [words for gpu in gpus if (words := _held(gpu))]:
        fix = "look at its cooling and its power cables: nvidia-smi -q -d PERFORMANCE"
        return Finding(name, WARN, f"held down: {'; '.join(held)}", fix)
    if lazy := [gpu.name for gpu in gpus if gpu.persistent is False]:
        message = f"{', '.join(lazy)} without persistence mode: every start loads the driver anew"
        return Finding(name, WARN, message, "sudo nvidia-smi -pm 1")
    return Finding(name, PASS, "nothing holds them down; the driver stays loaded")


def gpu_links(here: Surroundings) -> Finding:
    """How the GPUs are connected: NVLink, PCI Express as wide as it could be, access to each other's memory."""
    return judge_links(gpu_facts.read())


def judge_links(gpus: Sequence[GpuFacts]) -> Finding:
    """The same for given GPUs."""
    name, links = "GPU links", [gpu.nvlinks for gpu in gpus]
    narrow = [f"{gpu.name} has {gpu.lanes} lanes of {gpu.most_lanes}" for gpu in gpus if _is_narrow(gpu)]
    if narrow:
        return Finding(name, WARN, f"PCI Express is narrow: {', '.join(narrow)}", "reseat the GPU or its riser")
    if len(set(links)) > 1:
        fix = "nvidia-smi nvlink -s; a restart of the machine trains them anew"
        return Finding(name, WARN, f"NVLinks differ: {', '.join(map(str, links))}", fix)
    text = f"{wording.plural(links[0], 'NVLink')} each" if any(links) else "PCI Express"
    if apart := [f"{gpu.name} and {other}" for gpu in gpus for other in gpu.unreachable]:
        fix = "nvidia-smi topo -p2p r; mostly the machine's IOMMU or ACS settings"
        return Finding(name, WARN, f"{text}; no direct access between {_first(apart)}", fix)
    return Finding(name, PASS, f"{text}; each reaches the others' memory" if len(gpus) > 1 else text)


def gpu_programs(here: Surroundings) -> Finding:
    """Whose programs are on the GPUs."""
    found = [f"process {pid} on {gpu.name}" for gpu in gpu_facts.read() for pid in gpu.processes]
    if found:
        return Finding("GPU programs", WARN, _first(found), "wait for them, or other GPUs by CUDA_VISIBLE_DEVICES")
    return Finding("GPU programs", PASS, "none")


def kernel_log(here: Surroundings) -> Finding:
    """The driver's error messages (Xid) since the machine was started."""
    command = shutil.which("dmesg")
    if command is None:
        return Finding("kernel log", PASS, "cannot be read: no dmesg")
    done = subprocess.run([command], capture_output=True, text=True, errors="replace", timeout=_DMESG_S, check=False)
    if done.returncode != 0:
        return Finding("kernel log", PASS, "may not be read by this user")
    return judge_xids(done.stdout)


def judge_xids(log: str) -> Finding:
    """What the driver's messages in a kernel log mean."""
    seen = Counter((match["bus"], int(match["number"])) for match in _XID.finditer(log))
    if not seen:
        return Finding("kernel log", PASS, "no Xid")
    known = {**_OF_PROGRAMS, **_OF_HARDWARE}
    words = [
        f"Xid {number} on {bus} ({known.get(number, 'see the driver manual')})" + (f" x{count}" if count > 1 else "")
        for (bus, number), count in seen.items()
    ]
    if any(number in _OF_HARDWARE for _, number in seen):
        fix = "leave that GPU out, restart the machine; if it comes again, have the GPU replaced"
        return Finding("kernel log", FAIL, _first(words), fix)
    return Finding("kernel log", WARN, _first(words), "`dmesg | grep Xid`: mostly a program's own error")


def _held(gpu: GpuFacts) -> str:
    brakes = [words for bit, words in _BRAKES.items() if (gpu.brakes or 0) & bit]
    at = f" at {gpu.celsius} °C" if gpu.celsius else ""
    return f"{gpu.name} by {', '.join(brakes)}{at}" if brakes else ""


def _is_narrow(gpu: GpuFacts) -> bool:
    return gpu.lanes is not None and gpu.most_lanes is not None and 0 < gpu.lanes < gpu.most_lanes


def _first(words: Sequence[str]) -> str:
    return ", ".join(words[:_SHOWN]) + (", ..." if len(words) > _SHOWN else "")


HEALTH: tuple[Check[Surroundings], ...] = (gpu_memory, gpu_clocks, gpu_links, gpu_programs, kernel_log)
"""What is looked at where there is an NVIDIA driver."""
