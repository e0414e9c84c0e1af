"""A connection between two parts of a job: JSON lines, each with a proof that its sender knows the job's secret.

Both sides begin with a random word in clear. Secret and words make the connection's key, and with it each line that
follows proves itself by an HMAC over its direction, its number and its text: nothing can be forged, replayed or left
out, and the secret itself is never sent. It is not encrypted, as the workers' own traffic is not.
"""

import hashlib
import hmac
import json
import os
import socket
from typing import Any

_CHUNK = 1 << 16
_LONGEST_FROM_STRANGER = 1 << 12
_LONGEST = 1 << 26
"""Bytes of a line: thousands of workers' tracebacks fit."""


class ChannelLost(OSError):
    """The other side has gone, or is not who it should be."""


def new_secret() -> str:
    """A secret for one job."""
    return os.urandom(32).hex()


class Channel:
    """One end; nothing here waits.

    Args:
        connection: connected; this object's own from now on.
        secret: the job's.
        is_server: whether this end has accepted the connection.

    Attributes:
        is_proven: whether the other side has shown that it knows the secret.
    """

    def __init__(self, connection: socket.socket, secret: str, *, is_server: bool) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection
        self._secret = secret.encode()
        self._is_server = is_server
        self._word = os.urandom(16).hex().encode()
        self._key: bytes | None = None
        self._out = bytearray(self._word + b"\n")
        self._in = bytearray()
        self._waiting: list[bytes] = []
        self._sent = self._received = 0
        self._is_over = False
        self.is_proven = False
        self._flush()

    def fileno(self) -> int:
        """For selectors."""
        return self._socket.fileno()

    def send(self, message: dict[str, Any]) -> None:
        """Sends a message, now or with a later call of `send` or `receive`; a lost channel swallows it."""
        self._waiting.append(json.dumps(message).encode())
        self._flush()

    def receive(self) -> list[dict[str, Any]]:
        """The messages that have come.

        Raises:
            ChannelLost: see there; what came before is returned first.
        """
        if self._is_over:
            raise ChannelLost("the connection has ended")
        self._read()
        messages = []
        while (end := self._in.find(b"\n")) >= 0:
            line = bytes(self._in[:end])
            del self._in[: end + 1]
            if self._key is None:
                self._agree(line)
            else:
                messages.append(self._open(line))
        if len(self._in) > (_LONGEST if self.is_proven else _LONGEST_FROM_STRANGER):
            raise ChannelLost("a line without an end")
        self._flush()
        return messages

    def close(self) -> None:
        """Ends the connection."""
        self._is_over = True
        self._socket.close()

    def _read(self) -> None:
        # One that sends without pause must not keep the others waiting.
        for _ in range(_LONGEST // _CHUNK if self.is_proven else 1):
            try:
                data = self._socket.recv(_CHUNK)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._is_over = True
                return
            self._in += data

    def _flush(self) -> None:
        if self._key is not None:
            for text in self._waiting:
                self._out += self._proof(text, self._sent, from_server=self._is_server) + b" " + text + b"\n"
                self._sent += 1
            self._waiting.clear()
        try:
            while self._out and not self._is_over:
                del self._out[: self._socket.send(self._out)]
        except BlockingIOError:
            pass
        except OSError:
            # Reading tells, and finds what the other side has said before.
            self._out.clear()

    def _agree(self, word: bytes) -> None:
        words = (word, self._word) if self._is_server else (self._word, word)
        if word == self._word or len(word) != len(self._word):
            raise ChannelLost("a stranger")
        self._key = hmac.digest(self._secret, b"paceline " + b" ".join(words), hashlib.sha256)

    def _open(self, line: bytes) -> dict[str, Any]:
        proof, _, text = line.partition(b" ")
        if not hmac.compare_digest(proof, self._proof(text, self._received, from_server=not self._is_server)):
            raise ChannelLost("a stranger")
        self._received += 1
        self.is_proven = True
        message: dict[str, Any] = json.loads(text)
        return message

    def _proof(self, text: bytes, number: int, *, from_server: bool) -> bytes:
        assert self._key is not None
        head = f"{'server' if from_server else 'client'} {number} ".encode()
        return hmac.new(self._key, head + text, hashlib.sha256).hexdigest().encode()
