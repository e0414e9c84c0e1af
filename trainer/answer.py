"""Answers for programs: one JSON object with a version, which every parser takes whatever it tells of."""

import json
import math
from typing import Any

VERSION = 1
"""Of all answers; a name that they have keeps its meaning, and new ones may come."""


def as_json(**fields: Any) -> str:
    """The answer; what is no number in JSON (NaN, infinity) is null, and what is no text is escaped."""
    return json.dumps({"version": VERSION, **_plain(fields)}, indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
