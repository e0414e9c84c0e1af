"""A safetensors file that holds its own checksum, in its metadata: loaders pass over it, and other files have none."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import xxhash

METADATA = "__metadata__"
_SEAL = "paceline_xxh3_128"
_BLOCK = 1 << 24
_LONGEST_HEADER = 100_000_000  # the library's own limit


def seal(header: Mapping[str, object], metadata: Mapping[str, str], pieces: Iterable[memoryview]) -> dict[str, object]:
    """A safetensors header whose metadata has the xxh3_128 of all else: of the header, and of the tensors' bytes.

    Args:
        header: the tensors' entries.
        metadata: what else the file says.
        pieces: the tensors' bytes, in the order of the file.
    """
    whole = {METADATA: dict(metadata), **header}
    digest = _begin(whole)
    for piece in pieces:
        digest.update(piece)
    return {**whole, METADATA: {**metadata, _SEAL: digest.hexdigest()}}


def check(path: Path) -> None:
    """Makes sure that a file holds what was written; one without a seal passes.

    Raises:
        ValueError: it does not.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            header = json.loads(stream.read(min(length, _LONGEST_HEADER)))
            sealed = header[METADATA].pop(_SEAL)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return  # no seal, or no such file at all, which its loader tells
        digest = _begin(header)
        while block := stream.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest() != sealed:
        raise ValueError("the checksum in it does not agree: it was changed after it was written")


def _begin(header: Mapping[str, object]) -> "xxhash.xxh3_128":
    return xxhash.xxh3_128(json.dumps(header, separators=(",", ":")).encode())
