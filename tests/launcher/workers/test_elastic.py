"""The agent of one node, where no worker is needed to see what it does."""

from pathlib import Path

import pytest

from launcher.ending.conclusion import Account
from launcher.nodes.company import Alone
from launcher.nodes.rendezvous import Meeting
from launcher.plan import JobPlan, Program
from launcher.stop import Stop
from launcher.workers import elastic


def test_what_cannot_be_ended_is_waited_for_and_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = Program("script", "script.py")
    plan = JobPlan(nodes=1, workers_per_node=2, program=program, run_dir=str(tmp_path))
    stop = Stop(1.0)
    company = Alone(Account(plan), stop)
    agent = elastic.Agent(plan, Meeting(plan, company.agree), stop, company)
    monkeypatch.setattr(elastic, "end_descendants", lambda *_, **__: [71, 72])
    # We do, as soon as all have ended; then the engine does, before a restart or at the end.
    agent._shutdown()
    agent._shutdown()
    assert capsys.readouterr().err == "warning: cannot be ended: process 71, 72\n"
