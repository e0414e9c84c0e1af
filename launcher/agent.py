"""One per node: torchrun's elastic agent with warm workers, plus signals, a true verdict and no orphans.

It reads its plan from standard input, imports torch once and forks the workers from there. Nothing here may
touch CUDA, or torch's thread pools, before the fork; torch's `LaunchConfig` does, hence the agent is put
together by hand.
"""

import gc
import importlib
import logging
import os
import socket
import sys
import traceback
from typing import NoReturn

from launcher.ending import last_word
from launcher.ending.conclusion import Account
from launcher.ending.outcome import Outcome
from launcher.nodes.company import Alone, Company, JobOver, Member
from launcher.plan import JobPlan
from launcher.processes import adopt_orphans, die_with_parent
from launcher.stop import Stop, StoppedEarly
from launcher.streams import outlive_readers
from trainer.errors import STOPPED, PacelineError, TrainingError, UnfitError
from trainer.trouble import meaning, words


def main() -> NoReturn:
    """Runs the plan on standard input and ends with the job's exit code."""
    die_with_parent(int(sys.argv[1]))
    code = run_plan(JobPlan.from_json(sys.stdin.read()))
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is said; the teardown of torch and of the rendezvous' threads takes a second.
    os._exit(code)


def run_plan(plan: JobPlan) -> int:
    """Runs this node's part of a plan; returns the job's exit code."""
    outlive_readers(stdout=True)
    adopt_orphans()
    stop = Stop(plan.stop_grace_s)
    stop.listen()
    return _run_member(plan, stop) if plan.hub else _run_alone(plan, stop)


def _run_alone(plan: JobPlan, stop: Stop) -> int:
    account = Account(plan)
    try:
        with stop.raising():
            _preload(plan)
        account.begin()
        outcome = _run(plan, stop, Alone(account, stop))
    except StoppedEarly:
        return account.conclude_early(stop)
    except PacelineError as error:
        return account.conclude_refused(error)
    except Exception as error:
        return account.conclude_refused(_unforeseen(error))
    return account.conclude(outcome, stop)


def _run_member(plan: JobPlan, stop: Stop) -> int:
    """Runs one of several nodes; the account is the hub's, and what is printed here is for this agent's log."""
    try:
        # Before the imports, which take long, so that whoever waits for this node knows of it.
        member = Member(plan, stop)
    except StoppedEarly:
        return STOPPED
    except PacelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    try:
        with stop.raising():
            _preload(plan)
        outcome = _run(plan, stop, member)
        if member.why_lost:
            last_word.leave(plan, outcome, member.why_lost)
    except JobOver:
        pass
    except StoppedEarly:
        member.leave()
    except PacelineError as error:
        print(f"error: {error}", file=sys.stderr)
        member.leave(error)
    except Exception as error:
        member.leave(_unforeseen(error))
    return 1 if member.code is None else member.code


def _unforeseen(error: Exception) -> TrainingError:
    """What nobody thought of as the job's error; its traceback is printed."""
    traceback.print_exc()
    return TrainingError(f"the agent cannot go on: {type(error).__name__}: {words.message_of(error)}")


def _run(plan: JobPlan, stop: Stop, company: Company) -> Outcome:
    """Runs this node's workers until nothing is left to be decided; returns how the last attempt ended.

    Raises:
        JobOver: the job has ended before this node had workers.
        StoppedEarly: likewise, because somebody asked it to.
        UnfitError: the workers cannot meet, or this process itself has too little of something to run them.
    """
    from torch.distributed.elastic.multiprocessing import SignalException

    from launcher.nodes.rendezvous import Meeting
    from launcher.workers.elastic import Agent

    agent = Agent(plan, Meeting(plan, company.agree), stop, company)
    try:
        return agent.outcome(agent.run())
    except SignalException as error:
        # SIGQUIT, for which the engine has ended the workers.
        os._exit(128 + error.sigval)
    except OSError as error:
        known = meaning.of_error(type(error).__name__, str(error), ours=plan.program.kind == "trainer")
        problem, fix = (known.meaning, known.advice) if known else (str(error), "")
        raise UnfitError(f"cannot run workers on {socket.gethostname()}: {problem}", fix) from error


def _preload(plan: JobPlan) -> None:
    """Imports once what every worker would import, most of it lazily.

    Raises:
        UnfitError: something of it cannot be imported.
    """
    from trainer.config.problems import unimportable

    names = ["torch", "torch._dynamo"]
    if plan.program.kind == "trainer":
        names += ["torchvision", "trainer.worker"]
    # As in the trainer's own entry: no search for garbage among what stays; frozen, the forks share it.
    gc.disable()
    for name in names:
        try:
            importlib.import_module(name)
        except (ImportError, OSError) as error:
            raise unimportable(name, error) from error
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
