"""The port where workers meet, this machine's name, and what jobs of ours listen on."""

import ipaddress
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from launcher.doctor.apart import NoAnswer, ask
from launcher.doctor.finding import FAIL, PASS, WARN, Check, Finding, check
from launcher.doctor.surroundings import Surroundings

_OURS = b"PACELINE_RUN_DIR="
_CONNECT_S, _RESOLVE_S = 3.0, 4.0
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


@check("host name")
def host_name(here: Surroundings) -> Finding:
    """The name by which other machines would find this one."""
    name, is_alone = socket.gethostname(), here.config.cluster.nodes == 1
    fix = f"a line `ADDRESS {name}` in /etc/hosts"
    try:
        address = ask(lambda: _address(name), _RESOLVE_S)
    except NoAnswer as error:
        message = f"{name}: {error} of the name server; every start waits for it"
        return Finding("host name", WARN if is_alone else FAIL, message, fix)
    if not address:
        return Finding("host name", WARN, f"{name} has no address", fix)
    if ipaddress.ip_address(address).is_loopback and not is_alone:
        message = f"{name} is {address} here, which other nodes cannot reach"
        fix = f"the line of {name} in /etc/hosts must have the network's address"
        return Finding("host name", WARN, message, fix)
    return Finding("host name", PASS, f"{name} is {address}")


@check("listening")
def listening(here: Surroundings) -> Finding:
    """What running jobs of ours listen on: torch's store and gloo take connections from anyone who reaches them."""
    ours = _ours()
    places = sorted({place for connection in psutil.net_connections("tcp") if (place := _place(connection, ours))})
    if not places:
        return Finding("listening", PASS, "no job of ours")
    if everywhere := [place for place in places if ipaddress.ip_address(place[0]).is_unspecified]:
        return Finding(
            "listening",
            WARN,
            f"jobs of ours listen on every interface: {_in_words(everywhere)}",
            "a firewall around the nodes' network: torch asks nobody for a password",
        )
    reached = [place for place in places if not ipaddress.ip_address(place[0]).is_loopback]
    text = f"jobs of ours on {_in_words(places)}"
    return Finding("listening", PASS, f"{text}; torch's own ports are open to that network" if reached else text)


def _address(name: str) -> str:
    try:
        return socket.gethostbyname(name)
    except OSError:
        return ""


def _place(connection: Any, ours: set[int]) -> tuple[str, int] | None:
    if connection.status != psutil.CONN_LISTEN or connection.pid not in ours:
        return None
    return connection.laddr.ip, connection.laddr.port


def _in_words(places: list[tuple[str, int]]) -> str:
    return ", ".join(f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}" for ip, port in places)


def _ours() -> set[int]:
    """The processes of jobs of ours, as far as this user may look: agents, workers, and the commands above them."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            variables = (folder / "environ").read_bytes().split(b"\0")
            if any(variable.startswith(_OURS) for variable in variables):
                found.add(int(folder.name))
                # The command that conducts a job was started without the variable.
                found.add(int((folder / "stat").read_text().rpartition(")")[2].split()[1]))
    return found


CHECKS: tuple[Check[Surroundings], ...] = (rendezvous, host_name, listening)
