"""Nobody waits for a storage that hangs without a word."""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

_LONG_S = 10.0


@contextmanager
def saying_if_slow(say: Callable[[str], None], text: str) -> Generator[None]:
    """Says, from a thread, what is being waited for, if what is done inside takes longer than ten seconds."""
    watch = threading.Timer(_LONG_S, say, [text])
    watch.daemon = True
    watch.start()
    try:
        yield
    finally:
        watch.cancel()
