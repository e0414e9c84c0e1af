"""What the ranks of an attempt have told of their errors, for somebody who looks: each error once, the cause first."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from launcher.ending.folding import spans
from trainer.rundir import RunDir, error_beside, is_number, read_json


@dataclass(frozen=True, slots=True)
class Told:
    """An error, and the ranks that ended with it.

    Attributes:
        ranks: in order.
        host: of the first to tell it.
        time: UNIX seconds at which that did; None where nobody knows.
        type: the exception, or the signal.
        message: its message.
        traceback: of the first to tell it; empty for what dies without one.
    """

    ranks: tuple[int, ...]
    host: str
    time: float | None
    type: str
    message: str
    traceback: str

    def lines(self) -> list[str]:
        """The error for a person."""
        when = "" if self.time is None else f", {time.strftime('%H:%M:%S', time.localtime(self.time))}"
        first = ": ".join(part for part in (self.type, self.message.strip()) if part)
        heading = f"{spans(self.ranks)}, {self.host}{when}"
        return [heading, *(f"  {line}" for line in (self.traceback.strip() or first).splitlines())]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def errors(run: RunDir, attempt: int) -> list[Told]:
    """The errors of an attempt: the one that the verdict names, then the others as they came."""
    rows = _rows(run, attempt)
    first = run.read_failure(attempt)
    if first and isinstance(first.get("rank"), int):
        # What was killed has no word of its own; of the others the verdict may know more.
        rows[first["rank"]] = {**rows.get(first["rank"], {}), **first}
    kinds: dict[tuple[str, str, str], list[int]] = {}
    for rank, row in sorted(
        rows.items(), key=lambda item: (item[0] != first.get("rank"), _time(item[1]) or 0, item[0])
    ):
        kinds.setdefault((_text(row, "type"), _text(row, "message"), _text(row, "place")), []).append(rank)
    return [_told(ranks, rows[ranks[0]]) for ranks in kinds.values()]


def _rows(run: RunDir, attempt: int) -> dict[int, dict[str, Any]]:
    """What each rank has left beside its log."""
    folder = run.log(attempt, 0).parent
    numbers = (path.name.removeprefix("rank-").removesuffix(".error.json") for path in folder.glob("rank-*.error.json"))
    found = {
        int(number): read_json(error_beside(run.log(attempt, int(number)))) for number in numbers if is_number(number)
    }
    return {rank: row for rank, row in found.items() if row}


def _told(ranks: Sequence[int], row: dict[str, Any]) -> Told:
    type_, message = _text(row, "type"), _text(row, "message")
    return Told(tuple(sorted(ranks)), _text(row, "host"), _time(row), type_, message, _text(row, "traceback"))


def _text(row: dict[str, Any], name: str) -> str:
    return str(row.get(name) or "")


def _time(row: dict[str, Any]) -> float | None:
    value = row.get("time")
    return float(value) if isinstance(value, (int, float)) else None
