"""Files of weights: read safely, and fetched once per machine."""

import fcntl
import logging
import pickle
import re
import socket
import sys
from argparse import Namespace
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from trainer.checkpoint import sealed
from trainer.errors import ConfigError, UnfitError
from trainer.model.form import check_form, unreadable
from trainer.model.published import place, unfetched

_LOG = logging.getLogger(__name__)
_WRAPPERS = ("model", "state_dict", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.")
# Compute nodes without a route drop packets; without a limit a worker would wait for minutes.
_CONNECT_SECONDS = 30.0


def read_state(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a weights file without running any code in it.

    The wrappers and prefixes that training programs add (`{"model": ...}`, `module.`) are taken off.

    Raises:
        ConfigError: the file is damaged, holds more than tensors, or none.
        UnfitError: it cannot be read.
    """
    again = "copy or download it again"
    check_form(path)
    try:
        if path.suffix.lower() == ".safetensors":
            sealed.check(path)
            content: Any = safetensors.torch.load_file(path)
        else:
            # torchvision's reference script keeps its arguments beside the weights: a Namespace, only values.
            with torch.serialization.safe_globals([Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not re.search(r"Unsupported (global|class)|not an allowed global", str(error)):
            raise ConfigError(f"{path} is damaged or not a weights file", again) from error
        raise ConfigError(
            f"{path} holds Python objects, not only tensors, and could run code when read",
            "where it was made: torch.save(model.state_dict(), FILE), or save it as .safetensors",
        ) from error
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{path} is damaged: {str(error).splitlines()[0][:120]}", again) from error
    except (EOFError, LookupError, TypeError, AttributeError) as error:
        # What torch's reader of pickles comes to in a file of another kind says nothing to anybody.
        raise ConfigError(f"{path} is damaged or not a weights file", again) from error
    except OSError as error:
        raise unreadable(path, error) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ConfigError(f"{path} is not a state dict", "save model.state_dict(), or {'model': model.state_dict()}")
    return {_bare(str(key)): value for key, value in content.items()}


def download(url: str) -> Path:
    """Fetches a file into torch.hub's cache, once per machine and checked by the hash in its name.

    Returns:
        The path in the cache; nothing is fetched when it is there already.

    Raises:
        UnfitError: the file cannot be fetched or stored.
    """
    path = place(url)
    directory, name = path.parent, path.name
    if path.exists():
        # A shared cache may be read-only: nothing is asked of it.
        return path
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _locked(directory / f".{name}.lock"):
            if not path.exists():
                _LOG.info("fetching %s to %s", url, path)
                digest = re.search(r"-([a-f0-9]{8,})\.", name)
                before = socket.getdefaulttimeout()
                socket.setdefaulttimeout(_CONNECT_SECONDS)
                try:
                    torch.hub.download_url_to_file(
                        url, str(path), digest.group(1) if digest else None, progress=sys.stderr.isatty()
                    )
                finally:
                    socket.setdefaulttimeout(before)
    except PermissionError as error:
        raise UnfitError(f"{directory} is not writable", "set TORCH_HOME to a directory that is") from error
    except (OSError, HTTPException) as error:
        raise unfetched(url, f"cannot be fetched: {error}") from error
    except RuntimeError as error:
        raise unfetched(url, f"arrived damaged: {error}") from error
    return path


@contextmanager
def _locked(path: Path) -> Generator[None, None, None]:
    # All workers of a machine come here at once: the first fetches, the others wait and find the file.
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _bare(key: str) -> str:
    while key.startswith(_PREFIXES):
        key = key.split(".", 1)[1]
    return key
