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
    view, words = runs.look(run), continuing(overrides, run.name)
    goals = {"max_steps": config.max_steps, "epochs": config.epochs}
    if (view.step or 0) < (view.total_steps or 0):
        # It has ended early.
        goals = {"evaluate.patience": config.evaluate.patience} | goals
    key, value = next((key, value) for key, value in goals.items() if value is not None)
    others = [word for word in words if word.lstrip("+").partition("=")[0] != key]
    told = {
        "longer": _typed([*others, f"{key}={2 * value}", "run.accept_changes=true"]),
        "anew": _typed([*words, "run.fresh=true"]) + "   (beside it)",
    }
    _, *known = details(view)
    return [
        f"run {run.name} is finished: nothing was started",
        *known,
        *(f"  {label:<10} {text}" for label, text in told.items()),
    ]


def _typed(words: Sequence[str]) -> str:
    return shlex.join([command("paceline"), "run", *words])
