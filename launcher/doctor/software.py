"""Python, packages, torch against the driver, other people's packages of our names, accounts and tools."""

import importlib.util
import netrc
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path

from launcher.doctor.finding import FAIL, PASS, WARN, Check, Finding
from launcher.doctor.surroundings import Surroundings
from launcher.gpus import driver

_PYTHONS = ((3, 10), (3, 13))
_NAMESAKES = ("trainer", "launcher", "coqui-tts-trainer")
"""Packages of the index that install a module `trainer` or `launcher`."""
_SLURM = ("sbatch", "srun", "scancel", "squeue", "sacct", "scontrol")


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
            culprits = sorted(set(metadata.packages_distributions().get(name, [])) - {"paceline"})
            whose = f"of the package {', '.join(culprits)}" if culprits else "not ours"
            fix = f"pip uninstall {' '.join(culprits) or name}; pip install -e {ours}"
            return Finding("module names", FAIL, f"{name} is {place}, {whose}", fix)
    # Where both lie in site-packages, the one that was installed last has overwritten the other's files.
    namesakes = [name for name in _NAMESAKES if _is_installed(name)]
    if namesakes and "site-packages" in ours.parts:
        names = " ".join(namesakes)
        message = f"the package {names} installs modules of our names over ours"
        return Finding("module names", FAIL, message, f"pip uninstall {names}; pip install --force-reinstall paceline")
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


def wandb(here: Surroundings) -> Finding:
    """Whether Weights & Biases can be logged to."""
    if here.config.tracking.wandb is None:
        return Finding("W&B", PASS, "not used")
    if here.environment.get("WANDB_API_KEY") or _has_login():
        return Finding("W&B", PASS, "a key is set: runs are logged online")
    if here.config.tracking.wandb.mode == "online":
        return Finding("W&B", FAIL, "tracking.wandb.mode=online, but there is no key", "wandb login")
    return Finding("W&B", PASS, "no key: runs are kept offline, `wandb login` sets one")


def slurm(here: Surroundings) -> Finding:
    """The commands of a queue, where there is one."""
    missing = [name for name in _SLURM if shutil.which(name, path=here.environment.get("PATH")) is None]
    if len(missing) == len(_SLURM):
        return Finding("Slurm", PASS, "not here")
    if missing:
        return Finding("Slurm", WARN, f"without {', '.join(missing)}", "install the client package whole")
    return Finding("Slurm", PASS, f"{', '.join(_SLURM)} are here")


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _has_login() -> bool:
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


CHECKS: tuple[Check[Surroundings], ...] = (python, packages, module_names, torch_build, slurm, wandb)
