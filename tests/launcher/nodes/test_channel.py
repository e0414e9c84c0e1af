"""The connection between agents: who does not know the job's secret is refused, and cannot change a word."""

import json
import socket
from collections.abc import Callable

import pytest

from launcher.nodes.channel import Channel, ChannelLost, new_secret

Bend = Callable[[bytes], bytes]


def pair(secret: str, other_secret: str) -> tuple[Channel, Channel]:
    one, other = _tcp_pair()
    return Channel(one, secret, is_server=True), Channel(other, other_secret, is_server=False)


def _tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        return listener.accept()[0], client


def hear_to_the_end(channel: Channel) -> None:
    for _ in range(1000):
        channel.receive()


def meet(server: Channel, client: Channel) -> None:
    client.send({"kind": "join"})
    assert client.receive() == []
    assert server.receive() in ([], [{"kind": "join"}])
    server.send({"kind": "go"})
    assert client.receive() == [{"kind": "go"}]


def test_messages_arrive_in_order_both_ways_and_the_last_words_of_one_that_has_gone_too() -> None:
    secret = new_secret()
    server, client = pair(secret, secret)
    assert not server.is_proven
    meet(server, client)
    server.receive()
    assert server.is_proven
    assert client.is_proven
    words = [{"number": number, "text": "ä" * 100_000} for number in range(20)]
    for word in words:
        client.send(word)
    heard: list[object] = []
    while len(heard) < len(words):
        heard += server.receive()
        # What the connection could not take at once goes out with later calls.
        client.receive()
    assert heard == words
    client.send({"kind": "bye"})
    client.close()
    assert server.receive() == [{"kind": "bye"}]
    with pytest.raises(ChannelLost):
        server.receive()


def test_another_secret_is_refused_by_both_sides() -> None:
    server, client = pair(new_secret(), new_secret())
    server.receive()
    client.receive()
    client.send({"kind": "join"})
    server.send({"kind": "go"})
    for channel in (server, client):
        with pytest.raises(ChannelLost, match="stranger"):
            channel.receive()
        assert not channel.is_proven


@pytest.mark.parametrize(
    "said",
    [b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 5000, b"x" * 32 + b"\n" + b'{"kind": "join"}\n', b"\n", b"{}\n{}\n"],
)
def test_what_does_not_know_the_protocol_is_refused(said: bytes) -> None:
    accepted, stranger = _tcp_pair()
    channel = Channel(accepted, new_secret(), is_server=True)
    stranger.sendall(said)
    stranger.close()
    with pytest.raises(ChannelLost):
        hear_to_the_end(channel)


def _swapped(lines: bytes) -> bytes:
    first, second, rest = lines.split(b"\n", 2)
    return b"\n".join([second, first, rest])


@pytest.mark.parametrize(
    "bend",
    [
        lambda lines: lines.replace(b"one", b"two"),
        lambda lines: lines.partition(b"\n")[2],
        lambda lines: lines.partition(b"\n")[0] + b"\n" + lines,
        _swapped,
    ],
    ids=["changed", "left out", "repeated", "swapped"],
)
def test_nobody_in_between_can_change_leave_out_or_repeat_what_is_said(bend: Bend) -> None:
    secret = new_secret()
    ours, to_client = _tcp_pair()
    to_server, theirs = _tcp_pair()
    server, client = Channel(theirs, secret, is_server=True), Channel(ours, secret, is_server=False)
    # The words in clear, as they are.
    to_server.sendall(to_client.recv(100))
    to_client.sendall(to_server.recv(100))
    client.receive()
    server.receive()
    client.send({"kind": "one"})
    client.send({"kind": "last"})
    lines = to_client.recv(10_000)
    assert secret.encode() not in lines
    assert json.loads(lines.split(b"\n")[0].partition(b" ")[2]) == {"kind": "one"}
    to_server.sendall(bend(lines))
    with pytest.raises(ChannelLost, match="stranger"):
        hear_to_the_end(server)


def test_what_was_said_on_one_connection_proves_nothing_on_another_nor_in_the_other_direction() -> None:
    secret = new_secret()
    ours, to_client = _tcp_pair()
    client = Channel(ours, secret, is_server=False)
    # An echo of its own word is not the other side's.
    to_client.sendall(to_client.recv(100))
    with pytest.raises(ChannelLost, match="stranger"):
        client.receive()
    to_server, theirs = _tcp_pair()
    server = Channel(theirs, secret, is_server=True)
    to_server.recv(100)
    to_server.sendall(b"0" * 32 + b"\n")
    server.receive()
    server.send({"kind": "join"})
    # Nor is what it said itself.
    to_server.sendall(to_server.recv(10_000))
    with pytest.raises(ChannelLost, match="stranger"):
        server.receive()
    recorded = []
    for _ in range(2):
        accepted, stranger = _tcp_pair()
        server = Channel(accepted, secret, is_server=True)
        if recorded:
            stranger.sendall(recorded[0])
            with pytest.raises(ChannelLost, match="stranger"):
                hear_to_the_end(server)
            continue
        relayed, source = _tcp_pair()
        client = Channel(relayed, secret, is_server=False)
        source.sendall(stranger.recv(100))
        client.send({"kind": "join"})
        client.receive()
        recorded.append(source.recv(10_000))
        stranger.sendall(recorded[0])
        assert server.receive() == [{"kind": "join"}]
