"""A worker's way into the run directory: which one, whether it may go on there, whose it is, what is noted of it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.config import Config
from trainer.distributed import World
from trainer.errors import InUseError
from trainer.run import provenance, runname, saved
from trainer.run.lease import Lease, check
from trainer.rundir import RunDir
from trainer.stop import StopRequest
from trainer.terminal.console import Console
from trainer.trouble.mishap import Attempt


def open_run(config: Config) -> str:
    """Chooses or finds the run directory; returns its path.

    Raises:
        ConfigError: a run of that name was begun with another configuration.
        UnfitError: the directory cannot be written.
    """
    given = os.environ.get("PACELINE_RUN_DIR")
    if given is not None:
        return given
    run = provenance.restarted(config.run) or RunDir(runname.create(config.run, config.recipe or config.model.name))
    provenance.agree(run, config)
    return str(run.path)


def agree_again(run: RunDir, config: Config) -> list[str]:
    """Judges once more, now that nobody else has the run, whether it may go on with this configuration.

    Returns:
        What was accepted, for the user to know; nothing where a launcher has said it.

    Raises:
        ConfigError: as `open_run`.
        UnfitError: the directory cannot be written.
    """
    accepted = provenance.agree(run, config)
    return [] if "PACELINE_RUN_DIR" in os.environ else accepted


def enter(run: RunDir, config: Config, world: World, *, attempt: int) -> None:
    """Notes in the run directory what was launched, unless the launcher has done that.

    Raises:
        UnfitError: the directory cannot be written.
    """
    if "PACELINE_RUN_DIR" in os.environ:
        return
    try:
        provenance.begin(
            run,
            config,
            attempt=attempt,
            argv=sys.argv,
            folder=Path(__file__).parents[1],
            nodes=world.nodes,
            world_size=world.world_size,
        )
    except OSError as error:
        raise runname.unwritable(run.path, error) from error


def begin(run: RunDir, config: Config, *, attempt: int) -> None:
    """Makes the run directory this attempt's.

    Raises:
        UnfitError: the directory cannot be written.
    """
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) if "PACELINE_RUN_DIR" in os.environ else 0
    try:
        run.failure.unlink(missing_ok=True)
        provenance.confirm(run, config, attempt=attempt - restarts)
        run.update_status(state="running", attempt=attempt)
    except OSError as error:
        raise runname.unwritable(run.path, error) from error


@contextmanager
def held(run: RunDir, world: World, stop: StopRequest, console: Console) -> Iterator[None]:
    """Keeps other jobs out of the run directory, see `Lease`; losing it stops the run.

    Raises:
        InUseError: another job trains in it.
        UnfitError: it cannot be written.
    """
    lease = Lease(run, say=console.say, on_loss=stop.ask)

    def take() -> None:
        try:
            lease.take()
        except OSError as error:
            raise runname.unwritable(run.path, error) from error

    world.on_rank_zero(take)
    try:
        token = world.from_rank_zero(lease.token)
        run.guard = lambda: check(run, token)
        yield
    finally:
        if world.is_rank_zero:
            lease.release()


def choose_attempt(run: RunDir) -> int:
    """The number of this attempt at the run: the launcher's, or one more than the last."""
    given = os.environ.get("PACELINE_ATTEMPT")
    return int(given) if given is not None else run.next_attempt()


def is_over(run: RunDir, config: Config, world: World, console: Console) -> bool:
    """Whether the run has nothing left to do, which is said; the same on all ranks."""
    if config.run.accept_changes or not world.from_rank_zero(saved.is_complete(run)):
        return False
    console.say(
        f"run {run.name} is finished; run.fresh=true starts over beside it, "
        "run.accept_changes=true with more epochs or steps prolongs it"
    )
    return True


def launched(error: Exception) -> Attempt | None:
    """The attempt that the launcher has begun for this job, for an error that came before the run was this worker's."""
    given = os.environ.get("PACELINE_RUN_DIR")
    if given is None or isinstance(error, InUseError):
        return None
    run = RunDir(given)
    return Attempt(run, choose_attempt(run), is_ours=False)
