"""Nodes that have lost the first one: one of them says why the job has ended."""

from pathlib import Path

import pytest

from launcher import runs
from launcher.ending import last_word
from launcher.ending.outcome import Outcome
from launcher.plan import JobPlan, Program
from launcher.verdict import Exit
from trainer.rundir import RunDir

ECHO = Exit(3, 1, type="RuntimeError", message="Connection closed by peer [10.0.0.1]:1234", time=2.0)
OWN = Exit(2, 1, type="ValueError", message="broken", time=1.0)


@pytest.mark.parametrize(
    ("exits", "told", "message"),
    [
        ((), "NodeLost", "node 0 is lost: no sign of life"),
        ((ECHO,), "NodeLost", "node 0 is lost: no sign of life"),
        ((ECHO, OWN), "ValueError", "broken"),
    ],
)
def test_the_first_node_that_has_lost_it_says_why_for_all(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], exits: tuple[Exit, ...], told: str, message: str
) -> None:
    run = RunDir(tmp_path / "x")
    run.log(1, 0).parent.mkdir(parents=True)
    run.update_status(state="running", attempt=1)
    plan = JobPlan(nodes=3, workers_per_node=2, program=Program("script", "x.py"), run_dir=str(run.path))
    last_word.leave(plan, Outcome(1, exits=exits), "no sign of life")
    last_word.leave(plan, Outcome(1), "the connection broke")
    failure = run.read_failure(1)
    assert (failure["type"], failure["message"], failure["exit_code"]) == (told, message, 1)
    view = runs.look(run)
    assert (view.state, view.failure["type"]) == ("failed", told)
    assert f"✗ failed: {told} on rank" in capfd.readouterr().err
