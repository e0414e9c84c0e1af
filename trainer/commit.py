"""A folder of files that exists whole or not at all, also after a power cut; neither torch nor pickle.

    .NAME.HOST.PID.TIME.tmp/    each file written, digested and fsynced; manifest.json last
    NAME/                       the same folder after one rename; only then is it there for a reader

The manifest has the folder's name, and the size and the xxh3_128 of every file; a folder whose manifest does not agree
is damaged, a copy under another name among them: that name says of which step it is.
"""

import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

import xxhash

from trainer.rundir import sync_directory

MANIFEST = "manifest.json"
_FORMAT = 1
_BLOCK = 1 << 24
_ANY_TIME = nullcontext()
_under_way: set[Path] = set()
"""What this process is writing at present. Its number would not tell: a container's is the same at every start."""


Piece = bytes | memoryview


class Damaged(Exception):
    """A folder that must not be used; the message says why."""


def write_folder(
    folder: Path,
    files: Mapping[str, Iterable[Piece]],
    *,
    guard: Callable[[], None] = lambda: None,
    turn: AbstractContextManager[object] = _ANY_TIME,
) -> None:
    """Writes a folder; when this returns it survives a power cut.

    Args:
        folder: where; a folder of that name is replaced.
        files: plain file name -> its content in pieces.
        guard: called just before the folder gets its name; what it raises leaves nothing behind.
        turn: held over that call and the renaming.

    Raises:
        OSError: disk full, not writable, ...; what was there before is there still.
    """
    _make_directory(folder.parent)
    temporary, replaced = hidden(folder, "tmp"), hidden(folder, "replaced")
    _under_way.add(temporary)
    try:
        temporary.mkdir()
        listed = {name: _write_file(temporary / name, pieces) for name, pieces in files.items()}
        manifest = {"format": _FORMAT, "folder": folder.name, "files": listed}
        _write_file(temporary / MANIFEST, [json.dumps(manifest, indent=1).encode()])
        sync_directory(temporary)
        with turn:
            guard()
            if folder.exists():
                folder.rename(replaced)
            temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if replaced.exists():
            replaced.rename(folder)
        raise
    finally:
        _under_way.discard(temporary)
    sync_directory(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def replace_file(
    path: Path,
    pieces: Iterable[Piece],
    *,
    guard: Callable[[], None] = lambda: None,
    turn: AbstractContextManager[object] = _ANY_TIME,
) -> None:
    """Writes one file in the same way: a reader, or a crash, sees either the old content or the new one.

    Args:
        path: where.
        pieces: its content.
        guard: called just before the file gets its name; what it raises leaves nothing behind.
        turn: held over that call and the renaming.

    Raises:
        OSError: disk full, not writable, ...; what was there before is there still.
    """
    _make_directory(path.parent)
    temporary = hidden(path, "tmp")
    _under_way.add(temporary)
    try:
        _write_file(temporary, pieces)
        with turn:
            guard()
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        _under_way.discard(temporary)
    sync_directory(path.parent)


def read_folder(folder: Path, names: Iterable[str]) -> dict[str, bytes]:
    """Reads files of a folder once, and hands over exactly the bytes whose digests agreed.

    Raises:
        Damaged: the manifest or a file is missing, cannot be read, is truncated or changed.
    """
    listed = _manifest(folder)
    content = {}
    for name in names:
        if name not in listed:
            raise Damaged(f"{MANIFEST} does not list {name}")
        try:
            content[name] = (folder / name).read_bytes()
        except OSError as error:
            raise Damaged(f"{name} cannot be read: {error.strerror}") from error
        _compare(name, listed[name], len(content[name]), xxhash.xxh3_128_hexdigest(content[name]))
    return content


def verify_folder(folder: Path) -> None:
    """Compares every file of a folder with its digest, in little memory.

    Raises:
        Damaged: as `read_folder`.
    """
    for name, expected in _manifest(folder).items():
        digest, size = xxhash.xxh3_128(), 0
        try:
            with (folder / name).open("rb", buffering=0) as stream:
                # What was just written would else be answered from memory.
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                while block := stream.read(_BLOCK):
                    digest.update(block)
                    size += len(block)
        except OSError as error:
            raise Damaged(f"{name} cannot be read: {error.strerror}") from error
        _compare(name, expected, size, digest.hexdigest())


def delete_folder(folder: Path) -> None:
    """Deletes a folder such that nobody ever sees a half-deleted one under its name.

    Raises:
        OSError: it could not be renamed.
    """
    gone = hidden(folder, "deleted")
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def give_names_back(parent: Path, pattern: str) -> None:
    """Mends what a writer that was killed between two renames has left of folders named `pattern`; for their owner."""
    for path in parent.glob(f".{pattern}.replaced"):
        folder = path.with_name(path.name[1:].split(".", 1)[0])
        if not folder.exists():
            path.rename(folder)


def clear_up(parent: Path, pattern: str) -> None:
    """Removes what writers that were killed have left beside folders named `pattern`; only their owner may call it.

    What this process is writing stays.
    """
    give_names_back(parent, pattern)
    for ending in ("tmp", "replaced", "deleted"):
        for path in parent.glob(f".{pattern}.{ending}"):
            if path not in _under_way:
                shutil.rmtree(path, ignore_errors=True)


def remove_unfinished_files(parent: Path, *, older_than_s: float = 0.0) -> None:
    """Removes what killed writers of single files have left in a directory; a writer of this process keeps its own.

    Args:
        parent: the directory.
        older_than_s: leaves younger ones alone, where others may write as well.
    """
    for path in parent.glob(".*.tmp"):
        with suppress(OSError):
            if path not in _under_way and path.is_file() and time.time() - path.stat().st_mtime >= older_than_s:
                path.unlink()


def sync_file(path: Path) -> None:
    """Makes what was written to a file so far survive a power cut.

    Raises:
        OSError: there is no such file, or it could not be written.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_ancestors(path: Path, levels: int = 3) -> None:
    """Makes a directory and those above it survive a power cut, as far as they are ours to sync."""
    for directory in [path, *path.absolute().parents][:levels]:
        with suppress(OSError):
            sync_directory(directory)


def hidden(path: Path, ending: str) -> Path:
    """A name beside `path` that no reader takes for anything, and no other writer for its own."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{time.time_ns():x}.{ending}")


def _make_directory(path: Path) -> None:
    """Makes a directory, where there is none, that survives a power cut."""
    if not path.exists():
        path.mkdir(parents=True, exist_ok=True)
        sync_directory(path.parent)


def _write_file(path: Path, pieces: Iterable[Piece]) -> dict[str, int | str]:
    """Writes a new file down to the medium; returns its entry in the manifest."""
    digest, size = xxhash.xxh3_128(), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        for piece in pieces:
            view = memoryview(piece).cast("B")
            for start in range(0, len(view), _BLOCK):
                block = view[start : start + _BLOCK]
                digest.update(block)
                while len(block):
                    block = block[os.write(descriptor, block) :]
            size += len(view)
        # Once only: after a failure the kernel forgets what it could not write, and a second call would succeed.
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return {"bytes": size, "xxh3_128": digest.hexdigest()}


def _manifest(folder: Path) -> dict[str, dict[str, int | str]]:
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise Damaged(f"{MANIFEST} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{MANIFEST} is not JSON") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise Damaged(f"{MANIFEST} lists no files")
    if manifest.get("format") != _FORMAT:
        raise Damaged(f"its format is {manifest.get('format')!r}, and this version reads {_FORMAT}")
    if (named := manifest.get("folder", folder.name)) != folder.name:
        raise Damaged(f"by its {MANIFEST} it is {named}, under another name")
    for name, entry in manifest["files"].items():
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise Damaged(f"{MANIFEST} names a file outside of the folder: {name!r}")
        if not isinstance(entry, dict):
            raise Damaged(f"{MANIFEST} says nothing about {name}")
    return manifest["files"]


def _compare(name: str, expected: Mapping[str, int | str], size: int, digest: str) -> None:
    if size != expected.get("bytes"):
        raise Damaged(f"{name} has {size} bytes instead of {expected.get('bytes')}")
    if digest != expected.get("xxh3_128"):
        raise Damaged(f"the checksum of {name} does not agree")
