"""What every benchmark ends with: one JSON object of the same form."""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the benchmark's docstring as its help, and `--json`."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", action="store_true", help="one JSON object in a line of its own")
    return made


def show(
    options: argparse.Namespace,
    *,
    benchmark: str,
    ratio: float,
    goal: float,
    rivals: Mapping[str, float],
    packages: Iterable[str],
    **more: Any,
) -> None:
    """Prints the figures on stdout.

    Args:
        options: what the parser found.
        benchmark: its name.
        ratio: ours.
        goal: what `ratio` should not exceed.
        rivals: name -> ratio, measured in the same run.
        packages: whose versions the figures depend on; those that are not installed took no part.
        more: what else was measured.
    """
    versions = {"python": sys.version.split()[0]}
    for package in packages:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    figures = {"benchmark": benchmark, "ratio": ratio, "goal": goal, "rivals": dict(rivals), **more}
    print(json.dumps({**figures, "versions": versions}, indent=None if options.json else 2))
