"""`make train`: the data, then a training through the public command, on whatever this machine has."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from launcher.gpus import count_gpus

HERE = Path(sys.executable).parent


def main() -> int:
    """Trains Fashion-MNIST, or scikit-learn's digits where it cannot be had; returns paceline's exit code."""
    root = Path(__file__).resolve().parent.parent
    os.chdir(root)
    gpus = count_gpus()
    found = f"{gpus} GPUs" if gpus else "no GPU found: 2 CPU workers"
    print(f"[1/3] environment   .venv is ready (torch {metadata.version('torch')}, {found})", flush=True)
    print("[2/3] data", flush=True)
    fetched = subprocess.run([sys.executable, "-m", "trainer.data.fetch", "fashion_mnist"], check=False)
    recipe = "fashion_mnist" if fetched.returncode == 0 else "digits"
    if recipe == "digits":
        print("      Fashion-MNIST cannot be had here: training on scikit-learn's digits instead", flush=True)
    print(f"[3/3] training      paceline run recipe={recipe}", flush=True)
    command = [str(HERE / "paceline"), "run", f"recipe={recipe}"]
    os.execv(command[0], command)


if __name__ == "__main__":
    sys.exit(main())
