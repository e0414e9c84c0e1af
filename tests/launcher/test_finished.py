"""What is told to somebody who runs a finished run again."""

from pathlib import Path

import pytest

from launcher import finished
from trainer.config import Config, EvaluateConfig
from trainer.rundir import RunDir


@pytest.mark.parametrize(("step", "longer"), [(10, "epochs=4 evaluate.patience=6"), (40, "epochs=8")])
def test_a_run_is_prolonged_by_what_has_ended_it(tmp_path: Path, step: int, longer: str) -> None:
    run = RunDir(tmp_path / "x")
    run.update_status(state="finished", attempt=0, step=step, total_steps=40)
    config = Config(epochs=4, evaluate=EvaluateConfig(patience=3))
    said = "\n".join(finished.lines(run, config, ["epochs=4", "run.fresh=true"]))
    command = said[said.index("longer") :].splitlines()[0]
    assert all(word in command.split() for word in [*longer.split(), "run.name=x", "run.accept_changes=true"])
    assert ("epochs=4" in command) == (step == 10)
    assert "run.fresh" not in command
