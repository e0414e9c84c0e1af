"""Time spans as people write them: 90s, 10m, 2h."""

import re

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_SPAN = re.compile(r"(\d+(?:\.\d+)?)([smh])")


def parse_time_span(text: str) -> float | None:
    """Seconds of such a text; None where it is no time span, or none at all."""
    match = _SPAN.fullmatch(text)
    return float(match[1]) * _SECONDS[match[2]] or None if match else None


def parse_seconds(text: str) -> float | None:
    """Seconds of such a text, or of a plain number, 0 among them; None where it is neither."""
    return float(text) if _NUMBER.fullmatch(text) else parse_time_span(text)
