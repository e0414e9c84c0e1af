"""Downloads: by one process at a time, compared with a checksum, put in place by a rename."""

import errno
import fcntl
import hashlib
import http.client
import os
import queue
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from trainer.errors import UnfitError
from trainer.rundir import sync_directory

CONNECT_TIMEOUT_S = 15.0
"""Until a server answers, and between two pieces of its answer."""

_CHUNK = 1 << 18
_LINE_EVERY_S = 30.0
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS}


@contextmanager
def sole_process(folder: Path) -> Iterator[None]:
    """Lets one process at a time work in `folder`, on this machine at least; the others wait.

    The kernel holds the lock, so it ends with its holder however that dies.

    Raises:
        UnfitError: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / ".lock").open("ab")
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            # Some network file systems have no locks; the machine's own temporary folder has.
            stream.close()
            digest = hashlib.blake2b(os.fsencode(folder.resolve()), digest_size=8).hexdigest()
            stream = (Path(tempfile.gettempdir()) / f"paceline-{os.getuid()}-{digest}.lock").open("ab")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
    finally:
        stream.close()


def download(url: str, target: Path, *, md5: str | None = None, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
    """Fetches a file; `target` holds all of it, as the checksum says, or is not changed.

    Args:
        url: http, https or file.
        target: its folder exists.
        md5: of the file, in hexadecimal; None compares the length alone.
        timeout_s: seconds until the server answers, and between two pieces of its answer.

    Raises:
        UnfitError: the server cannot be reached, has no such file, or what came is not what was asked for.
    """
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with _open(url, timeout_s) as response, written_whole(target) as stream:
            length = int(response.headers.get("Content-Length") or 0)
            with _progress(target.name, length) as advance:
                received = 0
                while chunk := _read(response, url):
                    stream.write(chunk)
                    digest.update(chunk)
                    received += len(chunk)
                    advance(received)
            if length and received != length:
                raise _failed(url, f"the connection ended after {received:,} of {length:,} bytes")
            if md5 is not None and digest.hexdigest() != md5:
                raise _failed(url, f"what came has the MD5 checksum {digest.hexdigest()}, not {md5}")
    except OSError as error:
        raise cannot_write(target, error) from error


@contextmanager
def written_whole(target: Path) -> Iterator[BinaryIO]:
    """A stream whose content becomes `target` when the block ends well; else `target` stays as it was.

    Raises:
        OSError: the disk is full, the folder cannot be written, and so on.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(target.parent)


def cannot_write(path: Path, error: OSError) -> UnfitError:
    """What to tell of a folder or disk that takes no files."""
    return UnfitError(f"cannot write {path}: {error.strerror or error}", "choose another place with data.root=DIR")


def say(line: str) -> None:
    """Tells a person what takes its time, on stderr."""
    print(line, file=sys.stderr, flush=True)


def _failed(url: str, reason: str) -> UnfitError:
    return UnfitError(f"cannot download {url}: {reason}", "try again later, or give a copy with data.root=DIR")


def _open(url: str, timeout_s: float) -> Any:
    """Opens a URL within `timeout_s`.

    urllib's own time-out begins anew for each of a host's addresses and does not cover the look-up of its
    name, so a network that swallows packets could hold it up for minutes.
    """
    answers: queue.Queue[Any] = queue.Queue()

    def connect() -> None:
        try:
            answers.put(urllib.request.urlopen(url, timeout=timeout_s))
        except (OSError, http.client.HTTPException, ValueError) as error:
            answers.put(error)

    threading.Thread(target=connect, daemon=True).start()
    try:
        answer = answers.get(timeout=timeout_s)
    except queue.Empty:
        raise _failed(url, f"no answer within {timeout_s:g} s") from None
    if isinstance(answer, urllib.error.HTTPError):
        raise _failed(url, f"the server says {answer.code} {answer.reason}") from answer
    if isinstance(answer, urllib.error.URLError):
        raise _failed(url, str(answer.reason)) from answer
    if isinstance(answer, Exception):
        raise _failed(url, str(answer) or type(answer).__name__) from answer
    return answer


def _read(response: Any, url: str) -> bytes:
    try:
        return response.read(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _failed(url, f"the connection broke: {error}") from error


@contextmanager
def _progress(name: str, length: int) -> Iterator[Callable[[int], None]]:
    """Shows bytes received: a bar on a terminal, else a line at the start and one every 30 s."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
            task = bar.add_task(name, total=length or None)
            yield lambda received: bar.update(task, completed=received)
        return
    of_all = f" of {length / 1e6:.1f} MB" if length else ""
    say(f"downloading {name}{f' ({length / 1e6:.1f} MB)' if length else ''}")
    last = time.monotonic()

    def advance(received: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _LINE_EVERY_S:
            last = time.monotonic()
            say(f"downloading {name}: {received / 1e6:.1f} MB{of_all}")

    yield advance
