"""One word that is offered."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Word:
    """A word that may stand at the cursor; one that ends with `=`, `/` or `.` is to be written on.

    Attributes:
        text: the whole word.
        meaning: what is shown beside it, where the shell can.
    """

    text: str
    meaning: str = ""

    def after(self, lead: str) -> "Word":
        """The same word behind others that belong to it."""
        return Word(lead + self.text, self.meaning)
