"""The GPUs, as NVML and the kernel's log tell of them: who uses them, their defects, brakes and links."""

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from launcher.doctor.finding import FAIL, PASS, WARN, Check, Finding, check
from launcher.doctor.gpu_facts import GpuFacts
from launcher.doctor.surroundings import Surroundings
from launcher.plan import CPU_WORKERS
from trainer import wording

_DMESG_S = 4.0
_SHOWN = 4
_BUSY_SHARE = 0.1
# NVML's clock event reasons that say that a GPU is held back by its cooling or its power supply.
_BRAKES = {0x08: "hardware slowdown", 0x20: "heat (software)", 0x40: "heat (hardware)", 0x80: "power brake"}
_XID = re.compile(r"NVRM: Xid \(PCI:(?P<bus>[0-9a-fA-F:.]+)\): (?P<number>\d+)")
_LOGS = (("dmesg",), ("journalctl", "--dmesg", "--boot", "--no-pager", "--grep=NVRM: Xid"))
"""What shows the kernel's log; users who may not ask the kernel are often allowed to read the journal."""

_OF_PROGRAMS = {
    13: "a kernel's exception",
    31: "a kernel's access to memory that is not its own",
    43: "a stopped program",
    45: "a program that was ended",
}
_MENDED = {
    63: "memory was remapped, from the next reset on",
    92: "many corrected memory errors",
    94: "a contained memory error, which cost one program",
}
_OF_HARDWARE = {
    48: "an uncorrectable memory error",
    62: "the GPU's own processor has halted",
    64: "memory could not be remapped",
    74: "an NVLink error",
    79: "the GPU has fallen off the bus",
    95: "an uncontained memory error",
    119: "the GPU's own processor does not answer",
    120: "the GPU's own processor failed",
    140: "an unrecovered memory error",
    154: "the GPU asks for a reset",
}


@check("GPUs")
def gpus(here: Surroundings) -> Finding:
    """The GPUs that a job would use, and who else is on them."""
    machine = here.machine
    if here.config.device == "cpu":
        return Finding("GPUs", PASS, f"not used (device=cpu): {wording.plural(here.workers, 'CPU worker')}")
    if machine.problem:
        return Finding("GPUs", FAIL, machine.problem, machine.fix)
    if not machine.visible:
        mask = here.environment.get("CUDA_VISIBLE_DEVICES")
        hidden = machine.hidden and mask is not None
        why = f", CUDA_VISIBLE_DEVICES={mask!r} hides {machine.hidden}" if hidden else ""
        state = FAIL if here.config.device == "cuda" else WARN if hidden else PASS
        fix = "unset CUDA_VISIBLE_DEVICES" if hidden else "device=cpu, or `nvidia-smi`: is there a driver?"
        return Finding("GPUs", state, f"none visible{why}: {CPU_WORKERS} CPU workers", fix)
    text = f"{machine.visible} visible: {', '.join(_kinds(here.gpus))}"
    if silent := [gpu.name for gpu in here.gpus if gpu.memory_bytes is None and gpu.capability is None]:
        fix = f"`dmesg | grep NVRM` says more; {_without(here.gpus, lambda gpu: gpu.name not in silent)}"
        return Finding("GPUs", FAIL, f"{text}; no answer from {', '.join(silent)}", fix)
    busy = [
        f"{gpu.name} ({wording.size(gpu.used_bytes)})"
        for gpu in here.gpus
        if gpu.used_bytes and gpu.memory_bytes and gpu.used_bytes > _BUSY_SHARE * gpu.memory_bytes
    ]
    if busy:
        return Finding("GPUs", WARN, f"{text}; memory in use already: {', '.join(busy)}", "nvidia-smi shows by whom")
    return Finding("GPUs", PASS, text)


@check("GPU memory")
def gpu_memory(here: Surroundings) -> Finding:
    """Errors in the GPUs' memory that ECC could not correct, and rows that wait for a restart to be replaced."""
    name = "GPU memory"
    broken = [
        f"{gpu.name}: {wording.plural(gpu.uncorrected, 'uncorrectable error')} since the driver was loaded"
        for gpu in here.gpus
        if gpu.uncorrected
    ]
    broken += [f"{gpu.name}: a defect row could not be replaced" for gpu in here.gpus if gpu.rows_failed]
    if broken:
        leave = _without(here.gpus, lambda gpu: not gpu.uncorrected and not gpu.rows_failed)
        return Finding(name, FAIL, "; ".join(broken), f"`sudo nvidia-smi --gpu-reset`; if it comes again, {leave}")
    if waiting := [gpu.name for gpu in here.gpus if gpu.rows_pending]:
        message = f"rows of {', '.join(waiting)} wait to be replaced"
        return Finding(name, WARN, message, "`sudo nvidia-smi --gpu-reset`, or a restart of the machine")
    known = any(gpu.uncorrected is not None for gpu in here.gpus)
    return Finding(name, PASS, "no uncorrectable errors" if known else "without ECC: errors go unnoticed")


@check("GPU clocks")
def gpu_clocks(here: Surroundings) -> Finding:
    """What holds the clocks down, and whether the driver stays loaded between two jobs."""
    name = "GPU clocks"
    if held := [words for gpu in here.gpus if (words := _held(gpu))]:
        fix = "look at its cooling and its power cables: nvidia-smi -q -d PERFORMANCE"
        return Finding(name, WARN, f"held down: {'; '.join(held)}", fix)
    if lazy := [gpu.name for gpu in here.gpus if gpu.persistent is False and not gpu.has_display]:
        message = f"{', '.join(lazy)} without persistence mode: every start loads the driver anew"
        return Finding(name, WARN, message, "sudo nvidia-smi -pm 1")
    return Finding(name, PASS, "nothing holds them down; the driver stays loaded")


@check("GPU links")
def gpu_links(here: Surroundings) -> Finding:
    """How the GPUs are connected: NVLink, PCI Express as wide as it could be, access to each other's memory."""
    name, links = "GPU links", [gpu.nvlinks for gpu in here.gpus]
    narrow = [f"{gpu.name} has {gpu.lanes} lanes of {gpu.most_lanes}" for gpu in here.gpus if _is_narrow(gpu)]
    if narrow:
        return Finding(name, WARN, f"PCI Express is narrow: {', '.join(narrow)}", "reseat the GPU or its riser")
    if len(set(links)) > 1:
        fix = "nvidia-smi nvlink -s; a restart of the machine trains them anew"
        return Finding(name, WARN, f"NVLinks differ: {', '.join(map(str, links))}", fix)
    text = f"{wording.plural(links[0], 'NVLink')} each" if any(links) else "PCI Express"
    if apart := [f"{gpu.name} and {other}" for gpu in here.gpus for other in gpu.unreachable]:
        text = f"{text}; no direct access between {_first(apart)}"
        if any(links):
            return Finding(name, WARN, text, "`nvidia-smi topo -p2p r`; is the fabric manager running?")
        # Most boards and all but the dearest cards are made so: nothing is wrong, it is only slower.
        return Finding(name, PASS, f"{text}: through the host's memory")
    return Finding(name, PASS, f"{text}; each reaches the others' memory" if len(here.gpus) > 1 else text)


@check("GPU programs")
def gpu_programs(here: Surroundings) -> Finding:
    """Whose programs are on the GPUs."""
    found = [f"{program} on {gpu.name}" for gpu in here.gpus for program in gpu.programs]
    if found:
        free = _without(here.gpus, lambda gpu: not gpu.programs)
        return Finding("GPU programs", WARN, _first(found), f"wait for them, or {free}")
    return Finding("GPU programs", PASS, "none")


@check("kernel log", hangs="`sudo dmesg | grep Xid`")
def kernel_log(here: Surroundings) -> Finding:
    """The driver's error messages (Xid) since the machine was started."""
    for words in _LOGS:
        command = shutil.which(words[0])
        if command is None:
            continue
        try:
            done = subprocess.run(
                [command, *words[1:]],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_DMESG_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            continue
        if done.returncode == 0:
            return judge_xids(done.stdout)
    return Finding(
        "kernel log", PASS, "may not be read here; `sudo dmesg | grep Xid` on the host shows the driver's errors"
    )


def judge_xids(log: str) -> Finding:
    """What the driver's messages in a kernel log mean."""
    seen = Counter((match["bus"], int(match["number"])) for match in _XID.finditer(log))
    if not seen:
        return Finding("kernel log", PASS, "no Xid")
    known = {**_OF_PROGRAMS, **_MENDED, **_OF_HARDWARE}
    # What is worst comes first.
    words = [
        f"Xid {number} on {bus} ({known.get(number, 'see the driver manual')})" + (f" x{count}" if count > 1 else "")
        for (bus, number), count in sorted(seen.items(), key=lambda item: item[0][1] not in _OF_HARDWARE)
    ]
    numbers = {number for _, number in seen}
    if numbers & _OF_HARDWARE.keys():
        fix = "restart the machine; if it comes again, leave that GPU out (CUDA_VISIBLE_DEVICES) and have it replaced"
        return Finding("kernel log", FAIL, _first(words), fix)
    fix = "`sudo dmesg | grep Xid` has the times: mostly a program's own error"
    if numbers & _MENDED.keys():
        fix = "`sudo nvidia-smi --gpu-reset` when it is idle; if it comes often, have the GPU replaced"
    return Finding("kernel log", WARN, _first(words), fix)


def _kinds(found: Sequence[GpuFacts]) -> list[str]:
    """Models with their number, capability and memory."""
    kinds = Counter((gpu.model, gpu.capability, gpu.memory_bytes) for gpu in found)
    words = []
    for (model, capability, size), count in kinds.items():
        facts = [".".join(map(str, capability))] if capability else []
        facts += [wording.size(size)] if size else []
        words.append(f"{count}x {model}" + (f" ({', '.join(facts)})" if facts else ""))
    return words


def _without(found: Iterable[GpuFacts], is_good: Callable[[GpuFacts], bool]) -> str:
    """How to leave out the GPUs that are not good."""
    good = [str(gpu.index) for gpu in found if is_good(gpu)]
    if not good:
        return "use another machine"
    return f"export CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES={','.join(good)}"


def _held(gpu: GpuFacts) -> str:
    brakes = [words for bit, words in _BRAKES.items() if (gpu.brakes or 0) & bit]
    at = f" at {gpu.celsius} °C" if gpu.celsius else ""
    return f"{gpu.name} by {', '.join(brakes)}{at}" if brakes else ""


def _is_narrow(gpu: GpuFacts) -> bool:
    return gpu.lanes is not None and gpu.most_lanes is not None and 0 < gpu.lanes < gpu.most_lanes


def _first(words: Sequence[str]) -> str:
    return ", ".join(words[:_SHOWN]) + (", ..." if len(words) > _SHOWN else "")


HEALTH: tuple[Check[Surroundings], ...] = (gpu_memory, gpu_clocks, gpu_links, gpu_programs, kernel_log)
"""What is looked at where there are GPUs to use."""
