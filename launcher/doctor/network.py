"""The port where workers meet, this machine's name, and what jobs of ours listen on."""

import ipaddress
import socket
from pathlib import Path
from typing import Any

import psutil

from launcher.doctor.finding import FAIL, PASS, WARN, Check, Finding, check
from launcher.doctor.surroundings import Surroundings

_OURS = b"PACELINE_RUN_DIR="
_CONNECT_S = 3.0
_NO_LOOPBACK = "sudo ip link set lo up"


@check("rendezvous", hangs="`ip addr show lo`: the loopback interface does not work")
def rendezvous(here: Surroundings) -> Finding:
    """The port where the workers meet."""
    port = here.config.cluster.port or 0
    try:
        server = socket.create_server(("127.0.0.1", port))
    except OSError as error:
        fix = "cluster.port=null takes a free one" if port else _NO_LOOPBACK
        return Finding("rendezvous", FAIL, f"port {port or 'any'} on 127.0.0.1: {error.strerror}", fix)
    with server:
        try:
            socket.create_connection(server.getsockname(), _CONNECT_S).close()
        except OSError as error:
            message = f"127.0.0.1 cannot be reached: {error.strerror or error}"
            return Finding("rendezvous", FAIL, message, _NO_LOOPBACK)
    return Finding("rendezvous", PASS, f"port {port} is free" if port else "a port is free")


@check("host name", limit_s=5.0, hangs="a line `ADDRESS $(hostname)` in /etc/hosts: the name server does not answer")
def host_name(here: Surroundings) -> Finding:
    """The name by which other machines would find this one."""
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        return Finding("host name", WARN, f"{name} has no address", f"a line `ADDRESS {name}` in /etc/hosts")
    if ipaddress.ip_address(address).is_loopback and here.config.cluster.nodes > 1:
        return Finding(
            "host name",
            WARN,
            f"{name} is {address} here, which other nodes cannot reach",
            f"the line of {name} in /etc/hosts must have the network's address",
        )
    return Finding("host name", PASS, f"{name} is {address}")


@check("listening")
def listening(here: Surroundings) -> Finding:
    """What running jobs of ours listen on: torch's store and gloo take connections from anyone who reaches them."""
    places = sorted({found for connection in psutil.net_connections("tcp") if (found := _ours(connection))})
    if not places:
        return Finding("listening", PASS, "no job of ours")
    open_to_all = [place for place in places if place.startswith(("0.0.0.0:", ":::"))]
    if open_to_all:
        return Finding(
            "listening",
            WARN,
            f"jobs of ours listen on every interface: {', '.join(open_to_all)}",
            "a firewall around the nodes' network: torch asks nobody for a password",
        )
    return Finding("listening", PASS, f"jobs of ours on {', '.join(places)}")


def _ours(connection: Any) -> str | None:
    if connection.status != psutil.CONN_LISTEN or connection.pid is None:
        return None
    try:
        variables = Path(f"/proc/{connection.pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    ours = any(variable.startswith(_OURS) for variable in variables)
    return f"{connection.laddr.ip}:{connection.laddr.port}" if ours else None


CHECKS: tuple[Check[Surroundings], ...] = (rendezvous, host_name, listening)
