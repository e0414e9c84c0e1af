"""What an error says of the other workers, by the words of gloo, NCCL and torch's store. Standard library only."""

GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
SILENT = ("timed out waiting", "wait timeout after", "watchdog caught collective operation timeout")


def is_gone(message: str) -> bool:
    """Whether an error only says that another worker has ended."""
    return any(words in message for words in GONE)


def is_silent(message: str) -> bool:
    """Whether an error says that another worker has not answered in time: as far as is known it is still there."""
    message = message.lower()
    return any(words in message for words in SILENT)


def sign(message: str) -> str:
    """The words, in small letters, by which an error speaks of another worker; empty where it does not."""
    message = message.lower()
    return next((words.lower() for words in (*GONE, *SILENT) if words.lower() in message), "")
