"""One save as the trainer's writer thread does it, in a process that is cheap to start and to trace: no torch.

python one_save.py RUN STEP TENSORS    writes TENSORS as step STEP, says "saved", deletes the steps before
"""

import os
import sys
from pathlib import Path

from trainer import commit


def main() -> int:
    """Returns 1 where the save failed, with the reason on stderr."""
    run, step, tensors = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]).read_bytes()
    folder = run / "checkpoints" / f"step-{step:08d}"
    # Where the trace begins: what follows is the save.
    os.open(run, os.O_RDONLY | os.O_DIRECTORY)
    try:
        commit.sync_ancestors(run)
        commit.replace_file(run / "weights" / "last.safetensors", [tensors])
        state = f'{{"step": {step}}}'.encode()
        commit.write_folder(folder, {"tensors.safetensors": [tensors], "state.json": [state]})
        commit.verify_folder(folder)
    except (OSError, commit.Damaged) as error:
        print(error, file=sys.stderr)
        return 1
    os.write(1, b"saved")
    for old in sorted((run / "checkpoints").glob("step-*")):
        if old != folder:
            commit.delete_folder(old)
    return 0


if __name__ == "__main__":
    sys.exit(main())
