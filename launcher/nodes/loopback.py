"""Several nodes on this machine, over its loopback interface: an agent for each, and the hub where they meet."""

import signal
import time
from dataclasses import replace

from launcher import ports
from launcher.agents import LEFTOVER_GRACE_S, Agent, started
from launcher.ending.conclusion import Account
from launcher.nodes.channel import new_secret
from launcher.nodes.hub import Hub
from launcher.plan import JobPlan, of_node
from launcher.processes import adopt_orphans, descendants, end_descendants
from launcher.stop import Stop
from launcher.verdict import signal_name

_END_S = 5.0


def run(plan: JobPlan) -> int:
    """Starts an agent for each node and conducts them; returns the job's exit code."""
    account, stop, secret = Account(plan), Stop(plan.stop_grace_s), new_secret()
    account.begin()
    adopt_orphans()
    before = descendants()
    with ports.listen(f"{plan.endpoint.rpartition(':')[0]}:0") as listener:
        address = ports.endpoint_of(listener)
        plans = [replace(of_node(plan, node), hub=address, secret=secret) for node in range(plan.nodes)]
        with started(plans, stop.note) as (agents, _):
            # Ctrl-Z would stop this process alone, which the agents would take for its end.
            signal.signal(signal.SIGTSTP, signal.SIG_IGN)
            hub = Hub(plan, listener, secret, account=account, stop=stop, gone=lambda: _ends(agents))
            code = hub.run()
            for node in hub.away:
                # Nobody waits for one that may hang; its workers die with it.
                agents[node].kill()
            deadline = time.monotonic() + _END_S
            while len(_ends(agents)) < len(agents) and time.monotonic() < deadline:
                hub.serve()
            # What is left does not answer, or belongs to an agent that was killed.
            end_descendants(before, grace_s=LEFTOVER_GRACE_S)
    return code


def _ends(agents: list[Agent]) -> dict[int, str]:
    """The nodes whose agents have ended, and how."""
    codes = {node: agent.poll() for node, agent in enumerate(agents)}
    return {node: _how(code) for node, code in codes.items() if code is not None}


def _how(code: int) -> str:
    return f"its agent was killed by {signal_name(-code)}" if code < 0 else f"its agent ended with exit code {code}"
