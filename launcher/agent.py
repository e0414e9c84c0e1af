"""One per node: torchrun's elastic agent with warm workers, plus signals, a true verdict and no orphans.

It reads its plan from standard input, imports torch once and forks the workers from there. Nothing here may
touch CUDA, or torch's thread pools, before the fork; torch's `LaunchConfig` does, hence the agent is put
together by hand.
"""

import gc
import importlib
import logging
import os
import sys
from typing import NoReturn

from launcher.conclusion import Account
from launcher.plan import JobPlan
from launcher.processes import adopt_orphans, die_with_parent
from launcher.stop import Stop, StoppedEarly
from trainer.errors import PacelineError


def main() -> NoReturn:
    """Runs the plan on standard input and ends with the job's exit code."""
    code = run_plan()
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is said; the teardown of torch and of the rendezvous' threads takes a second.
    os._exit(code)


def run_plan() -> int:
    """Runs the plan on standard input; returns the job's exit code."""
    die_with_parent(int(sys.argv[1]))
    adopt_orphans()
    plan = JobPlan.from_json(sys.stdin.read())
    account, stop = Account(plan), Stop(plan.stop_grace_s)
    stop.listen()
    try:
        with stop.raising():
            _preload(plan)
        return _run(plan, stop, account)
    except StoppedEarly:
        return account.conclude_early(stop)
    except PacelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _run(plan: JobPlan, stop: Stop, account: Account) -> int:
    from torch.distributed.elastic.multiprocessing import SignalException

    from launcher.elastic import Agent
    from launcher.rendezvous import Meeting

    account.begin()
    agent = Agent(plan, Meeting(plan, lambda endpoint: endpoint), stop, account)
    try:
        result = agent.run()
    except SignalException as error:
        return 128 + error.sigval
    return account.conclude(agent.outcome(result), stop)


def _preload(plan: JobPlan) -> None:
    """Imports once what every worker would import, most of it lazily."""
    names = ["torch", "torch._dynamo"]
    if plan.program.kind == "trainer":
        names += ["torchvision", "trainer.worker"]
    # As in the trainer's own entry: no search for garbage among what stays; frozen, the forks share it.
    gc.disable()
    for name in names:
        importlib.import_module(name)
    import torch.distributed.elastic.agent.server.local_elastic_agent  # noqa: F401  # makes the loggers below

    if not plan.debug:
        for name in list(logging.root.manager.loggerDict):
            if name.startswith("torch.distributed.elastic") or name == "torch.multiprocessing.spawn":
                # It shows every rank's end, echoes included; the verdict shows the first.
                logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    gc.freeze()
    gc.enable()


if __name__ == "__main__":
    main()
