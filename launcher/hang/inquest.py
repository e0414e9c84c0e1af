"""A hang judged by what the watches of all machines have seen: one cause, and everybody's stacks in one file."""

import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from launcher import verdict
from launcher.ending.outcome import Outcome
from launcher.hang import blame, flights
from launcher.hang.sighting import Sighting
from launcher.hang.stacks import Stacks


def concluded(outcome: Outcome, folder: Path, *, asked: bool) -> Outcome:
    """The outcome with the hang as its cause, if that is what it was.

    Args:
        outcome: of the job.
        folder: has the logs and the flight records of the attempt, and gets `stacks.txt`.
        asked: whether the job was asked to stop, which explains why ranks have ended before others.
    """
    good = [exit for exit in outcome.exits if not verdict.is_failure(exit)]
    seen = {one.rank: one for findings in outcome.findings for one in findings.seen}
    ended = {exit.rank: Sighting(exit.rank, Stacks(""), host=exit.host, ended=exit.code) for exit in good}
    # One that was seen in its last moments gave up, too.
    gave_up = {
        exit.rank: Sighting(exit.rank, Stacks(""), host=exit.host, gave_up=exit.message)
        for exit in outcome.exits
        if exit.is_silence
    }
    every = [one for _, one in sorted({**ended, **seen, **gave_up}.items())]
    times = [findings.silent_s for findings in outcome.findings if findings.silent_s is not None]
    first = verdict.first_failure(outcome.exits)
    if not times:
        # Where ranks were that had to end for another one's failure explains nothing, unless that one waited in vain.
        in_vain = first is not None and (first.is_echo or first.is_silence) and any(one.gave_up for one in every)
        if asked or not in_vain or not blame.culprits(every):
            return outcome
    behind, collectives = flights.compare(flights.kept(folder, list(seen)))
    every = [replace(one, missing=one.rank in behind) for one in every]
    file = folder / "stacks.txt"
    # The verdict must be heard on a full disk, too.
    with suppress(OSError):
        file.write_text("\n".join(part for part in (collectives, blame.report(every)) if part))
    hang = blame.judge(every, max(times, default=None), now=time.time(), stacks=str(file), collectives=collectives)
    return replace(outcome, exits=(*(exit for exit in good if exit.rank != hang.rank), hang))
