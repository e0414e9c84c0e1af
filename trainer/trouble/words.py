"""What an exception says, in a length that can be read, searched and sent. Standard library only."""

import traceback
from types import TracebackType

_MOST_OF_MESSAGE = 1 << 13
_MOST_OF_TRACEBACK = 1 << 16


def message_of(error: BaseException) -> str:
    """An exception's text; of one that holds a whole tensor or reply its beginning and its end (8 Ki characters)."""
    try:
        text = str(error)
    except Exception as broken:
        text = f"its own text cannot be made: {type(broken).__name__} in {type(error).__name__}.__str__"
    return shortened(text, _MOST_OF_MESSAGE)


def traceback_of(error: BaseException, trace: TracebackType | None) -> str:
    """What Python would print of an exception with this traceback, 64 Ki characters at most."""
    return shortened("".join(traceback.format_exception(type(error), error, trace)), _MOST_OF_TRACEBACK)


def shortened(text: str, most: int) -> str:
    """The text, or its first three quarters and its last of so many characters, with how many lack in between."""
    if len(text) <= most:
        return text
    last = most // 4
    return f"{text[: most - last]} [... {len(text) - most:,} characters ...] {text[-last:]}"
