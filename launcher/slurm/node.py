"""A node's agent, as srun starts it: the plan comes by standard input, the node's number from Slurm."""

import os
import sys
from dataclasses import replace

from launcher import agent
from launcher.plan import JobPlan
from launcher.processes import die_with_parent
from trainer.errors import UnfitError
from trainer.rundir import RunDir


def main() -> None:
    """Runs this node's part of the job; ends with 0 unless it could not take part."""
    # Slurm's step daemon: when that is killed, nobody else would end us.
    die_with_parent(os.getppid())
    plan = replace(JobPlan.from_json(sys.stdin.read()), node=int(os.environ["SLURM_NODEID"]))
    if plan.node:
        with RunDir(plan.run_dir).agent_log(plan.attempt, plan.node).open("ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
    code = agent.run_plan(plan)
    sys.stdout.flush()
    sys.stderr.flush()
    # The conductor knows how the job ended; srun would kill the other agents, which are about to end, and complain.
    os._exit(code if code == UnfitError.exit_code else 0)


if __name__ == "__main__":
    main()
