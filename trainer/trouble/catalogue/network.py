"""What NCCL, gloo, torch's store and name look-ups say of the way between the workers."""

import re
from collections.abc import Sequence

from trainer.trouble.catalogue.signature import Signature
from trainer.trouble.peers import GONE, SILENT


def _any(words: Sequence[str]) -> str:
    return "|".join(map(re.escape, words))


_SHM = "docker run --shm-size=8g (or --ipc=host); `df -h /dev/shm` shows how full it is"

NETWORK = (
    Signature(
        "nccl_same_gpu",
        r"Duplicate GPU detected : rank (?P<one>\d+) and rank (?P<other>\d+) both on CUDA device (?P<gpu>\w+)",
        "ranks {one} and {other} have taken the same GPU",
        "torch.cuda.set_device(int(os.environ['LOCAL_RANK'])) before the first collective; one worker per GPU at most",
        "cluster.gpus_per_node=null: one worker for each GPU",
        native=True,
    ),
    Signature(
        "nccl_shared_memory",
        r"(failed to extend|Error while creating shared memory segment) (?P<file>/dev/shm/nccl-\w+)"
        r"|posix_fallocate failed : No space left on device",
        "NCCL found no room in /dev/shm",
        _SHM,
        native=True,
    ),
    Signature(
        "silence",
        f"(?i:{_any(SILENT)})",
        "another worker did not answer in time: it hangs, or is much slower than the rest",
        "the workers' logs show which of them went no further; where one may take that long (a first step, rank 0 "
        "evaluating alone), a longer timeout= in init_process_group",
        "the workers' logs show which of them went no further; where one may take that long (a first step, a slow "
        "disk), a longer distributed.timeout_s",
        may_pass=True,
        native=True,
    ),
    Signature(
        "nccl_system",
        r"ncclSystemError|unhandled system error",
        "NCCL could not reach another worker, or was refused memory, a file or shared memory by the system",
        "NCCL_DEBUG=INFO names the call; often the wrong network (NCCL_SOCKET_IFNAME=eth0), a firewall, `ulimit -l` "
        "with InfiniBand, or a small /dev/shm",
        may_pass=True,
        native=True,
    ),
    Signature(
        "nccl_cuda",
        r"ncclUnhandledCudaError|unhandled cuda error",
        "a CUDA call failed inside NCCL: out of GPU memory, peer access that does not work, or an old driver",
        "NCCL_DEBUG=INFO names the call; NCCL_P2P_DISABLE=1 tells whether peer access is at fault; `paceline doctor`",
        may_pass=True,
        native=True,
    ),
    Signature(
        "nccl_remote",
        r"ncclRemoteError|remote process exited|NCCL communicator was aborted",
        "another worker ended, or the network to it broke",
        "the first error is that worker's: look at the other ranks' logs",
        may_pass=True,
        native=True,
    ),
    Signature(
        "address_in_use",
        r"EADDRINUSE|[Aa]ddress already in use",
        "another program listens on that port already",
        "another MASTER_PORT; left alone, `paceline run` takes a free one",
        "cluster.port=null takes a free one",
        may_pass=True,
    ),
    Signature(
        "unreachable",
        r"client socket has timed out after (?P<time>\w+) while trying to connect to \((?P<host>[^,]+), (?P<port>\d+)\)"
        r"|client socket has failed to connect to any network address of \((?P<host2>[^,]+), (?P<port2>\d+)\)",
        "nobody answers at {host}{host2}:{port}{port2}: a wrong name or address, a firewall, or the first worker "
        "has not come",
        "`getent hosts {host}{host2}` on this machine; MASTER_ADDR must be the first node's name",
        may_pass=True,
    ),
    Signature(
        "host_name",
        r"Unable to resolve hostname to a \(local\) address|(Temporary failure in name resolution|Name or service not "
        r"known|No address associated with hostname)",
        "a host name has no address",
        "`getent hosts NAME`: add this machine's name to /etc/hosts; GLOO_SOCKET_IFNAME=eth0 names the network instead",
        may_pass=True,
        native=True,
    ),
    Signature(
        "interface",
        r"Unable to find address for: (?P<name>\S+)|Bootstrap : no socket interface found",
        "there is no such network interface ({name})",
        "`ip -brief address` lists them, for NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME",
        native=True,
    ),
    Signature(
        "host_key",
        r"Host key verification failed",
        "ssh does not know the other machine's key, or it has changed",
        "`ssh-keyscan HOST >> ~/.ssh/known_hosts`, after a look at whether the change is expected",
        native=True,
    ),
    Signature(
        "peer_gone",
        f"{_any(GONE)}|Connection refused",
        "another worker ended, and this one cannot go on alone",
        "the first error is that worker's: look at the other ranks' logs",
        may_pass=True,
        native=True,
    ),
)
