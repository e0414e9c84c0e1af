"""The store in which workers meet."""

import socket
import time
from datetime import timedelta

import pytest

from launcher import ports
from launcher.nodes import rendezvous
from trainer.errors import UnfitError


def test_a_store_that_cannot_be_reached_is_told_soon_and_later_waits_have_their_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where the loopback interface is down; until then no request to stop is heard."""
    assert timedelta(seconds=15) >= rendezvous._CONNECT_TIMEOUT
    monkeypatch.setattr(rendezvous, "_CONNECT_TIMEOUT", timedelta(seconds=1))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = ports.endpoint_of(taken)
    host, port = endpoint.split(":")
    began = time.monotonic()
    with pytest.raises(UnfitError, match=f"cannot connect to {endpoint}, where the workers are to meet"):
        rendezvous._store(host, int(port))
    assert time.monotonic() - began < 10
    store = rendezvous._host(endpoint)
    assert (store.host, store.port) == (host, int(port))
    # Not among torch's annotations.
    assert store.timeout == timedelta(minutes=10)  # pyrefly: ignore[missing-attribute]
