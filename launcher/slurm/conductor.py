"""A job's side of the batch script: conducts the agents, of which srun starts one a node; may queue the job again.

python -m launcher.slurm.conductor RUN ATTEMPT
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from launcher import agents, local, ports
from launcher.ending.conclusion import Account
from launcher.nodes.channel import new_secret
from launcher.nodes.hub import Hub
from launcher.plan import JobPlan
from launcher.slurm import requeue
from launcher.stop import Stop, outlive_terminal
from launcher.streams import outlive_readers
from trainer.rundir import RunDir

_END_S = 5.0
_BOOT = "import sys; sys.path[0] = sys.argv.pop(1); from launcher.slurm.node import main; main()"


def main(arguments: Sequence[str]) -> int:
    """Runs the job in this allocation; returns its exit code."""
    outlive_readers(stdout=True)
    outlive_terminal()
    run, attempt = RunDir(Path(arguments[0])), int(arguments[1])
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    plan = JobPlan.from_json(os.environ.pop("PACELINE_PLAN", "") or run.attempt_plan(attempt).read_text())
    if restarts or run.log(attempt, 0).exists():
        # Queued again, by Slurm or by hand.
        attempt = local.take_attempt(run, plan.max_restarts)
        local.note_restart(run, attempt)
    else:
        local.hold_attempt(run, attempt)
    address = own_address(hostnames())
    plan = replace(plan, attempt=attempt, endpoint=f"{address}:{plan.port}", secret=new_secret())
    before = run.read_status().get("latest")
    stop = Stop(plan.stop_grace_s)
    stop.listen()
    code = _conduct(plan, stop)
    progress = run.read_status().get("latest") != before
    if requeue.is_worth(code, stop.signal, state=requeue.job_state(), restarts=restarts, has_progress=progress):
        requeue.requeue()
    return code


def _conduct(plan: JobPlan, stop: Stop) -> int:
    account = Account(plan)
    account.begin()
    with ports.listen(f"{plan.endpoint.rpartition(':')[0]}:0") as listener:
        plan = replace(plan, hub=ports.endpoint_of(listener))
        step = _start(plan)

        def gone() -> dict[int, str]:
            code = step.poll()
            return {} if code is None else dict.fromkeys(range(plan.nodes), f"srun ended with exit code {code}")

        hub = Hub(plan, listener, plan.secret, account=account, stop=stop, gone=gone)
        code = hub.run()
        deadline = time.monotonic() + _END_S
        while step.poll() is None and time.monotonic() < deadline:
            hub.serve()
        if step.poll() is None:
            # It ends its tasks on every node, those of nodes that do not answer included.
            step.terminate()
            step.wait()
    return code


def _start(plan: JobPlan) -> "subprocess.Popen[bytes]":
    """Starts an agent on each node; the plan reaches them by srun's standard input, which all tasks get."""
    here = str(Path(__file__).resolve().parents[2])
    command = ["srun", f"--nodes={plan.nodes}", "--ntasks-per-node=1", "--unbuffered", "--kill-on-bad-exit=1"]
    step = subprocess.Popen(
        [*command, sys.executable, "-c", _BOOT, here],
        stdin=subprocess.PIPE,
        env={**os.environ, **agents.environment(plan)},
        start_new_session=True,
    )
    assert step.stdin is not None
    step.stdin.write(plan.to_json().encode())
    step.stdin.close()
    return step


def hostnames() -> Sequence[str]:
    """The nodes of this allocation, this one first."""
    from submitit.slurm.slurm import SlurmJobEnvironment

    return SlurmJobEnvironment().hostnames


def own_address(nodes: Sequence[str]) -> str:
    """This node's address as the other ones see it: its own name may well be that of its loopback interface."""
    if len(nodes) == 1:
        return "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # Sends nothing: the kernel looks up by which interface it would.
        probe.connect((nodes[1], 9))
        return probe.getsockname()[0]
