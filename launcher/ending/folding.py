"""The errors that followed the first, folded: how many, of what kind, on which ranks. Pure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from launcher.verdict import Exit, is_failure, signal_name
from trainer.trouble import peers

_SHOWN = 3
_WIDTH = 60
_PARTS = 4


@dataclass(frozen=True, slots=True)
class Fold:
    """The same end on several ranks.

    Attributes:
        what: in a few words.
        ranks: in order.
    """

    what: str
    ranks: tuple[int, ...]


def fold(exits: Sequence[Exit], first: Exit) -> list[Fold]:
    """The failures besides the first, most frequent first; what differs in numbers and addresses only is the same."""
    kinds: dict[str, tuple[str, list[int]]] = {}
    for exit in sorted(exits, key=lambda exit: exit.rank):
        if is_failure(exit) and exit.rank != first.rank:
            same = _kind(exit) == _kind(first)
            _, ranks = kinds.setdefault("" if same else _kind(exit), ("the same" if same else _words(exit), []))
            ranks.append(exit.rank)
    folds = [Fold(words, tuple(ranks)) for words, ranks in kinds.values()]
    return sorted(folds, key=lambda fold: (-len(fold.ranks), fold.ranks))


def line(folds: Sequence[Fold]) -> str:
    """`+ 7 more: 5x connection closed by peer (ranks 1-5), 2x the same (ranks 6, 7)`; empty without any."""
    if not folds:
        return ""
    shown = [f"{len(fold.ranks)}x {fold.what} ({spans(fold.ranks)})" for fold in folds[:_SHOWN]]
    rest = sum(len(fold.ranks) for fold in folds[_SHOWN:])
    more = [f"{rest}x other errors"] if rest else []
    return f"+ {sum(len(fold.ranks) for fold in folds)} more: {', '.join([*shown, *more])}"


def spans(ranks: Sequence[int]) -> str:
    """`rank 3`, `ranks 1-5, 7`, and where they are too scattered for a line `ranks 0, 2, 4, 6, ...`; given in order."""
    parts: list[list[int]] = []
    for rank in ranks:
        if parts and rank == parts[-1][-1] + 1:
            parts[-1].append(rank)
        else:
            parts.append([rank])
    words = [f"{part[0]}" if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts]
    shown = [*words[:_PARTS], "..."] if len(words) > _PARTS else words
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(shown)}"


def _kind(exit: Exit) -> str:
    return re.sub(r"0x[0-9a-f]+|\d+", "#", f"{exit.code < 0} {_words(exit)}")


def _words(exit: Exit) -> str:
    if exit.code < 0:
        return f"killed by {signal_name(-exit.code)}"
    if sign := peers.sign(exit.message):
        return sign
    if not exit.type:
        return exit.what
    text = ": ".join([exit.type, *exit.message.strip().splitlines()[:1]])
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 3].rstrip()}..."
