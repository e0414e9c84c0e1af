"""Questions that may hang or crash, to a driver or a file server, asked in a process of their own, with a limit."""

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from launcher.processes import die_with_parent

_PATIENCE_S = 1.0


class NoAnswer(Exception):
    """The time was up, or the process died; its text says which."""


def ask(question: Callable[[], Any], limit_s: float) -> Any:
    """What a function returns in a process forked from this one, as JSON carries it.

    A call that hangs in the kernel cannot be ended even by SIGKILL; a thread that makes it would keep this process from
    ending, too. So such a child is left behind, and ends when the kernel lets go of it.

    Args:
        question: raises nothing.
        limit_s: seconds until the answer must be there.

    Raises:
        NoAnswer: there is none.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    reading, writing = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _answer(question, parent, writing)
    os.close(writing)
    try:
        content = _read(reading, time.monotonic() + limit_s)
    finally:
        os.close(reading)
        code = _end(pid)
    if content is None:
        raise NoAnswer(f"no answer within {limit_s:g} s")
    if not content:
        raise NoAnswer(f"the process that asked ended with {code}")
    return json.loads(content)


def _answer(question: Callable[[], Any], parent: int, writing: int) -> None:
    try:
        die_with_parent(parent)
        # One that is left behind must not keep open what our reader waits for the end of.
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        with os.fdopen(writing, "wb") as stream:
            stream.write(json.dumps(question()).encode())
    finally:
        # Neither the parent's handlers and buffers nor a traceback: it learns from the pipe.
        os._exit(1)


def _read(stream: int, deadline: float) -> bytes | None:
    content = b""
    while select.select([stream], [], [], max(0.0, deadline - time.monotonic()))[0]:
        piece = os.read(stream, 1 << 16)
        if not piece:
            return content
        content += piece
    return None


def _end(pid: int) -> str:
    """Ends a child; returns how it ended, in words."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            return signal.Signals(-code).name if code < 0 else f"exit code {code}"
        time.sleep(0.001)
    return "no word"
