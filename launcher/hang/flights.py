"""NCCL's flight recorder: which collectives each rank has begun, kept when a job hangs, and compared.

torch writes a rank's record when a collective times out or, here, when its pipe is written to: by a thread in C++, so
it works although Python is stuck. torch's own `torch.distributed.flight_recorder` reads the same files, but executes
whatever they say; here they are data and nothing else.
"""

import os
import pickle
import shutil
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from launcher.ending.folding import spans
from trainer.trouble.frames import is_theirs

_DUMP = "TORCH_FR_DUMP_TEMP_FILE"
_PIPE = "TORCH_NCCL_DEBUG_INFO_PIPE_FILE"
_WRITTEN_LIMIT_S = 5.0


class FlightRecorder:
    """Where the workers of one attempt keep their records, and how they are told to.

    Args:
        folder: gets the records, `flight-rank-R`.
    """

    def __init__(self, folder: Path) -> None:
        self._pipes = Path(tempfile.mkdtemp(prefix="paceline-"))
        # What the user has set stays.
        self._stem = {_DUMP: _stem(folder), _PIPE: os.environ.get(_PIPE, str(self._pipes / "rank-"))}

    def join(self) -> None:
        """Makes this process one that keeps a record; called in the worker, before NCCL is there."""
        os.environ.update(self._stem)

    def dump(self, ranks: Collection[int]) -> None:
        """Has the records of ranks written, as far as they can be had within seconds; see `kept`."""
        files = {rank: Path(f"{self._stem[_DUMP]}{rank}") for rank in ranks}
        # One of a collective that has timed out is there already, and tells more.
        asked = [rank for rank in ranks if not files[rank].exists() and self._ask(rank)]
        deadline = time.monotonic() + _WRITTEN_LIMIT_S
        sizes: dict[int, int] = {}
        while time.monotonic() < deadline:
            before, sizes = sizes, {rank: files[rank].stat().st_size for rank in asked if files[rank].exists()}
            if len(sizes) == len(asked) and sizes == before:
                break
            time.sleep(0.1)

    def close(self) -> None:
        """Removes the pipes; the records stay."""
        shutil.rmtree(self._pipes, ignore_errors=True)

    def _ask(self, rank: int) -> bool:
        with suppress(OSError):
            # Without a reader there is no recorder, and this raises at once.
            pipe = os.open(f"{self._stem[_PIPE]}{rank}.pipe", os.O_WRONLY | os.O_NONBLOCK)
            try:
                return os.write(pipe, b"1\n") > 0
            finally:
                os.close(pipe)
        return False


@dataclass(frozen=True, slots=True)
class Collective:
    """A collective that a rank has begun.

    Attributes:
        group: its process group.
        number: counts the group's collectives.
        operation: its name with the sizes that it was called with.
        place: `file:line in function`, the innermost in the user's own code.
    """

    group: str
    number: int
    operation: str
    place: str


def kept(folder: Path, ranks: Collection[int]) -> dict[int, list[Collective]]:
    """The records of ranks, of those that have one.

    Args:
        folder: as of the `FlightRecorder`.
        ranks: of any machine.
    """
    return {rank: record for rank in ranks if (record := read(Path(f"{_stem(folder)}{rank}")))}


def read(file: Path) -> list[Collective]:
    """A rank's record, in order; empty where there is none that can be read."""
    try:
        with file.open("rb") as stream:
            entries = _Plain(stream).load()["entries"]
            return [_collective(entry) for entry in entries if not entry["is_p2p"]]
    except (OSError, pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError):
        return []


def compare(records: Mapping[int, Sequence[Collective]]) -> tuple[list[int], str]:
    """(ranks that have not begun a collective that others wait in, what is known of it in words).

    Without such ranks: the first collective that ranks have called differently, in words; empty without one.
    """
    for group in dict.fromkeys(entry.group for record in records.values() for entry in record):
        calls = {rank: {one.number: one for one in record if one.group == group} for rank, record in records.items()}
        calls = {rank: numbered for rank, numbered in calls.items() if numbered}
        last = {rank: max(numbered) for rank, numbered in calls.items()}
        behind = [rank for rank, number in last.items() if number < max(last.values())]
        for number in sorted(set().union(*calls.values())):
            same: dict[str, list[int]] = {}
            for rank, numbered in calls.items():
                if number in numbered:
                    same.setdefault(numbered[number].operation, []).append(rank)
            if len(same) > 1:
                said = "; ".join(
                    f"{spans(ranks)}: {operation} at {calls[ranks[0]][number].place}"
                    for operation, ranks in same.items()
                )
                return [], f"collective {number} of group {group} differs: {said}"
        if behind:
            number = min(last[rank] for rank in behind) + 1
            rank = next(rank for rank, numbered in calls.items() if number in numbered)
            missed, earlier = calls[rank][number], calls[behind[0]][last[behind[0]]]
            return behind, (
                f"{spans(behind)} did not begin collective {number} of group {group}, {missed.operation} at "
                f"{missed.place}; the last before it: {earlier.operation} at {earlier.place}"
            )
    return [], ""


class _Plain(pickle.Unpickler):
    """Reads numbers, texts, lists and dicts, as the recorder writes them; what would be executed is refused."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"{module}.{name} is no plain data")


def _stem(folder: Path) -> str:
    return os.environ.get(_DUMP, str(folder / "flight-rank-"))


def _collective(entry: dict[str, Any]) -> Collective:
    own = next((frame for frame in entry["frames"] if is_theirs(frame["filename"])), None)
    frame = own or next(iter(entry["frames"]), None)
    return Collective(
        group=str(entry["process_group"][0]),
        number=int(entry["collective_seq_id"]),
        operation=f"{entry['profiling_name']}{entry['input_sizes']}",
        place=f"{frame['filename']}:{frame['line']} in {frame['name']}" if frame else "an unknown place",
    )
