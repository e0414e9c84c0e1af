"""Python, packages, torch against the driver, other people's packages of our names, accounts and tools."""

import importlib.util
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path

from launcher.doctor import builds
from launcher.doctor.finding import FAIL, PASS, WARN, Check, Finding, check
from launcher.doctor.surroundings import Surroundings

_SLURM = ("sbatch", "srun", "scancel", "squeue", "sacct", "scontrol")
_OTHER_BUILDS = "pytorch.org/get-started/previous-versions"


@check("python")
def python(here: Surroundings) -> Finding:
    """The interpreter, against what our own package asks for."""
    from packaging.specifiers import SpecifierSet

    text = f"{sys.version.split()[0]} ({sys.executable})"
    try:
        wanted = SpecifierSet(metadata.metadata("paceline")["Requires-Python"])
    except metadata.PackageNotFoundError:
        # The next line says so.
        return Finding("python", PASS, text)
    if not wanted.contains(".".join(map(str, sys.version_info[:3])), prereleases=True):
        return Finding("python", FAIL, f"{text}, wanted {wanted}", "make setup PYTHON=/path/to/another/python3")
    return Finding("python", PASS, text)


@check("packages")
def packages(here: Surroundings) -> Finding:
    """The installed packages against what Paceline is made for."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in metadata.requires("paceline") or []]
    except metadata.PackageNotFoundError:
        return Finding(
            "packages", WARN, "paceline is not installed in this environment", f"{sys.executable} -m pip install -e ."
        )
    wanted = [need for need in wanted if need.marker is None or need.marker.evaluate({"extra": ""})]
    wrong = []
    for requirement in wanted:
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


@check("module names")
def module_names(here: Surroundings) -> Finding:
    """Other distributions install packages called `trainer` and `launcher`, too."""
    ours = Path(__file__).resolve().parents[2]
    owners = metadata.packages_distributions()
    for name in ("trainer", "launcher"):
        found = importlib.util.find_spec(name)
        place = Path(found.origin).resolve().parent if found and found.origin else None
        culprits = sorted(set(owners.get(name, [])) - {"paceline"})
        if place != ours / name:
            whose = f"of the package {', '.join(culprits)}" if culprits else "not ours"
            fix = f"pip uninstall {' '.join(culprits)}; pip install -e {ours}" if culprits else _moved(place)
            return Finding("module names", FAIL, f"{name} is {place}, {whose}", fix)
        # Where both lie in site-packages, the one that was installed last has overwritten the other's files.
        if culprits and "site-packages" in ours.parts:
            names = " ".join(culprits)
            message = f"the package {names} installs a module {name} over ours"
            fix = f"pip uninstall {names}; pip install --force-reinstall paceline"
            return Finding("module names", FAIL, message, fix)
    return Finding("module names", PASS, f"trainer and launcher are those of {ours}")


def _moved(place: Path | None) -> str:
    return f"cd elsewhere, or another name for {place}: it comes first on PYTHONPATH or in this directory"


@check("torch")
def torch_build(here: Surroundings) -> Finding:
    """The CUDA that torch was built for against what driver and GPUs can do."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return Finding("torch", FAIL, "is not installed", f"{sys.executable} -m pip install -e .")
    # The file says it; importing torch for it would take seconds.
    text = (Path(found.origin).parent / "version.py").read_text()
    match = re.search(r"^cuda\b.*= *'(\d+)\.(\d+)", text, re.MULTILINE)
    built = (int(match[1]), int(match[2])) if match else None
    torch = f"{metadata.version('torch')}, " + (f"built for CUDA {_dotted(built)}" if built else "built without CUDA")
    machine = here.machine
    if not machine.driver:
        # A driver that does not answer is told with the GPUs.
        return Finding("torch", PASS, torch if machine.problem else f"{torch}; no NVIDIA driver")
    limits = f"driver {machine.driver} is for CUDA up to {_dotted(machine.cuda)}"
    if not here.gpus:
        return Finding("torch", PASS, f"{torch}; {limits}")
    capabilities = [gpu.capability for gpu in here.gpus if gpu.capability]
    better = builds.fitting(capabilities, machine.cuda)
    fix = f"torch's build {better.tag}: {_OTHER_BUILDS}" if better else "a newer driver"
    if built is None:
        return Finding("torch", FAIL, f"{torch}, but there is a GPU: {limits}", fix)
    # Within a major version an older driver serves a newer runtime.
    if built[0] > machine.cuda[0]:
        return Finding("torch", FAIL, f"{torch}, but {limits}", f"a newer driver, or {fix}" if better else fix)
    known = builds.build_of(built)
    if known and (
        foreign := [gpu for gpu in here.gpus if gpu.capability and not builds.has_code(known, [gpu.capability])]
    ):
        names = sorted({f"{gpu.model} ({_dotted(gpu.capability)})" for gpu in foreign if gpu.capability})
        return Finding("torch", FAIL, f"{torch}, has no code for {', '.join(names)}", fix)
    return Finding("torch", PASS, f"{torch}; {limits}")


@check("container")
def container(here: Surroundings) -> Finding:
    """Which of our images suits the GPUs and the driver."""
    capabilities, cuda = [gpu.capability for gpu in here.gpus if gpu.capability], here.machine.cuda
    if not here.gpus:
        return Finding("container", PASS, f"the image paceline:{builds.CPU_TAG} suits this machine")
    build = builds.fitting(capabilities, cuda)
    if build:
        text = (
            f"the image paceline:{build.tag} suits GPU and driver (CUDA {_dotted(build.cuda)}, driver {build.driver}+)"
        )
        return Finding("container", PASS, text)
    if able := [build for build in builds.BUILDS if builds.has_code(build, capabilities)]:
        least = min(build.driver for build in able)
        message = f"no image for these GPUs runs with driver {here.machine.driver} (CUDA {_dotted(cuda)})"
        return Finding("container", WARN, message, f"NVIDIA driver {least} or newer")
    kinds = ", ".join(sorted({_dotted(capability) for capability in capabilities}))
    fix = "GPUs of one kind by CUDA_VISIBLE_DEVICES"
    return Finding("container", WARN, f"no image has code for all these GPUs (capabilities {kinds})", fix)


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


@check("W&B")
def wandb(here: Surroundings) -> Finding:
    """Whether Weights & Biases can be logged to; the network is not asked."""
    from trainer.tracking.wandb import has_api_key

    if here.config.tracking.wandb is None:
        return Finding("W&B", PASS, "not used")
    if has_api_key(here.environment):
        return Finding("W&B", PASS, "a key is set: runs are logged online")
    if here.config.tracking.wandb.mode == "online":
        return Finding("W&B", FAIL, "tracking.wandb.mode=online, but there is no key", "wandb login")
    return Finding("W&B", PASS, "no key: runs are kept offline, `wandb login` sets one")


@check("Slurm")
def slurm(here: Surroundings) -> Finding:
    """The commands of a queue, where there is one."""
    missing = [name for name in _SLURM if shutil.which(name, path=here.environment.get("PATH")) is None]
    if len(missing) == len(_SLURM):
        return Finding("Slurm", PASS, "not here")
    if missing:
        return Finding("Slurm", WARN, f"without {', '.join(missing)}", "install the client package whole")
    return Finding("Slurm", PASS, f"{', '.join(_SLURM)} are here")


CHECKS: tuple[Check[Surroundings], ...] = (python, packages, module_names, torch_build, container, slurm, wandb)
