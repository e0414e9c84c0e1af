"""Where the parts of the development cluster lie, on disk and in its network. Nothing else spells these names."""

from dataclasses import dataclass
from pathlib import Path

HOME = Path("/run/paceline-dev-cluster")
"""Everything of the cluster; ordinary users cannot write there, and a reboot empties it."""

CONFIG = HOME / "etc" / "slurm.conf"
HOSTS = HOME / "etc" / "hosts"
DATABASE_CONFIG = HOME / "etc" / "slurmdbd.conf"
LOGS = HOME / "log"
PIDS = HOME / "pid"
STATE = HOME / "state"
SPOOL = HOME / "spool"
DEVICES = HOME / "dev"
MUNGE = HOME / "munge"
DATABASE = HOME / "db"
LOCK = HOME / "lock"

GPUS_PER_NODE = 8
CPUS_PER_NODE = 32
MEMORY_MB_PER_NODE = 64_000

# RFC 2544 keeps 198.18.0.0/15 for tests within a network: nobody routes it.
_NETWORK = "198.18.77"
PREFIX = 24
LOGIN_ADDRESS = f"{_NETWORK}.254"
LOGIN_LINK = "paceline0"
BRIDGE = "br0"


@dataclass(frozen=True, slots=True)
class Host:
    """A machine of the cluster: namespaces of its own for host name, network, processes and mounts.

    Attributes:
        name: its host name.
        address: in the cluster's network.
    """

    name: str
    address: str

    @property
    def link(self) -> str:
        """The end of its cable at the switch."""
        return f"to-{self.name}"

    @property
    def pid_file(self) -> Path:
        """The process that the machine is."""
        return PIDS / self.name


HEAD = Host("head", f"{_NETWORK}.1")
NODES = tuple(Host(f"node{number}", f"{_NETWORK}.{10 + number}") for number in range(1, 5))


def node_named(name: str) -> Host:
    """The compute node of that name.

    Raises:
        KeyError: there is none.
    """
    return {node.name: node for node in NODES}[name]
