"""The environment of the workers: what is theirs from the user, what we add, and who set which."""

from collections.abc import Mapping
from dataclasses import dataclass

from trainer.run.secrets import is_secret
from trainer.run.variables import relevant
from trainer.wording import plural

YOU = "you"
"""The source of a variable that the user has set, which is never changed."""

_NCCL = {
    ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "NCCL_ASYNC_ERROR_HANDLING"): ("3", "a collective that fails ends its process"),
    ("TORCH_NCCL_ENABLE_MONITORING",): ("1", "so does one whose watchdog hangs itself"),
    ("TORCH_NCCL_DUMP_ON_TIMEOUT",): ("1", "one that times out leaves a record of all"),
    ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"): ("2000", "collectives in that record"),
}
"""What makes failures of NCCL visible; torch's own defaults have changed from version to version.

By name, and the older name that torch still reads, but only where the newer one is not set.
"""

_LOOPBACK = ("lo", "the workers of one machine: nobody else reaches their ports")
"""Else gloo and NCCL listen on the network, where they take connections from anyone; gloo asks a name server where."""


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable of the workers' environment.

    Attributes:
        name: its name.
        value: its value; None for a secret, which reaches the workers but is never shown or written.
        source: who set it.
    """

    name: str
    value: str | None
    source: str


def of_workers(
    yours: Mapping[str, str], *, cpus: int, workers: int, near: int | None, on_gpus: bool, is_alone: bool
) -> tuple[Variable, ...]:
    """What matters to the workers of a machine.

    Args:
        yours: the user's environment.
        cpus: cores that all of them may keep busy.
        workers: how many they are.
        near: cores of each among those that it is bound to; None where it is not.
        on_gpus: whether they have GPUs.
        is_alone: whether there are none on other machines.
    """
    values = relevant(yours) | {name: None for name in yours if is_secret(name)}
    variables = [Variable(name, value, YOU) for name, value in sorted(values.items())]
    if "OMP_NUM_THREADS" not in yours:
        threads = cpus // workers
        reason = f"{plural(cpus, 'core')} for {plural(workers, 'worker')}"
        if near is not None and near < threads:
            threads, reason = near, "the cores that a worker is bound to, divided among those that share them"
        variables.append(Variable("OMP_NUM_THREADS", str(max(1, threads)), reason))
    listening = ("GLOO_SOCKET_IFNAME", *(["NCCL_SOCKET_IFNAME"] if on_gpus else []))
    variables += [Variable(name, *_LOOPBACK) for name in listening if is_alone and name not in yours]
    if on_gpus:
        variables += [
            Variable(names[0], value, why) for names, (value, why) in _NCCL.items() if not yours.keys() & set(names)
        ]
    return tuple(variables)
