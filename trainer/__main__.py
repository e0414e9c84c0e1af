"""The entry of a worker: `torchrun --nproc_per_node=8 -m trainer ...` and `python -m trainer ...`."""

import gc
import itertools
import os
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from trainer.age import process_age_s
from trainer.errors import PacelineError

if TYPE_CHECKING:
    from trainer.config import Config


def main(frozen: str | None = None) -> int:
    """Reads the configuration and trains; returns the exit code.

    Args:
        frozen: the configuration as YAML, from a launcher that has composed and checked it; else it is composed here.
    """
    # Importing torch makes a million objects that live for ever; searching them for garbage takes a tenth of the time.
    gc.disable()
    # Imported here, so that a mistake in the configuration is told in half a second, before torch is there.
    from trainer.config import entry, from_yaml

    if frozen is None:
        # Of a job that this one was started in: its run directory and its device are not ours.
        for name in ("RUN_DIR", "ATTEMPT", "STARTED", "DEVICE"):
            os.environ.pop(f"PACELINE_{name}", None)
        return entry.run(sys.argv[1:], _check_and_train)
    config = from_yaml(frozen)
    # The launcher counted GPUs: a worker that finds none must not fall back to the CPU unasked.
    return _train(replace(config, device=os.environ.get("PACELINE_DEVICE") or config.device), [])


def _check_and_train(config: "Config") -> int:
    from trainer.check.validate import validate
    from trainer.config import entry
    from trainer.model.published import check_available
    from trainer.run import saved

    try:
        notes = validate(config, world_size=int(os.environ.get("WORLD_SIZE", "1")))
        if not saved.goes_on(config.run):
            check_available(config.model)
    except PacelineError as error:
        return entry.tell(error, sys.argv[1:])
    return _train(config, notes)


def _train(config: "Config", notes: list[str]) -> int:
    from trainer.stop import StopRequest

    stop = StopRequest()
    # Before torch is imported: a scheduler's signal in these seconds is a request like any other.
    stop.listen()
    try:
        from trainer.worker import work
    except (ImportError, OSError) as error:
        from trainer.config import entry
        from trainer.config.problems import unimportable

        return entry.tell(unimportable(getattr(error, "name", None) or "torch", error))

    # What was imported stays: the collector need not look at it again, nor copy its pages in forked processes.
    gc.freeze()
    gc.enable()
    return work(config, stop, started=_started(), notes=notes)


def _started() -> float:
    """UNIX seconds at which this job began: with its command, or as the next one of a sweep."""
    if next(_JOBS) > 0:
        return time.time()
    return float(os.environ.get("PACELINE_STARTED") or time.time() - process_age_s())


_JOBS = itertools.count()

if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is written; tearing down torch and the trackers' threads would only cost time, or hang.
    os._exit(code)
