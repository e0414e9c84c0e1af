"""The names that `model.name`, `optim.name`, `data.name` and the groups take, read from source text.

Importing torch and torchvision takes seconds; a typing mistake has to be told in a fraction of one. So the
installed packages' source is searched instead, and the tests compare that with what the packages say.
"""

import ast
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from trainer.errors import UnfitError

PACKAGE = Path(__file__).resolve().parents[1]
"""The directory of the package `trainer`."""

REFUSED_OPTIMIZERS = {
    "LBFGS": "it needs a closure that evaluates the loss several times a step",
    "Muon": "it takes matrices only, and an image model has other parameters too",
    "SparseAdam": "it takes sparse gradients only",
}
"""Classes of torch.optim that this trainer's loop cannot drive, and why."""

_DEFINITION = re.compile(
    r"""^@register_model\((?:name\s*=\s*)?(?:["'](?P<alias>[^"']+)["'])?\)\s*\n"""
    r"(?:@[^\n]*\n(?:[ )][^\n]*\n)*)*"
    r"def\s+(?P<name>\w+)\((?P<signature>.*?)\)\s*->",
    re.MULTILINE | re.DOTALL,
)
_WEIGHTS_OF = re.compile(r"weights:\s*(?:Optional\[)?\s*(\w+)")
_MEMBER = re.compile(r"^    ([A-Z]\w*)\s*=", re.MULTILINE)
_URL = re.compile(r'url="([^"]+)"')
_PARAMETERS = re.compile(r'"num_params": (\d+)')
_ALIAS = re.compile(r"^    DEFAULT = (\w+)", re.MULTILINE)
_MIN_SIZE = re.compile(r'"min_size": \((\d+), (\d+)\)')
_SHARED = re.compile(r"\*\*(_\w+)")
_OPTIMIZER = re.compile(r"^from torch\.optim\.(\w+) import (\w+) as \2$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _Model:
    weights: str | None
    source: str


def config_root() -> Path:
    """The directory of the shipped configuration files: in the wheel, or beside the package in a checkout.

    Raises:
        UnfitError: neither is there.
    """
    for candidate in (PACKAGE / "configs", PACKAGE.parent / "configs"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise UnfitError(f"the configuration files are missing beside {PACKAGE}", "install paceline again")


def group_names(config_dir: Path | None = None) -> list[str]:
    """The Hydra groups: folders of the shipped and of the user's configuration directory."""
    found = {folder.name for root in _roots(config_dir) for folder in root.iterdir() if folder.is_dir()}
    return sorted(found - {"hydra"})


def group_files(group: str, config_dir: Path | None = None) -> dict[str, Path]:
    """The options of a group: name -> file. A shipped file wins over a user's of that name, as in Hydra."""
    files: dict[str, Path] = {}
    for root in _roots(config_dir):
        folder = root / group
        for file in sorted(folder.rglob("*.yaml")):
            files.setdefault(str(file.relative_to(folder).with_suffix("")), file)
    return files


def group_options(group: str, config_dir: Path | None = None) -> list[str]:
    """The options of a group, such as the recipes."""
    return sorted(group_files(group, config_dir))


def dataset_names() -> list[str]:
    """The data sets that `data.name` takes: one file each in `trainer/data/sets`."""
    return sorted(file.stem for file in (PACKAGE / "data" / "sets").glob("[!_]*.py"))


def model_names() -> list[str]:
    """The models that `model.name` takes: ours, then torchvision's image classification models."""
    return [*sorted(_ours()), *sorted(_torchvision())]


def named(section: str) -> list[str]:
    """What the key `name` of `data`, `model` or `optim` takes."""
    names = {"data": dataset_names, "model": model_names, "optim": optimizer_names}
    return [name.lower() for name in names[section]()]


def weights_names(model: str) -> list[str]:
    """The names of torchvision's weights for a model with `DEFAULT`; empty for ours and unknown ones."""
    return sorted(set(_MEMBER.findall(_weights_body(model))))


def weights_url(model: str, weights: str) -> str | None:
    """Where torchvision's weights of a name, for a model, are published; None for unknown ones."""
    body = _weights_body(model)
    alias = _ALIAS.search(body)
    member = alias[1] if alias and weights == "DEFAULT" else weights
    found = re.search(rf"^    {re.escape(member)} = Weights\((.*?)^    \)", body, re.MULTILINE | re.DOTALL)
    url = _URL.search(found[1]) if found else None
    return url[1] if url else None


def parameter_counts() -> dict[int, str]:
    """How many parameters torchvision's models have with 1,000 classes: count -> model."""
    return {
        int(count): model
        for model in sorted(_torchvision())
        for text in _meta(model)
        for count in _PARAMETERS.findall(text)
    }


def smallest_image(model: str) -> int:
    """The side of the smallest images, pixels, that torchvision tells of a model's weights; 1 for others."""
    sizes = (min(map(int, size)) for text in _meta(model) for size in _MIN_SIZE.findall(text))
    return min(sizes, default=1)


def is_torchvision(model: str) -> bool:
    """Whether a model, named in any case, is torchvision's rather than ours."""
    return model.lower() in _torchvision()


def optimizer_names() -> list[str]:
    """The classes of torch.optim that `optim.name` takes, in any case."""
    return sorted(set(_optimizers()) - set(REFUSED_OPTIMIZERS))


def optimizer_class(name: str) -> str | None:
    """The spelling of a class of torch.optim in torch itself (`adamw` -> `AdamW`), or None."""
    return next((known for known in _optimizers() if known.lower() == name.lower()), None)


def model_arguments(model: str) -> list[str] | None:
    """The arguments of one of our models; None for others, or where it takes any."""
    found = _ours().get(model.lower())
    for node in ast.parse(found.source).body if found else []:
        if isinstance(node, ast.FunctionDef) and node.name == model.lower() and node.args.kwarg is None:
            return [argument.arg for argument in _arguments(node)]
    return None


def optimizer_arguments(name: str) -> dict[str, str]:
    """The keyword arguments of an optimizer's constructor without `params`, with their types as they are written.

    Empty for an unknown one.
    """
    wanted = optimizer_class(name)
    if wanted is None:
        return {}
    tree = ast.parse((_location("torch") / "optim" / f"{_optimizers()[wanted]}.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == wanted:
            for part in node.body:
                if isinstance(part, ast.FunctionDef) and part.name == "__init__":
                    return {
                        argument.arg: ast.unparse(argument.annotation) if argument.annotation else ""
                        for argument in _arguments(part)
                        if argument.arg not in ("self", "params")
                    }
    return {}


def _arguments(function: ast.FunctionDef) -> list[ast.arg]:
    return [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]


def _weights_body(model: str) -> str:
    """The source of the class that lists a model's weights; empty where there is none."""
    found = _torchvision().get(model.lower())
    if found is None or found.weights is None:
        return ""
    body = re.search(rf"^class {found.weights}\(WeightsEnum\):\n(.*?)(?=^\S|\Z)", found.source, re.M | re.S)
    return body.group(1) if body else ""


def _meta(model: str) -> list[str]:
    """The source that describes a model's weights: its own, and what it shares with others'."""
    body = _weights_body(model)
    told = [body]
    for name in sorted(set(_SHARED.findall(body))):
        told += re.findall(rf"^{name}\b[^\n]*= \{{\n(.*?)^\}}", _torchvision()[model.lower()].source, re.M | re.S)
    return told


@cache
def _ours() -> dict[str, _Model]:
    return _scan(sorted((PACKAGE / "model" / "zoo").glob("*.py")))


@cache
def _torchvision() -> dict[str, _Model]:
    return _scan(sorted((_location("torchvision") / "models").glob("[!_]*.py")))


def _scan(files: Sequence[Path]) -> dict[str, _Model]:
    found: dict[str, _Model] = {}
    for file in files:
        source = file.read_text(encoding="utf-8")
        for match in _DEFINITION.finditer(source):
            weights = _WEIGHTS_OF.search(match["signature"])
            found[match["alias"] or match["name"]] = _Model(weights[1] if weights else None, source)
    return found


@cache
def _optimizers() -> dict[str, str]:
    text = (_location("torch") / "optim" / "__init__.py").read_text()
    return {name: module for module, name in _OPTIMIZER.findall(text) if name[0].isupper() and name != "Optimizer"}


@cache
def _location(package: str) -> Path:
    """The directory of an installed top-level package, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UnfitError(f"{package} is not installed", "use .venv/bin/python (`make setup` makes it)")
    return Path(next(iter(spec.submodule_search_locations)))


def _roots(config_dir: Path | None) -> list[Path]:
    return [config_root()] if config_dir is None else [config_root(), config_dir]
