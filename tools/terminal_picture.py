"""Draws a terminal's text as an SVG for the README: `make train 2>&1 | python tools/terminal_picture.py OUT.svg`."""

import io
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH = 112


def main() -> int:
    """Reads plain text from standard input and writes the picture; returns 0."""
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    for line in sys.stdin.read().splitlines():
        style = "green" if "best so far" in line else "bold" if line.startswith(("$", "  Done")) else ""
        console.print(Text(line[:WIDTH], style=style))
    # The default template loads its font from the network; a picture in a README must not.
    plain = console.export_svg(title="Paceline", unique_id="paceline")
    kept = [part.split("}", 1)[1] if index else part for index, part in enumerate(plain.split("@font-face"))]
    Path(sys.argv[1]).write_text("".join(kept).replace("Fira Code", "monospace"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
