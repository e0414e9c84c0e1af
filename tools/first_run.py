"""`make train`: the data, then a training through the public command, on whatever this machine has."""

import os
import sys
from importlib import metadata
from pathlib import Path

from launcher.gpus import count_gpus
from trainer.errors import PacelineError, UnfitError

HERE = Path(sys.executable).parent


def main() -> int:
    """Trains Fashion-MNIST, or scikit-learn's digits where it cannot be had; returns paceline's exit code."""
    root = Path(__file__).resolve().parent.parent
    os.chdir(root)
    gpus = count_gpus()
    found = f"{gpus} GPUs" if gpus else "no GPU found: 2 CPU workers"
    print(f"[1/3] environment   .venv is ready (torch {metadata.version('torch')}, {found})", flush=True)
    from trainer.data.fetch import fetch  # imports torch: seconds, in which the line above should be read

    recipe = "fashion_mnist"
    try:
        print(f"[2/3] data          {fetch(recipe)}", flush=True)
    except UnfitError as error:
        recipe = "digits"
        print(f"[2/3] data          {error.problem}; training on scikit-learn's digits instead", flush=True)
    print(f"[3/3] training      paceline run recipe={recipe}", flush=True)
    command = [str(HERE / "paceline"), "run", f"recipe={recipe}"]
    os.execv(command[0], command)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PacelineError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
