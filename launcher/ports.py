"""Where the parts of a job listen: on one interface, and on no port of somebody else's."""

import errno
import socket

from trainer.errors import UnfitError


def listen(endpoint: str) -> socket.socket:
    """A socket that listens on `host:port`; port 0 is a free one.

    Raises:
        UnfitError: the port is taken, or the host has another machine's address.
    """
    host, _, port = endpoint.rpartition(":")
    try:
        return socket.create_server((host, int(port)))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UnfitError(
                f"cluster.port={port} is in use by another program on {socket.gethostname()}",
                "cluster.port=null takes a free one",
            ) from error
        raise UnfitError(
            f"cannot listen on {endpoint} of {socket.gethostname()}: {error.strerror}",
            "cluster.port=null takes a free port",
        ) from error


def endpoint_of(listener: socket.socket) -> str:
    """The `host:port` that a socket listens on."""
    host, port = listener.getsockname()[:2]
    return f"{host}:{port}"
