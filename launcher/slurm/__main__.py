"""`python launcher/slurm RUN ATTEMPT`, in a batch script: runs the job in its allocation."""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

    from launcher.slurm.conductor import main

    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
