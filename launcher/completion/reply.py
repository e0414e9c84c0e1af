"""The answer to a shell that asks what may stand at the cursor; each shell tells that in its own way."""

import re
import shlex
from collections.abc import Sequence

from launcher.completion.candidates import candidates

_SPECIAL = re.compile(r"([^\w@%+=:,./~-])")
_SENTENCE = re.compile(r"(?<!\.)\.(?:\s|$)")
_WIDTH = 70


def reply(shell: str, told: Sequence[str]) -> list[str]:
    """The lines of the answer: a word each, and for shells that show it a tab and its meaning.

    Args:
        shell: bash, zsh or fish.
        told: of bash, the command line up to the cursor, and the part of its last word that bash would replace, which
            begins after a `=`; of the others the words up to the cursor, without the command.
    """
    if shell == "bash":
        return _for_bash(*told)
    *before, current = told or [""]
    # zsh takes away quotes itself, but one that is still open.
    word = current.lstrip("\"'") if shell == "zsh" else _read(current)[-1]
    found = candidates([*before, word])
    return [f"{word.text}\t{_short(word.meaning)}" if word.meaning else word.text for word in found]


def _for_bash(line: str, replaced: str) -> list[str]:
    words = _read(line)
    kept = len(words[-1]) - len(_read(replaced)[-1])
    found = [word.text[kept:] for word in candidates(words[1:])]
    return found if _is_quoted(line) else [_SPECIAL.sub(r"\\\1", text) for text in found]


def _read(text: str) -> list[str]:
    """The words of a line that may end within quotes, or with a blank: then its last word is empty."""
    for end in ("", '"', "'"):
        try:
            words = shlex.split(text + end)
        except ValueError:
            continue
        begins_anew = not end and (not text or text[-1].isspace()) and not text.endswith("\\ ")
        return [*words, ""] if begins_anew or not words else words
    # It ends with a backslash.
    return _read(text[:-1])


def _is_quoted(line: str) -> bool:
    try:
        shlex.split(line)
    except ValueError:
        return not line.endswith("\\")
    return False


def _short(meaning: str) -> str:
    """The first sentence, in a few words."""
    text = " ".join(_SENTENCE.split(meaning)[0].split())
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 3].rstrip()}..."
