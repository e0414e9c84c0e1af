"""Makes a data set ready before a training needs it: `python -m trainer.data.fetch NAME [--root DIR]`."""

import argparse
import sys

from trainer.config import DataConfig
from trainer.data import datasets
from trainer.errors import PacelineError


def main(arguments: list[str] | None = None) -> int:
    """Fetches and checks a data set, says so in one line; exits 0, 2 (wrong name) or 3 (cannot be had)."""
    parser = argparse.ArgumentParser(prog="python -m trainer.data.fetch", description=__doc__)
    parser.add_argument("name", metavar="NAME", help=f"one of {', '.join(datasets.names())}")
    parser.add_argument("--root", metavar="DIR", help="where a copy lies or is to be put (default: data)")
    options = parser.parse_args(arguments)
    try:
        print(fetch(options.name, options.root))
    except PacelineError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def fetch(name: str, root: str | None = None) -> str:
    """Fetches and checks a data set; returns what it is, in a line.

    Raises:
        ConfigError: there is no such data set, or no copy at `root`.
        UnfitError: it cannot be had here.
    """
    splits = datasets.load(DataConfig(name=name, root=root))
    agree = ", checksums agree" if splits.verified else ""
    return f"{splits.title}, {len(splits.train) + len(splits.val):,} images{agree}"


if __name__ == "__main__":
    sys.exit(main())
