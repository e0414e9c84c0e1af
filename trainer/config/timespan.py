"""Time spans as people write them: 90s, 10m, 2h."""

import re

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)([smh])")


def parse_time_span(text: str) -> float | None:
    """Seconds of such a text; None where it is no time span, or none at all."""
    match = _SPAN.fullmatch(text)
    return float(match[1]) * _SECONDS[match[2]] or None if match else None
