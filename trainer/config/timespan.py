"""Time spans as people write them: 90s, 10m, 2h."""

import re

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_SPAN = re.compile(r"(\d+(?:\.\d+)?)([smh])")

_SPELLED = re.compile(r"(\d+(?:\.\d+)?)[\s_-]*(s(?:ec(?:ond)?s?)?|m(?:in(?:ute)?s?)?|h(?:(?:ou)?rs?)?)", re.IGNORECASE)


def parse_time_span(text: str) -> float | None:
    """Seconds of such a text; None where it is no time span, or none at all."""
    match = _SPAN.fullmatch(text)
    return float(match[1]) * _SECONDS[match[2]] or None if match else None


def parse_seconds(text: str) -> float | None:
    """Seconds of such a text, or of a plain number, 0 among them; None where it is neither."""
    return float(text) if _NUMBER.fullmatch(text) else parse_time_span(text)


def spelled(text: str) -> str | None:
    """A time span that somebody has written in words, `5 minutes`, as it is written here; None where it is none."""
    match = _SPELLED.fullmatch(text.strip())
    return f"{match[1]}{match[2][0].lower()}" if match and float(match[1]) else None
