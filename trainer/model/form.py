"""What a file of weights is by its first bytes, known before torch is there: neither is a tensor read nor a pickle."""

import json
import os
from pathlib import Path

from trainer.errors import ConfigError, UnfitError

_BEGINNING = 512
_LONGEST_HEADER = 100_000_000  # the library's own limit
_TAR = slice(257, 262)
_WEIGHT_FILES = (".pth", ".pt", ".safetensors", ".bin")
_AGAIN = "copy or download it again"


def is_weights_file(weights: str) -> bool:
    """Whether `model.weights` means a file rather than the name of torchvision's weights."""
    return "/" in weights or os.sep in weights or weights.lower().endswith(_WEIGHT_FILES)


def check_form(path: Path) -> None:
    """Refuses a file that surely is no whole file of weights: not safetensors, or by its name not PyTorch's.

    Raises:
        ConfigError: says what it is instead.
        UnfitError: it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            beginning = stream.read(_BEGINNING)
            size = path.stat().st_size
            length = int.from_bytes(beginning[:8], "little")
            is_safetensors = beginning[8:9] == b"{" and length <= _LONGEST_HEADER
            needed = 0
            if is_safetensors:
                stream.seek(8)
                needed = 8 + length + _bytes_of_tensors(stream.read(length))
    except OSError as error:
        raise unreadable(path, error) from error
    # A zip archive; before that, one pickle after the other; before that, a tar archive.
    is_torchs = beginning.startswith((b"PK\x03\x04", b"\x80")) or beginning[_TAR] == b"ustar"
    if path.suffix.lower() == ".safetensors":
        if is_safetensors and needed > size:
            raise ConfigError(f"{path} is cut off: it has {size:,} of at least {needed:,} bytes", _AGAIN)
        if not is_safetensors:
            raise _other(path, "safetensors", beginning, fix="rename it to .pth" if is_torchs else _AGAIN)
    elif is_safetensors:
        raise ConfigError(f"{path} is a safetensors file by another name", "rename it to .safetensors")
    elif not is_torchs:
        raise _other(path, "PyTorch", beginning, fix=_AGAIN)


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The tensors of a safetensors file, as its header lists them; none where it is no such file.

    Raises:
        UnfitError: it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            entries = json.loads(stream.read(min(length, _LONGEST_HEADER)))
        return {name: tuple(map(int, entry["shape"])) for name, entry in entries.items() if name != "__metadata__"}
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def unreadable(path: Path, error: OSError) -> UnfitError:
    """The error for a file that cannot be read."""
    return UnfitError(f"{path} cannot be read: {error.strerror or error}", "look at its permissions")


def _bytes_of_tensors(header: bytes) -> int:
    """What the tensors of a safetensors file take; 0 where its header does not tell, which its loader will say."""
    try:
        entries = json.loads(header)
        return max((entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"), default=0)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return 0


def _other(path: Path, kind: str, beginning: bytes, *, fix: str) -> ConfigError:
    what = f"no {kind} file: it begins with {beginning[:16]!r}"
    if not beginning:
        what = "empty"
    elif beginning.startswith(b"version https://git-lfs"):
        what, fix = "a Git LFS pointer, not the file itself", "`git lfs pull` in its repository fetches the file"
    elif beginning.lstrip().startswith(b"<"):
        what = "a web page, not a file of weights"
    return ConfigError(f"{path} is {what}", fix)
