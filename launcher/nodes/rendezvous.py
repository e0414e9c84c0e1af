"""Where workers find one another: a key-value store of torch's in the first node's agent, a new one each attempt."""

from collections.abc import Callable
from datetime import timedelta

from torch.distributed import TCPStore
from torch.distributed.elastic.agent.server.api import Worker
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

from launcher import ports
from launcher.plan import JobPlan
from trainer.errors import UnfitError
from trainer.rundir import RunDir

_STORE_TIMEOUT = timedelta(minutes=10)

_CONNECT_TIMEOUT = timedelta(seconds=15)
"""No request to stop is heard meanwhile, and no sign of life given, which must come every 20 s."""


class Meeting(RendezvousHandler):
    """A rendezvous of nodes whose numbers are known; torch's own would number them by arrival.

    Args:
        plan: the job, and which node this is.
        agree: waits until all nodes are there, and returns the store's `host:port` on each; called with it on the
            first node, with nothing on the others.
    """

    def __init__(self, plan: JobPlan, agree: Callable[[str], str]) -> None:
        self._plan = plan
        self._agree = agree

    def get_backend(self) -> str:
        """A name for the engine's events."""
        return "paceline"

    @property
    def use_agent_store(self) -> bool:
        """Whether the workers use this store too, instead of one of their own."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """The next attempt's store, when all nodes are there.

        Raises:
            UnfitError: the port is taken, or cannot be reached.
        """
        plan = self._plan
        server = _host(plan.endpoint) if plan.node == 0 else None
        endpoint = self._agree(f"{server.host}:{server.port}" if server else "")
        host, port = endpoint.rpartition(":")[0], int(endpoint.rpartition(":")[2])
        store = server or _store(host, port)
        return RendezvousInfo(store, plan.node, plan.nodes, RendezvousStoreInfo(host, port))

    def is_closed(self) -> bool:
        """Never: the agents decide when a job is over."""
        return False

    def set_closed(self) -> None:
        """Nothing, see `is_closed`."""

    def num_nodes_waiting(self) -> int:
        """None: a job's nodes do not change."""
        return 0

    def get_run_id(self) -> str:
        """What is the same for all attempts of a job."""
        return RunDir(self._plan.run_dir).name

    def shutdown(self) -> bool:
        """Nothing to do: the store ends with this process."""
        return True


def ranks_of(node: int, *, nodes: int, size: int) -> list[Worker]:
    """The workers of a node, with their ranks in the order of the nodes.

    Args:
        node: its number.
        nodes: how many there are.
        size: workers of each.
    """
    ranks = range(node * size, (node + 1) * size)
    return [
        Worker(
            local_rank=local, global_rank=rank, role_rank=rank, world_size=nodes * size, role_world_size=nodes * size
        )
        for local, rank in enumerate(ranks)
    ]


def _host(endpoint: str) -> TCPStore:
    """A store that listens where it must, and not on every interface, as it would if it chose for itself.

    Raises:
        UnfitError: the port is taken, or cannot be reached from here.
    """
    listener = ports.listen(endpoint)
    host, port = listener.getsockname()[:2]
    return _store(host, port, listener.detach())


def _store(host: str, port: int, listener: int | None = None) -> TCPStore:
    """A connection to the store, which is this process's own where it has the listening socket's descriptor."""
    try:
        store = TCPStore(
            host,
            port,
            is_master=listener is not None,
            timeout=_CONNECT_TIMEOUT,
            wait_for_workers=False,
            master_listen_fd=listener,
        )
    except RuntimeError as error:
        raise UnfitError(
            f"cannot connect to {host}:{port}, where the workers are to meet, within"
            f" {_CONNECT_TIMEOUT.total_seconds():g} s",
            "is its network interface up (ip link), and is there a firewall?",
        ) from error
    store.set_timeout(_STORE_TIMEOUT)
    return store
