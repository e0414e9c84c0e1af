"""A machine of the cluster: started, wired to the others, entered, ended. Linux namespaces do all of it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from layout import BRIDGE, HEAD, HOSTS, LOGIN_ADDRESS, LOGIN_LINK, LOGS, PREFIX, Host

_WAIT_S = 60.0
_INIT = Path(__file__).with_name("init.py")
_NAMESPACES = ("--net", "--uts", "--pid", "--mount")


class ClusterError(Exception):
    """What is wrong, in two lines for a person: the problem, and what helps."""


def boot(host: Host) -> None:
    """Starts a machine that has its name and nothing else.

    Raises:
        ClusterError: namespaces cannot be made here.
    """
    command = ["unshare", *_NAMESPACES, "--fork", "--kill-child", "--mount-proc", sys.executable, str(_INIT)]
    outer = _start(command, f"{host.name}.out")
    wait_until(lambda: _is_init(_child(outer.pid)), f"{host.name} cannot be made", f"{host.name}.out", outer)
    host.pid_file.write_text(str(_child(outer.pid)))
    _let_go_of_mounts(host)
    enter(host, "hostname", host.name)
    enter(host, "mount", "--bind", str(HOSTS), "/etc/hosts")
    enter(host, "ip", "link", "set", "lo", "up")


def _let_go_of_mounts(host: Host) -> None:
    """Unmounts there what is mounted below /tmp: as long as its copy is there, it would not be gone when it is here."""
    mounts = Path(f"/proc/{pid_of(host)}/mounts").read_text().encode().decode("unicode_escape").splitlines()
    for place in [line.split(" ")[1] for line in mounts]:
        if place.startswith("/tmp/"):
            enter(host, "umount", "--lazy", place)


def lay_switch() -> None:
    """Makes the switch, in the head node, and wires the head and the login node to it."""
    enter(HEAD, "ip", "link", "add", BRIDGE, "type", "bridge")
    enter(HEAD, "ip", "address", "add", f"{HEAD.address}/{PREFIX}", "dev", BRIDGE)
    enter(HEAD, "ip", "link", "set", BRIDGE, "up")
    run("ip", "link", "add", LOGIN_LINK, "type", "veth", "peer", "name", "to-login", "netns", str(pid_of(HEAD)))
    enter(HEAD, "ip", "link", "set", "to-login", "master", BRIDGE, "up")
    run("ip", "address", "add", f"{LOGIN_ADDRESS}/{PREFIX}", "dev", LOGIN_LINK)
    run("ip", "link", "set", LOGIN_LINK, "up")


def is_elsewheres() -> bool:
    """Whether somebody else's cluster has the login node's cable; to be asked when none of ours runs."""
    return Path("/sys/class/net", LOGIN_LINK).exists()


def pull_out_login() -> None:
    """Removes the login node's cable: with the head it would go, too, but some time later."""
    subprocess.run(["ip", "link", "delete", LOGIN_LINK], capture_output=True, check=False)


def plug_in(host: Host) -> None:
    """Wires a compute node to the switch."""
    there, here = str(pid_of(HEAD)), str(pid_of(host))
    run("ip", "link", "add", "name", host.link, "netns", there, "type", "veth", "peer", "name", "eth0", "netns", here)
    enter(HEAD, "ip", "link", "set", host.link, "master", BRIDGE, "up")
    enter(host, "ip", "address", "add", f"{host.address}/{PREFIX}", "dev", "eth0")
    enter(host, "ip", "link", "set", "eth0", "up")


def set_cable(host: Host, *, plugged: bool) -> None:
    """Pulls a compute node's cable at the switch, or plugs it in again."""
    enter(HEAD, "ip", "link", "set", host.link, "up" if plugged else "down")


def pid_of(host: Host) -> int | None:
    """The process that the machine is; None where it does not run."""
    with suppress(OSError, ValueError):
        pid = int(host.pid_file.read_text())
        return pid if _is_init(pid) else None
    return None


def inside(host: Host, *command: str) -> list[str]:
    """The command that runs another one in the machine.

    Raises:
        ClusterError: it does not run.
    """
    pid = pid_of(host)
    if pid is None:
        raise ClusterError(f"{host.name} does not run\n  slurm/dev-cluster/node heal {host.name}")
    return ["nsenter", f"--target={pid}", *_NAMESPACES, "--wd=/", *command]


def enter(host: Host, *command: str) -> None:
    """Runs a command in the machine.

    Raises:
        ClusterError: it failed.
    """
    run(*inside(host, *command))


def start(host: Host, name: str, *command: str, **environment: str) -> int:
    """Starts a daemon in the machine; its output goes to a log of that name.

    Returns:
        Its process, as seen from here.
    """
    outer = _start(inside(host, *command), f"{name}.out", **environment)
    wait_until(lambda: _child(outer.pid) is not None, f"{name} did not start", f"{name}.out", outer)
    pid = _child(outer.pid)
    assert pid is not None
    return pid


def end(host: Host) -> None:
    """Ends the machine with all its processes, like a power cut."""
    pid = pid_of(host)
    if pid is not None:
        kill(pid)
    host.pid_file.unlink(missing_ok=True)


def kill(pid: int) -> None:
    """Ends a process, and waits until it is gone."""
    with suppress(ProcessLookupError):
        watched = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(pid), f"process {pid} does not end", "")
        os.close(watched)


def is_alive(pid: int | None) -> bool:
    """Whether the process runs; one that nobody has reaped does not."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def run(*command: str, text: str | None = None, **environment: str) -> str:
    """Runs a command to its end and gives its output.

    Raises:
        ClusterError: it failed.
    """
    done = subprocess.run(
        command, input=text, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ClusterError(f"{' '.join(command)}\n  {done.stderr.strip() or f'ended with {done.returncode}'}")
    return done.stdout


def wait_until(
    is_so: Callable[[], bool], problem: str, log: str, process: "subprocess.Popen[bytes] | None" = None
) -> None:
    """Waits for something that takes a moment.

    Raises:
        ClusterError: it took too long, or the process that should bring it about has ended.
    """
    deadline = time.monotonic() + _WAIT_S
    while not is_so():
        ended = process is not None and process.poll() is not None
        if ended or time.monotonic() > deadline:
            last = (LOGS / log).read_text(errors="replace").strip().splitlines()[-1:] if log else []
            raise ClusterError(f"{problem}{': ' if last else ''}{''.join(last)}\n  see {LOGS}")
        time.sleep(0.02)


def _start(command: list[str], log: str, **environment: str) -> "subprocess.Popen[bytes]":
    with (LOGS / log).open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **environment},
            start_new_session=True,
        )


def _child(pid: int) -> int | None:
    with suppress(OSError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(children[0]) if children else None
    return None


def _is_init(pid: int | None) -> bool:
    # The command line is ours once everything before it, such as mounting /proc, is done.
    with suppress(OSError):
        return str(_INIT) in Path(f"/proc/{pid}/cmdline").read_text() and is_alive(pid)
    return False
