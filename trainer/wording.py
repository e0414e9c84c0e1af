"""Numbers for people: thousands with commas, a unit with every figure, durations in two parts."""

import os
import shutil
import sys
from pathlib import Path

_TIME_UNITS = ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))
_BINARY_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")


def number(value: float) -> str:
    """A count or a rate: 1,930 or 74.2; below 100 with three significant digits unless it is whole."""
    if value != value or value in (float("inf"), float("-inf")):
        return str(value)
    if abs(value) >= 100 or float(value).is_integer():
        return f"{value:,.0f}"
    return significant(value)


def significant(value: float, digits: int = 3) -> str:
    """A measured value, such as a loss, with so many significant digits: 0.412, 12.3, 3.1e-05."""
    text = f"{value:#.{digits}g}"
    return text.rstrip(".") if "e" not in text else f"{value:.{digits - 1}g}"


def percent(fraction: float) -> str:
    """A share (0-1) in per cent: 91.8 %, 0.4 %, and 97 % where a tenth adds nothing."""
    value = round(100 * fraction, 1)
    return f"{value:.0f} %" if value == round(value) else f"{value:.1f} %"


def whole_percent(fraction: float) -> str:
    """A share (0-1) in whole per cent, for lines that are read at a glance: 1 %."""
    return f"{100 * fraction:.0f} %"


def duration(seconds: float) -> str:
    """A time span in its two largest units: 2 m 12 s, 3 h 12 m, 1 d 04 h; also 1.5 s, 420 ms."""
    if seconds != seconds or seconds == float("inf"):
        return "unknown"
    if seconds < 0.95:
        return f"{1000 * max(0.0, seconds):.0f} ms"
    if round(seconds, 1) < 10 and round(seconds, 1) % 1:
        return f"{seconds:.1f} s"
    # Rounded to what is shown, so that 119.7 s is 2 m 0 s and never 1 m 60 s.
    grain = 3_600 if seconds >= 86_400 else 60 if seconds >= 3_600 else 1
    left = round(seconds / grain) * grain
    for position, (size, unit) in enumerate(_TIME_UNITS):
        if left >= size:
            larger = f"{left // size} {unit}"
            if position + 1 == len(_TIME_UNITS):
                return larger
            smaller_size, smaller_unit = _TIME_UNITS[position + 1]
            return f"{larger} {left % size // smaller_size:02d} {smaller_unit}"
    return "0 s"


def size(count: float) -> str:
    """An amount of bytes in binary units: 512 bytes, 1.2 GiB."""
    if count < 1024:
        return f"{count:.0f} bytes"
    power = 1
    # 1023.96 KiB would be shown as 1,024.0 KiB.
    while power < len(_BINARY_UNITS) and count / 1024**power >= 1023.95:
        power += 1
    return f"{count / 1024**power:,.1f} {_BINARY_UNITS[power - 1]}"


def plural(count: int, noun: str, plural_form: str = "") -> str:
    """A count with its noun: 1 image, 1,930 images, 2 boxes."""
    return f"{count:,} {noun if count == 1 else plural_form or noun + 's'}"


def span(first: int, last: int, noun: str = "step") -> str:
    """Consecutively numbered things: step 21, steps 21 to 1,025."""
    return f"{noun} {first:,}" if first == last else f"{noun}s {first:,} to {last:,}"


def command(name: str) -> str:
    """How a command of this environment is typed here: its name where PATH finds it, else its path."""
    ours = Path(sys.executable).parent / name
    found = shutil.which(name)
    if found is not None and (not ours.exists() or Path(found).samefile(ours)):
        return name
    return short_path(ours)


def short_path(path: Path) -> str:
    """A path as one would type it: relative to the working directory where it lies below it, else whole."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
