"""The plan of a job: how many workers, what they run, with which environment. Pure: `--dry-run` prints it."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher import binding, variables
from launcher.binding import Topology
from launcher.gpus import share
from launcher.variables import YOU, Variable
from trainer import wording
from trainer.cores import MOST_LOADING
from trainer.errors import ConfigError, UnfitError
from trainer.run.runname import continuing
from trainer.run.secrets import HIDDEN, pasted, redact_words

if TYPE_CHECKING:
    from trainer.config import Config

CPU_WORKERS = 2
"""Workers on a machine without a GPU: enough for everything distributed to be real."""

_USUAL_PORT = 29500


@dataclass(frozen=True, slots=True)
class Program:
    """What every worker runs.

    Attributes:
        kind: `trainer` (ours), `script` (a file) or `module` (as in `python -m`).
        target: the script's path or the module's name.
        arguments: its arguments.
    """

    kind: str
    target: str
    arguments: tuple[str, ...] = ()

    @property
    def stem(self) -> str:
        """A short name, for a run that nobody named."""
        return Path(self.target).stem if self.kind == "script" else self.target.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class JobPlan:
    """Everything that the agents need to know.

    Attributes:
        nodes: machines.
        workers_per_node: workers on each of them.
        program: what they run.
        overrides: the configuration overrides as the user wrote them, without secrets: they are only shown.
        environment: what is set for the workers, and what of the user's environment matters to them.
        cores: the cores that each worker of the node is bound to, as the kernel lists them; empty: to none.
        unbound: why they are not bound, where there are several NUMA nodes; else empty.
        run_dir: the run directory; empty until it is chosen.
        config: the configuration of this attempt as YAML, with its secrets: in no file, no argv.
        attempt: which attempt of the job this is, from 0; an agent's restarts count on from it.
        endpoint: host:port of the rendezvous; port 0 is a free one.
        max_restarts: restarts by the agent after a failure.
        device: `cuda` where the workers were counted by GPUs, so that our trainer insists on them; else empty.
        stop_grace_s: seconds between a request to stop and SIGKILL.
        hang_timeout_s: seconds without a sign of life after which the job is ended; 0: no watch, None: learnt.
        again: the command that continues the run.
        debug: whether tracebacks and the engine's own messages are shown.
        node: the number of the node that this is the plan of.
        hub: host:port where the agents of several nodes meet; empty with one.
        secret: what they must know there: in no file, no argv, no log.
    """

    nodes: int
    workers_per_node: int
    program: Program
    overrides: tuple[str, ...] = ()
    environment: tuple[Variable, ...] = ()
    cores: tuple[str, ...] = ()
    unbound: str = ""
    run_dir: str = ""
    config: str = ""
    attempt: int = 0
    endpoint: str = "127.0.0.1:0"
    max_restarts: int = 0
    device: str = ""
    stop_grace_s: float = 120.0
    hang_timeout_s: float | None = None
    again: str = ""
    debug: bool = False
    node: int = 0
    hub: str = ""
    secret: str = field(default="", repr=False)

    @property
    def world_size(self) -> int:
        """Workers of the whole job."""
        return self.nodes * self.workers_per_node

    @property
    def port(self) -> int:
        """The rendezvous port; 0 takes a free one."""
        return int(self.endpoint.rpartition(":")[2])

    def to_json(self) -> str:
        """The plan as JSON; secrets are not in it."""
        return json.dumps(asdict(self), indent=2)

    @staticmethod
    def from_json(text: str) -> "JobPlan":
        """The plan that `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        program = values.pop("program")
        return JobPlan(
            program=Program(program["kind"], program["target"], tuple(program["arguments"])),
            overrides=tuple(values.pop("overrides")),
            environment=tuple(Variable(**entry) for entry in values.pop("environment")),
            cores=tuple(values.pop("cores")),
            **values,
        )


def plan_job(
    config: "Config",
    *,
    program: Program,
    overrides: Sequence[str],
    gpus: int,
    cpus: int,
    environment: Mapping[str, str],
    topology: Topology | None = None,
    debug: bool = False,
) -> JobPlan:
    """Decides where the workers of a job on this machine run, and with what.

    Args:
        config: only `device`, `cluster` and `run` are looked at.
        program: what the workers run.
        overrides: the overrides as the user wrote them.
        gpus: GPUs that the job may use.
        cpus: CPU cores that the job may use.
        environment: the user's.
        topology: where cores and GPUs are; None: not known.
        debug: whether tracebacks are shown.

    Raises:
        ConfigError: fewer than one worker.
        UnfitError: fewer GPUs than asked for.
    """
    nodes = config.cluster.nodes
    if 0 < gpus < nodes and config.device != "cpu":
        raise UnfitError(
            f"cluster.nodes={nodes} on this machine, but only {wording.plural(gpus, 'GPU')} for them",
            "cluster.nodes=1, or device=cpu to try several nodes without GPUs",
        )
    workers, on_gpus = workers_per_node(config, gpus // nodes), gpus > 0 and config.device != "cpu"
    bound = _binding(config, topology, nodes * workers, program=program, on_gpus=on_gpus)
    return JobPlan(
        nodes=nodes,
        workers_per_node=workers,
        program=program,
        overrides=tuple(redact_words(overrides)),
        environment=variables.of_workers(
            environment,
            cpus=cpus,
            workers=nodes * workers,
            near=bound.share if bound.cores else None,
            on_gpus=on_gpus,
            is_alone=nodes == 1 or config.cluster.scheduler == "none",
        ),
        cores=bound.cores,
        unbound=bound.why_not,
        endpoint=f"127.0.0.1:{config.cluster.port or 0}",
        max_restarts=config.cluster.max_restarts,
        stop_grace_s=config.cluster.grace_seconds,
        hang_timeout_s=hang_timeout_s(config),
        device="cuda" if on_gpus else "",
        debug=debug,
    )


def _binding(
    config: "Config", topology: Topology | None, workers: int, *, program: Program, on_gpus: bool
) -> binding.Binding:
    if topology is None or not config.cluster.numa_binding:
        return binding.Binding()
    # Loading processes beside a worker that only drives a GPU; one that computes itself can use every core.
    loading = MOST_LOADING if config.data.workers is None else config.data.workers
    needed = 1 + loading if on_gpus and program.kind == "trainer" else None
    return binding.bind(topology, workers, on_gpus=on_gpus, needed=needed)


def of_node(plan: JobPlan, node: int) -> JobPlan:
    """One node's part of a plan for several nodes on this machine."""
    size = plan.workers_per_node
    return replace(plan, node=node, cores=plan.cores[node * size : (node + 1) * size])


def hang_timeout_s(config: "Config") -> float | None:
    """What `JobPlan.hang_timeout_s` says, of a configuration that was checked."""
    from trainer.config.timespan import parse_seconds

    given = config.cluster.hang_timeout
    return None if given is None else parse_seconds(given)


def workers_per_node(config: "Config", gpus: int) -> int:
    """Workers on each machine: what was asked for, else one for each GPU, else two.

    Raises:
        ConfigError: fewer than one.
        UnfitError: a GPU was asked for and there is none, or not so many.
    """
    asked = config.cluster.gpus_per_node
    if asked is not None and asked < 1:
        raise ConfigError(f"cluster.gpus_per_node={asked}, but it must be at least 1", "cluster.gpus_per_node=null")
    if config.device == "cuda" and gpus == 0:
        raise UnfitError("device=cuda, but no GPU is visible on this machine", "device=cpu, or device=auto")
    if config.device == "cpu" or gpus == 0:
        return asked or CPU_WORKERS
    if asked is not None and asked > gpus:
        raise UnfitError(
            f"cluster.gpus_per_node={asked}, but only {gpus} GPU{'s are' if gpus > 1 else ' is'} visible"
            + (f" for each of {config.cluster.nodes} nodes" if config.cluster.nodes > 1 else ""),
            f"cluster.gpus_per_node={gpus}, or device=cpu for {wording.plural(asked, 'worker')} without GPUs",
        )
    return asked or gpus


def render(plan: JobPlan, notes: Sequence[str] = ()) -> str:
    """The plan for a person, with a command line that starts the same workers without Paceline."""
    by_hand = [torchrun_command(plan, node) for node in range(plan.nodes)]
    return "\n".join(
        [
            f"nodes        {plan.nodes} ({'all on ' if plan.nodes > 1 else ''}this machine)",
            f"workers      {plan.workers_per_node}{', one for each GPU' if plan.device else ''}"
            f"{' on each node' if plan.nodes > 1 else ''}",
            *cores_lines(plan),
            f"rendezvous   {plan.endpoint if plan.port else '127.0.0.1, a free port'}",
            f"run          {plan.run_dir}, attempt {plan.attempt}",
            "",
            "the same by hand",
            *(f"  {line}" for line in by_hand),
            *([f"  {HIDDEN} stands for a secret that is not shown"] if any(HIDDEN in one for one in by_hand) else []),
            *surroundings_lines(plan, notes),
        ]
    )


def surroundings_lines(plan: JobPlan, notes: Sequence[str] = ()) -> list[str]:
    """The environment of the workers with the source of each variable, and what else is to be known, for a person."""
    width = max((len(variable.name) for variable in plan.environment), default=0)
    shown = [
        f"  {variable.name:<{width}}  {'set, not shown' if variable.value is None else variable.value}"
        f"  ({variable.source})"
        for variable in plan.environment
    ]
    return [
        "",
        "environment of the workers",
        *shown,
        f"  {'RANK LOCAL_RANK WORLD_SIZE MASTER_ADDR ...':<{width}}  (each worker's own, as torchrun sets them)",
        *(["", "notes", *(f"  {note}" for note in notes)] if notes else []),
    ]


def cores_lines(plan: JobPlan) -> list[str]:
    """How workers are bound to cores, or why not; nothing on a machine where that makes no difference."""
    if plan.cores:
        bound = binding.described(plan.cores)
        return [f"cores        {bound}, their NUMA nodes (cluster.numa_binding=false leaves them free)"]
    return [f"cores        not bound to NUMA nodes: {plan.unbound}"] if plan.unbound else []


def torchrun_command(plan: JobPlan, node: int = 0) -> str:
    """A command line that starts the same workers of a node with torchrun alone."""
    where = f"--rdzv-backend=c10d --rdzv-endpoint={plan.endpoint}" if plan.port else "--standalone"
    if plan.nodes > 1:
        host, port = plan.endpoint.rpartition(":")[0], plan.port or _USUAL_PORT
        where = f"--nnodes={plan.nodes} --node-rank={node} --master-addr={host} --master-port={port}"
    ours = [f"{v.name}={shlex.quote(v.value)}" for v in plan.environment if v.value and v.source != YOU]
    if plan.nodes > 1 and plan.device == "cuda":
        yours = {v.name: v.value for v in plan.environment}.get("CUDA_VISIBLE_DEVICES")
        ours.append(f"CUDA_VISIBLE_DEVICES={share(yours, number=node, size=plan.workers_per_node)}")
    program = plan.program
    target = [program.target] if program.kind == "script" else ["-m", program.target]
    arguments = plan.overrides if program.kind == "trainer" else redact_words(program.arguments)
    return " ".join(
        [
            *ours,
            shlex.quote(wording.command("torchrun")),
            where,
            f"--nproc-per-node={plan.workers_per_node}",
            pasted([*target, *arguments]),
        ]
    )


def again_command(plan: JobPlan, name: str) -> str:
    """The command that continues the run `name`."""
    words = [wording.command("paceline"), "run", *continuing(plan.overrides, name)]
    if plan.program.kind != "trainer":
        flag = ["-m"] if plan.program.kind == "module" else []
        words += ["--", *flag, plan.program.target, *redact_words(plan.program.arguments)]
    return pasted(words)
