"""What Slurm and its database are told; times are short, so that seconds show what takes minutes elsewhere."""

from pathlib import Path

from layout import (
    CONFIG,
    CPUS_PER_NODE,
    DATABASE_CONFIG,
    DEVICES,
    GPUS_PER_NODE,
    HEAD,
    HOSTS,
    LOGS,
    MEMORY_MB_PER_NODE,
    MUNGE,
    NODES,
    SPOOL,
    STATE,
    Host,
)

CLUSTER = "paceline-dev"
DATABASE_PORT = 3306

_SLURM = f"""
ClusterName={CLUSTER}
SlurmctldHost={HEAD.name}({HEAD.address})
SlurmUser=root
AuthType=auth/munge
# A requeued job waits as long as a credential lives.
AuthInfo=socket={MUNGE}/socket,cred_expire=5
StateSaveLocation={STATE}
SlurmdSpoolDir={SPOOL}/%n
SlurmctldPidFile={STATE}/slurmctld.pid
SlurmdPidFile={SPOOL}/%n.pid
SlurmctldLogFile={LOGS}/slurmctld.log
SlurmdLogFile={LOGS}/slurmd.%n.log
SlurmctldDebug=verbose
SlurmdDebug=verbose
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SlurmdTimeout=10
SlurmctldTimeout=30
MessageTimeout=5
KillWait=5
JobRequeue=1
EnforcePartLimits=ALL
# The nodes pretend to have more than this machine has.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=2
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={HEAD.address}
# Where slurmdbd is asked: munge's socket, whatever the key is called.
AccountingStoragePass={MUNGE}/socket
AccountingStorageTRES=gres/gpu
GresTypes=gpu
"""

_PARTITIONS = """
PartitionName=gpu Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=10 MaxTime=1-0 DefaultTime=10
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=1-0 DefaultTime=10
"""


def write(password: str) -> None:
    """Writes every file that the daemons read.

    Args:
        password: of Slurm's account in the database.
    """
    CONFIG.write_text(_SLURM + "".join(map(_node, NODES)) + _PARTITIONS)
    Path(CONFIG.parent, "gres.conf").write_text(f"Name=gpu File={DEVICES}/nvidia[0-{GPUS_PER_NODE - 1}]\n")
    Path(CONFIG.parent, "cgroup.conf").write_text("CgroupAutomount=no\n")
    HOSTS.write_text("127.0.0.1 localhost\n" + "".join(f"{host.address} {host.name}\n" for host in (HEAD, *NODES)))
    # slurmdbd refuses to start when others could read its password.
    DATABASE_CONFIG.touch(mode=0o600)
    DATABASE_CONFIG.write_text(f"""
AuthType=auth/munge
AuthInfo={MUNGE}/socket
DbdHost={HEAD.name}
DbdAddr={HEAD.address}
SlurmUser=root
LogFile={LOGS}/slurmdbd.log
PidFile={STATE}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={DATABASE_PORT}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm_acct
""")


def _node(node: Host) -> str:
    return (
        f"NodeName={node.name} NodeAddr={node.address} CPUs={CPUS_PER_NODE} Boards=1 SocketsPerBoard=1 "
        f"CoresPerSocket={CPUS_PER_NODE} ThreadsPerCore=1 RealMemory={MEMORY_MB_PER_NODE} Gres=gpu:{GPUS_PER_NODE}\n"
    )
