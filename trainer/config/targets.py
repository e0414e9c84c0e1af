"""What `_target_` names, read from source text: importing it would take seconds, and run whatever is in it."""

import ast
import importlib.util
import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec, PathFinder
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any

from trainer.config.suggest import closest
from trainer.errors import ConfigError
from trainer.wording import short_path

_FIX = "it is package.module.callable; the package must be installed or lie in the working directory"
# Who uses these may bind any name.
_DYNAMIC_NAMES = {"__getattr__", "exec", "globals", "locals", "setattr", "vars"}
_DYNAMIC_ATTRIBUTES = {"__dict__", "modules"}


def find(key: str, target: str) -> Signature | None:
    """Looks for what a dotted path names, as an import from the working directory would, and imports nothing.

    Args:
        key: the configuration's, for the error.
        target: the dotted path.

    Returns:
        The signature of a plain function of a module; None where the source text does not tell.

    Raises:
        ConfigError: the path surely cannot be imported.
    """
    head, *rest = target.split(".")
    spec = _top(head)
    if spec is None:
        raise _missing(key, target, f"there is no module {head}", _FIX)
    while rest and spec.submodule_search_locations is not None:
        inner = PathFinder.find_spec(f"{spec.name}.{rest[0]}", list(spec.submodule_search_locations))
        if inner is None:
            break
        spec = inner
        del rest[0]
    if not rest:
        return None
    if spec.origin is None and spec.submodule_search_locations is not None:
        raise _missing(key, target, f"there is no module {spec.name}.{rest[0]}", _FIX)
    if spec.origin is None or not spec.origin.endswith(".py"):
        return None
    try:
        tree = ast.parse(Path(spec.origin).read_bytes())
    except SyntaxError as error:
        raise _missing(
            key, target, f"{short_path(Path(spec.origin))}:{error.lineno}: {error.msg}", "mend the file"
        ) from error
    except (OSError, ValueError):
        return None
    bound = _bound_names(tree)
    if bound is not None and rest[0] not in bound:
        near = closest(rest[0], sorted(bound))
        fix = f"did you mean {key}={'.'.join([spec.name, near, *rest[1:]])}?" if near else _FIX
        raise _missing(key, target, f"{short_path(Path(spec.origin))} has no {rest[0]}", fix)
    return _signature(tree, rest[0]) if len(rest) == 1 else None


def check_arguments(
    signature: Signature, origin: str, args: Mapping[str, Any], positional: tuple[object, ...] = ()
) -> None:
    """Refuses keyword arguments of a data set that it does not take, and the lack of those that it needs.

    Args:
        signature: of what builds the data set.
        origin: the key and value that name it.
        args: `data.args`.
        positional: what it is given beside them, first.

    Raises:
        ConfigError: names the argument, and what it takes.
    """
    try:
        signature.bind(*positional, **args)
    except TypeError as error:
        accepted = [
            name
            for name, parameter in list(signature.parameters.items())[len(positional) :]
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        ]
        raise ConfigError(
            f"data.args does not fit {origin}: {error}",
            f"it takes {', '.join(accepted)}" if accepted else "it takes no arguments: data.args={}",
        ) from error


def _missing(key: str, target: str, reason: str, fix: str) -> ConfigError:
    return ConfigError(f"{key}={target} cannot be imported: {reason}", fix)


def _top(name: str) -> ModuleSpec | None:
    """The spec of a top-level module, the working directory first, as workers have it."""
    if name not in sys.modules:
        found = PathFinder.find_spec(name, [str(Path.cwd()), *sys.path])
        if found is not None and found.origin is not None:
            return found
    try:
        # Asks the finders of editable installations, too.
        known = importlib.util.find_spec(name)
    except ValueError:
        # A module without a spec, such as __main__: it is there.
        return ModuleSpec(name, None)
    return known or PathFinder.find_spec(name, [str(Path.cwd()), *sys.path])


def _bound_names(tree: ast.Module) -> set[str] | None:
    """Every name that a module's text binds anywhere; None where it may bind others."""
    bound: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(names=[ast.alias(name="*")]):
                return None
            case ast.Attribute(attr=name) if name in _DYNAMIC_ATTRIBUTES:
                return None
            case ast.FunctionDef(name=name) | ast.Name(id=name) if name in _DYNAMIC_NAMES:
                return None
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                bound.add(name)
            case ast.Name(id=name, ctx=ast.Store()) | ast.ExceptHandler(name=str(name)):
                bound.add(name)
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)) | ast.MatchMapping(rest=str(name)):
                bound.add(name)
            case ast.alias(name=name, asname=other):
                bound.add(other or name.partition(".")[0])
    return bound


def _binds(node: ast.AST, name: str) -> bool:
    """Whether a definition, an import or an assignment, at any depth, gives a name."""
    match node:
        case ast.FunctionDef(name=bound) | ast.AsyncFunctionDef(name=bound) | ast.ClassDef(name=bound):
            return bound == name
        case ast.alias(name=imported, asname=other):
            return (other or imported.partition(".")[0]) == name
        case ast.Name(id=bound, ctx=ast.Store()):
            return bound == name
    return False


def _signature(tree: ast.Module, name: str) -> Signature | None:
    """The signature of a function that a module defines once and without decorators."""
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    if len(found) != 1 or found[0].decorator_list or sum(_binds(node, name) for node in ast.walk(tree)) != 1:
        return None
    given = found[0].args
    plain = [*given.posonlyargs, *given.args]
    needed = len(plain) - len(given.defaults)
    parameters = [
        Parameter(
            argument.arg,
            Parameter.POSITIONAL_ONLY if index < len(given.posonlyargs) else Parameter.POSITIONAL_OR_KEYWORD,
            default=Parameter.empty if index < needed else None,
        )
        for index, argument in enumerate(plain)
    ]
    if given.vararg:
        parameters.append(Parameter(given.vararg.arg, Parameter.VAR_POSITIONAL))
    parameters += [
        Parameter(argument.arg, Parameter.KEYWORD_ONLY, default=Parameter.empty if default is None else None)
        for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)
    ]
    if given.kwarg:
        parameters.append(Parameter(given.kwarg.arg, Parameter.VAR_KEYWORD))
    return Signature(parameters)
