"""What an entry of the catalogue is."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Signature:
    """Words by which an error is known, and what to say of it.

    Attributes:
        name: for tests and for programs that read failure.json.
        words: a regular expression, found anywhere in `type: message` of an exception, or in the end of a log.
        meaning: one sentence without a full stop; `{name}` stands for the expression's group of that name.
        advice: what to try in any program, likewise.
        ours: what to try where our trainer ran; empty: the same. `{smaller}` stands for a smaller micro-batch.
        may_pass: whether a new attempt may go well although nothing was changed.
        native: whether it is looked for in a log whose process left no exception behind.
    """

    name: str
    words: str
    meaning: str
    advice: str
    ours: str = ""
    may_pass: bool = False
    native: bool = False

    def find(self, text: str) -> dict[str, str] | None:
        """The named groups where the words are found, else None."""
        found = re.search(self.words, text)
        return None if found is None else {key: value or "" for key, value in found.groupdict().items()}
