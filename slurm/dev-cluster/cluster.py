"""The development cluster's verbs: a real Slurm of one head and four compute nodes on this machine."""

import argparse
import fcntl
import os
import secrets
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import configuration
import machine
from layout import (
    CONFIG,
    DATABASE,
    DATABASE_CONFIG,
    DEVICES,
    GPUS_PER_NODE,
    HEAD,
    HOME,
    LOCK,
    LOGS,
    MUNGE,
    NODES,
    PIDS,
    SPOOL,
    STATE,
    Host,
    node_named,
)
from machine import ClusterError

_NEEDED = {
    "slurmctld": "slurm-wlm",
    "slurmdbd": "slurmdbd",
    "munged": "munge",
    "mariadbd": "mariadb-server",
    "ip": "iproute2",
    "nsenter": "util-linux",
}
_ENVIRONMENT = {"SLURM_CONF": str(CONFIG)}
_SLURMD_PORT = 6818
_DATABASE_SOCKET = str(DATABASE / "socket")


def command(verb: Callable[[], None]) -> int:
    """Runs a verb while no other one runs; returns the exit code: 0, or 3 where it cannot be done here."""
    try:
        _check()
        with _alone():
            verb()
    except ClusterError as error:
        sys.stderr.write(f"error: {error}\n")
        return 3
    return 0


def up() -> None:
    """Starts the cluster, unless it runs."""
    started = time.monotonic()
    if machine.pid_of(HEAD) is not None:
        if not _ready():
            raise ClusterError("the cluster runs in part\n  slurm/dev-cluster/down; slurm/dev-cluster/up")
        print(f"the cluster is up: {_describe()}")
        return
    _leave_others_alone()
    try:
        _build()
    except BaseException:
        _end_machines()
        raise
    print(f"the cluster is up after {time.monotonic() - started:.1f} s: {_describe()}")


def down() -> None:
    """Ends every process of the cluster; the logs stay."""
    _leave_others_alone()
    _end_machines()
    for folder in (CONFIG.parent, DATABASE, DEVICES, MUNGE, PIDS, SPOOL, STATE):
        shutil.rmtree(folder, ignore_errors=True)


def node() -> None:
    """Does something to a compute node."""
    parser = argparse.ArgumentParser(
        prog="node",
        description="crash: ends it with all its processes, at once. cut: pulls its cable. kill-slurmd: ends Slurm's "
        "daemon alone. heal: undoes any of them. exec: runs a command there.",
    )
    parser.add_argument("act", choices=("crash", "cut", "kill-slurmd", "heal", "exec"))
    parser.add_argument("node", choices=[host.name for host in NODES])
    parser.add_argument("command", nargs=argparse.REMAINDER, help="for exec")
    options = parser.parse_args()
    if machine.pid_of(HEAD) is None:
        raise ClusterError("the cluster is down\n  slurm/dev-cluster/up")
    host = node_named(options.node)
    if options.act == "crash":
        machine.end(host)
    elif options.act == "cut":
        machine.set_cable(host, plugged=False)
    elif options.act == "kill-slurmd":
        _kill_slurmd(host)
    elif options.act == "heal":
        _heal(host)
    else:
        os.environ.update(_ENVIRONMENT)
        entered = machine.inside(host, *(options.command or ["bash"]))
        os.execvp(entered[0], entered)


def _check() -> None:
    where = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
    os.environ["PATH"] = where
    missing = sorted({package for program, package in _NEEDED.items() if shutil.which(program) is None})
    if os.geteuid() != 0:
        raise ClusterError("the cluster's nodes are namespaces, which root alone may make\n  sudo slurm/dev-cluster/up")
    if missing:
        raise ClusterError(
            f"{', '.join(missing)} must be installed\n  apt-get install --no-install-recommends {' '.join(missing)}"
        )


@contextmanager
def _alone() -> Generator[None]:
    HOME.mkdir(mode=0o755, exist_ok=True)
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build() -> None:
    shutil.rmtree(LOGS, ignore_errors=True)
    for folder in (CONFIG.parent, DATABASE, DEVICES, LOGS, MUNGE, PIDS, SPOOL, STATE):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o755)
    for number in range(GPUS_PER_NODE):
        # Slurm hands out devices, not files; nobody opens these.
        os.mknod(DEVICES / f"nvidia{number}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    password = secrets.token_urlsafe()
    configuration.write(password)
    machine.boot(HEAD)
    machine.lay_switch()
    _start_munge()
    _start_database(password)
    machine.start(HEAD, "slurmdbd", "slurmdbd", "-D", SLURM_CONF=str(DATABASE_CONFIG))
    machine.wait_until(
        lambda: _succeeds("sacctmgr", "-n", "list", "cluster"), "slurmdbd does not answer", "slurmdbd.log"
    )
    machine.run("sacctmgr", "-i", "-Q", "add", "cluster", configuration.CLUSTER, **_ENVIRONMENT)
    machine.start(HEAD, "slurmctld", "slurmctld", "-D", "-f", str(CONFIG))
    for host in NODES:
        _start_node(host)
    machine.wait_until(_ready, "Slurm's nodes do not answer", "slurmctld.log")


def _start_munge() -> None:
    MUNGE.chmod(0o711)
    key = MUNGE / "key"
    key.touch(mode=0o400)
    key.write_bytes(secrets.token_bytes(128))
    files = [f"--{what}-file={MUNGE}/{what}" for what in ("key", "pid", "log", "seed")]
    machine.start(HEAD, "munged", "munged", "--foreground", "--force", *files, f"--socket={MUNGE}/socket")
    machine.wait_until(lambda: _succeeds("munge", "-S", f"{MUNGE}/socket", "-n"), "munge does not answer", "munged.out")


def _start_database(password: str) -> None:
    common = ["--no-defaults", "--user=root", f"--datadir={DATABASE}"]
    machine.run("mariadb-install-db", *common, "--auth-root-authentication-method=socket", "--skip-test-db")
    small = ["--innodb-buffer-pool-size=64M", "--innodb-log-file-size=32M", "--performance-schema=OFF"]
    here = [f"--socket={_DATABASE_SOCKET}", f"--port={configuration.DATABASE_PORT}", "--bind-address=127.0.0.1"]
    machine.start(HEAD, "mariadbd", "mariadbd", *common, *here, *small, "--skip-name-resolve")
    client = ["mariadb", "--no-defaults", f"--socket={_DATABASE_SOCKET}"]
    machine.wait_until(lambda: _succeeds(*client, "-e", "select 1"), "the database does not answer", "mariadbd.out")
    machine.run(
        *client,
        text="create database slurm_acct;"
        f"create user slurm@'127.0.0.1' identified by '{password}'; grant all on slurm_acct.* to slurm@'127.0.0.1';",
    )


def _start_node(host: Host) -> None:
    machine.boot(host)
    machine.plug_in(host)
    (SPOOL / host.name).mkdir(exist_ok=True)
    _start_slurmd(host)


def _start_slurmd(host: Host) -> None:
    pid = machine.start(host, f"slurmd.{host.name}", "slurmd", "-D", "-N", host.name, "-f", str(CONFIG))
    _slurmd_pid(host).write_text(str(pid))


def _kill_slurmd(host: Host) -> None:
    machine.kill(int(_slurmd_pid(host).read_text()))


def _slurmd_pid(host: Host) -> Path:
    return PIDS / f"slurmd.{host.name}"


def _heal(host: Host) -> None:
    if machine.pid_of(host) is None:
        _start_node(host)
    machine.set_cable(host, plugged=True)
    if not machine.is_alive(int(_slurmd_pid(host).read_text())):
        _start_slurmd(host)
    machine.wait_until(lambda: _answers(host), f"{host.name} does not answer", f"slurmd.{host.name}.log")


def _answers(host: Host) -> bool:
    """Whether Slurm's daemon can be reached there, and the controller knows."""
    reached = machine.inside(HEAD, "bash", "-c", f"</dev/tcp/{host.address}/{_SLURMD_PORT}")
    state = _sinfo("-n", host.name, "-o", "%T")
    return _succeeds(*reached) and "*" not in state and "down" not in state


def _ready() -> bool:
    return _sinfo("-p", "gpu", "-N", "-t", "idle,alloc,mix,comp", "-o", "%N").split() == [host.name for host in NODES]


def _sinfo(*options: str) -> str:
    done = subprocess.run(
        ["sinfo", "-h", *options], env={**os.environ, **_ENVIRONMENT}, capture_output=True, text=True, check=False
    )
    return done.stdout if done.returncode == 0 else "down"


def _succeeds(*command: str) -> bool:
    environment = {**os.environ, **_ENVIRONMENT}
    return subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0


def _leave_others_alone() -> None:
    if machine.pid_of(HEAD) is None and machine.is_elsewheres():
        raise ClusterError("the cluster was started from another folder\n  that folder's slurm/dev-cluster/down")


def _end_machines() -> None:
    machine.pull_out_login()
    for host in (*NODES, HEAD):
        machine.end(host)


def _describe() -> str:
    return f"{len(NODES)} nodes with {GPUS_PER_NODE} GPUs each, partitions gpu and high\n  . slurm/dev-cluster/env"
