"""What there is to say to somebody who runs a finished run again: its results, and what else may have been meant."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from launcher import runs
from launcher.verbs.status import details
from trainer.run.runname import continuing
from trainer.rundir import RunDir
from trainer.wording import command

if TYPE_CHECKING:
    from trainer.config import Config


def lines(run: RunDir, config: "Config", overrides: Sequence[str]) -> list[str]:
    """A few lines for the terminal.

    Args:
        run: the run.
        config: that it was asked to go on with.
        overrides: what that was composed from.
    """
    words = continuing(overrides, run.name)
    goal = "max_steps" if config.max_steps is not None else "epochs"
    others = [word for word in words if word.lstrip("+").partition("=")[0] != goal]
    further = f"{goal}={2 * (config.max_steps or config.epochs or 1)}"
    told = {
        "longer": _typed([*others, further, "run.accept_changes=true"]),
        "anew": _typed([*words, "run.fresh=true"]) + "   (beside it)",
    }
    _, *known = details(runs.look(run))
    return [
        f"run {run.name} is finished: nothing was started",
        *known,
        *(f"  {label:<10} {text}" for label, text in told.items()),
    ]


def _typed(words: Sequence[str]) -> str:
    return shlex.join([command("paceline"), "run", *words])
