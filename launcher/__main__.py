"""`python -m launcher` is the `paceline` command."""

import sys
from pathlib import Path

if __name__ == "__main__":
    if sys.path[0] == str(Path.cwd()):
        # Python puts the current directory first here, where a user's trainer.py would hide our package.
        sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from launcher.cli import main

    sys.exit(main())
