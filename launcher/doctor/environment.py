"""Whether this machine and this environment are fit for a training. Torch is not imported: this takes half a second."""

import importlib.util
import netrc
import os
import re
import resource
import shutil
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

from launcher.doctor.finding import FAIL, PASS, WARN, Check, Finding
from launcher.gpus import busy_gpus, count_gpus, driver
from launcher.memory import memory_limit
from launcher.plan import CPU_WORKERS
from trainer import wording
from trainer.config import Config
from trainer.config.sources import data_problems
from trainer.cores import count_cpus
from trainer.data.shared_memory import WAYS_OUT
from trainer.errors import PacelineError, UnfitError

_PYTHONS = ((3, 10), (3, 13))
_LEAST_SHM = 1 << 30
_LEAST_FILES = 4096
_LEAST_PROCESSES = 1024
_MEMORY_PER_WORKER = 2 << 30
_LEAST_DISK, _FEW_DISK = 1 << 30, 10 << 30


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the checks look at besides the machine.

    Attributes:
        config: the job that is to run here.
        environment: the user's variables.
    """

    config: Config
    environment: Mapping[str, str]


def python(here: Surroundings) -> Finding:
    """The interpreter."""
    low, high = _PYTHONS
    text = f"{sys.version.split()[0]} ({sys.executable})"
    if not low <= sys.version_info[:2] <= high:
        return Finding(
            "python", FAIL, text, f"{low[0]}.{low[1]} to {high[0]}.{high[1]}: make PYTHON=/path/to/python3.12"
        )
    return Finding("python", PASS, text)


def packages(here: Surroundings) -> Finding:
    """The installed packages against what Paceline is made for."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in metadata.requires("paceline") or []]
    except metadata.PackageNotFoundError:
        return Finding(
            "packages", WARN, "paceline is not installed in this environment", f"{sys.executable} -m pip install -e ."
        )
    wrong = []
    for requirement in wanted:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, wanted {requirement.specifier}")
    if wrong:
        return Finding("packages", FAIL, "; ".join(wrong), f"{sys.executable} -m pip install -e .")
    return Finding("packages", PASS, f"{len(wanted)} as they should be")


def module_names(here: Surroundings) -> Finding:
    """Other distributions install packages called `trainer` and `launcher`, too."""
    ours = Path(__file__).resolve().parents[2]
    for name in ("trainer", "launcher"):
        found = importlib.util.find_spec(name)
        place = Path(found.origin).resolve().parent if found and found.origin else None
        if place != ours / name:
            return Finding(
                "module names", FAIL, f"{name} is {place}, not ours", "pip uninstall trainer launcher; pip install -e ."
            )
    return Finding("module names", PASS, f"trainer and launcher are those of {ours}")


def torch_build(here: Surroundings) -> Finding:
    """The CUDA that torch was built for against what the driver can do."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return Finding("torch", FAIL, "is not installed", f"{sys.executable} -m pip install -e .")
    # The file says it; importing torch for it would take seconds.
    text = (Path(found.origin).parent / "version.py").read_text()
    built = re.search(r"^cuda\b.*= *'([\d.]+)'", text, re.MULTILINE)
    torch = f"{metadata.version('torch')}, " + (f"built for CUDA {built[1]}" if built else "built without CUDA")
    found_driver = driver()
    if found_driver is None:
        return Finding("torch", PASS, f"{torch}; no NVIDIA driver")
    version, cuda = found_driver
    limits = f"driver {version} is for CUDA up to {cuda[0]}.{cuda[1]}"
    if built is None:
        return Finding("torch", FAIL, f"{torch}, but there is a GPU: {limits}", "pip install a CUDA build of torch")
    # Within a major version an older driver serves a newer runtime.
    if int(built[1].partition(".")[0]) > cuda[0]:
        return Finding("torch", FAIL, f"{torch}, but {limits}", "a newer driver, or a torch built for an older CUDA")
    return Finding("torch", PASS, f"{torch}; {limits}")


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


def shared_memory(here: Surroundings) -> Finding:
    """Data workers hand their batches over in /dev/shm."""
    free = shutil.disk_usage("/dev/shm").free
    if free < _LEAST_SHM:
        text = f"{wording.size(free)} free: too small for many data workers"
        return Finding("/dev/shm", WARN, text, WAYS_OUT)
    return Finding("/dev/shm", PASS, f"{wording.size(free)} free")


def open_files(here: Surroundings) -> Finding:
    """Every worker and data worker needs some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _LEAST_FILES:
        most = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
        return Finding(
            "open files",
            WARN,
            f"at most {soft:,}",
            f"ulimit -n {min(hard, 65536) if hard > 0 else 65536} (the hard limit is {most})",
        )
    return Finding("open files", PASS, f"at most {soft:,}")


def processes(here: Surroundings) -> Finding:
    """Threads count, too."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft != resource.RLIM_INFINITY and soft < _LEAST_PROCESSES:
        return Finding("processes", WARN, f"at most {soft:,} for this user", "ulimit -u 4096")
    return Finding("processes", PASS, "unlimited" if soft == resource.RLIM_INFINITY else f"at most {soft:,}")


def memory(here: Surroundings) -> Finding:
    """Host memory, as this machine and its container allow."""
    free, limit = psutil.virtual_memory().available, memory_limit()
    room = free if limit is None else min(free, limit)
    text = f"{wording.size(room)} available" + ("" if limit is None else f" (limit {wording.size(limit)})")
    workers = _workers(here)
    if room < workers * _MEMORY_PER_WORKER:
        return Finding("memory", WARN, f"{text} for {workers} workers", "fewer data.workers, a smaller data.prefetch")
    return Finding("memory", PASS, text)


def cores(here: Surroundings) -> Finding:
    """Cores for the workers and their data workers."""
    count, workers = count_cpus(), _workers(here)
    text = f"{wording.plural(count, 'core')} for {wording.plural(workers, 'worker')}"
    if count < workers:
        return Finding("cores", WARN, f"{text}: they will wait for each other", f"cluster.gpus_per_node={count}")
    asked = here.config.data.workers
    if asked is not None and asked * workers > 2 * count:
        return Finding(
            "cores", WARN, f"{text} with {asked} data workers each", f"data.workers={max(1, count // workers)}"
        )
    return Finding("cores", PASS, text)


def rendezvous(here: Surroundings) -> Finding:
    """The port where workers meet, and the name by which other machines would find this one."""
    port = here.config.cluster.port or 0
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        return Finding(
            "rendezvous",
            FAIL,
            f"port {port or 'any'} on 127.0.0.1: {error.strerror}",
            "cluster.port=null takes a free one",
        )
    try:
        address = socket.gethostbyname(socket.gethostname())
    except OSError:
        return Finding(
            "rendezvous", WARN, f"the host name {socket.gethostname()} has no address", "add it to /etc/hosts"
        )
    return Finding("rendezvous", PASS, f"a port is free; {socket.gethostname()} is {address}")


def data(here: Surroundings) -> Finding:
    """The data set that a job is given, as far as a look at it tells."""
    chosen = here.config.data
    if chosen.root is None:
        return Finding("data", PASS, "no data.root given")
    try:
        problems: list[PacelineError] = list(data_problems(here.config))
    except UnfitError as error:
        problems = [error]
    if problems:
        return Finding("data", FAIL, problems[0].problem, problems[0].fix)
    return Finding("data", PASS, f"data.root={chosen.root} can be read")


def run_directory(here: Surroundings) -> Finding:
    """Where runs are kept."""
    wanted = Path(here.config.run.dir).expanduser()
    place = next(path for path in (wanted.absolute(), *wanted.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return Finding("run.dir", FAIL, f"{wanted} cannot be written", "run.dir=/a/directory/you/can/write")
    free = shutil.disk_usage(place).free
    text = f"{wanted}, {wording.size(free)} free"
    if free < _LEAST_DISK:
        return Finding("run.dir", FAIL, text, "free some, or run.dir=/a/disk/with/space")
    if free < _FEW_DISK:
        return Finding("run.dir", WARN, text, "checkpoint.keep=1, or run.dir=/a/disk/with/space")
    return Finding("run.dir", PASS, f"{text} (paceline doctor --storage {wanted} tries it)")


def wandb(here: Surroundings) -> Finding:
    """Whether Weights & Biases can be logged to."""
    if here.config.tracking.wandb is None:
        return Finding("W&B", PASS, "not used")
    if here.environment.get("WANDB_API_KEY") or _has_login():
        return Finding("W&B", PASS, "a key is set: runs are logged online")
    return Finding("W&B", PASS, "no key: runs are kept offline, `wandb login` sets one")


def _workers(here: Surroundings) -> int:
    asked = here.config.cluster.gpus_per_node
    try:
        return asked or count_gpus(here.environment) or CPU_WORKERS
    except UnfitError:
        return asked or CPU_WORKERS


def _has_login() -> bool:
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


CHECKS: tuple[Check[Surroundings], ...] = (
    python,
    packages,
    module_names,
    torch_build,
    gpus,
    shared_memory,
    open_files,
    processes,
    memory,
    cores,
    rendezvous,
    data,
    run_directory,
    wandb,
)
"""What is looked at, in this order."""
