"""What a node leaves of an attempt when it has lost the first one, where the job's account was kept."""

import sys
import time
from contextlib import suppress

from launcher import verdict
from launcher.ending.outcome import Outcome
from launcher.plan import JobPlan
from launcher.verdict import Exit
from trainer.rundir import RunDir, write_json_once


def leave(plan: JobPlan, outcome: Outcome, why: str) -> None:
    """Tells why an attempt has ended, in this agent's log and beside the attempt's, unless another node has done so.

    Whoever reads the run finds it there where failure.json is of no such attempt; the account's own word comes first.

    Args:
        plan: the job.
        outcome: of this node's workers.
        why: why the first node is lost.
    """
    run, own = RunDir(plan.run_dir), verdict.first_failure(outcome.judged)
    if own is None or own.is_echo or own.is_silence:
        # What these workers say of its end is no news.
        own = Exit(
            0,
            1,
            time=time.time(),
            type="NodeLost",
            message=f"node 0 is lost: {why}",
            meaning="the machine, its network or the agent on it has gone",
        )
    row = verdict.failure_row(
        own,
        attempt=outcome.attempt,
        code=verdict.exit_code([own]),
        log=str(run.log(outcome.attempt, own.rank)),
        ours=plan.program.kind == "trainer",
    )
    print(verdict.panel(row, again=plan.again, ours=plan.program.kind == "trainer"), file=sys.stderr)
    with suppress(OSError):
        write_json_once(run.attempt_failure(outcome.attempt), row)
