"""The entry of a worker: `torchrun --nproc_per_node=8 -m trainer ...` and `python -m trainer ...`."""

import os
import sys
from pathlib import Path


def main() -> int:
    """Reads the configuration and trains; returns the exit code of DESIGN's table."""
    # Imported here, so that a mistake in the configuration is told in half a second, before torch is there.
    from trainer.config import entry, from_yaml

    frozen = os.environ.get("PACELINE_CONFIG")
    if frozen is None:
        return entry.run(sys.argv[1:], _train)
    return _train(from_yaml(Path(frozen).read_text()))


def _train(config: object) -> int:
    from trainer.worker import work

    return work(config)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is written; tearing down torch and the trackers' threads would only cost time, or hang.
    os._exit(code)
