"""Published weights before they are fetched: their place in the cache, and whether they can be had. No torch."""

import os
from pathlib import Path
from urllib.parse import urlparse

from trainer.config import names
from trainer.config.schema import ModelConfig
from trainer.errors import UnfitError
from trainer.model.form import is_weights_file

_PATIENCE_S = 5.0


def place(url: str) -> Path:
    """Where a file of weights lies once it is fetched; torch.hub's own rule."""
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch")
    return Path(home).expanduser() / "hub" / "checkpoints" / Path(urlparse(url).path).name


def check_available(model: ModelConfig) -> None:
    """Refuses weights by name that are neither in the cache nor can be fetched, before anything is started.

    A server that does not answer in time is not judged.

    Args:
        model: validated.

    Raises:
        UnfitError: see above.
    """
    if model.weights is None or model._target_ is not None or is_weights_file(model.weights):
        return
    url = names.weights_url(model.name, model.weights)
    if url is None or place(url).exists():
        return
    # Imported here: it takes a while, and hardly anybody needs it.
    from http.client import HTTPException
    from urllib.error import URLError
    from urllib.request import Request, urlopen

    try:
        urlopen(Request(url, headers={"User-Agent": "torch.hub"}), timeout=_PATIENCE_S).close()
    except TimeoutError:
        return
    except (OSError, HTTPException) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if not isinstance(reason, TimeoutError):
            raise unfetched(url, f"cannot be fetched: {error}") from error


def unfetched(url: str, reason: str) -> UnfitError:
    """The error for a file of weights that could not be had.

    Args:
        url: where it is published.
        reason: the end of a sentence about it.
    """
    path = place(url)
    return UnfitError(
        f"the weights {path.name} {reason}",
        f"fetch {url} on a machine with a network and put it into {path.parent}, or anywhere and set "
        f"model.weights=PATH/{path.name}",
    )
