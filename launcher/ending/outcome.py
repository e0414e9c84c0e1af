"""How an attempt ended, as far as one agent, or all of them together, can tell."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from launcher import verdict
from launcher.hang.sighting import Findings
from launcher.verdict import Exit

_CLOCKS_AGREE_S = 0.1


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of an attempt's workers.

    Attributes:
        attempt: its number.
        seconds: how long it lived.
        exits: how the workers ended, with all that is known of it; after a failure without those ended because of it.
        early: global ranks of those that had ended well, with exit code 0 or 75, before another one failed.
        killed: global ranks of those that were asked to stop and had to be ended by force.
        findings: what the watch over hangs has seen, a machine each.
    """

    attempt: int
    seconds: float = 0.0
    exits: tuple[Exit, ...] = ()
    early: tuple[int, ...] = ()
    killed: tuple[int, ...] = ()
    findings: tuple[Findings, ...] = ()

    @property
    def is_failed(self) -> bool:
        """Whether any worker has failed."""
        return verdict.first_failure(self.exits) is not None

    @property
    def judged(self) -> list[Exit]:
        """The exits, with one that came too early for the others as their cause."""
        return verdict.with_early_end(self.exits, self.early)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Outcome":
        """What `to_json` made."""
        return Outcome(
            attempt=values["attempt"],
            seconds=values["seconds"],
            exits=tuple(Exit(**exit) for exit in values["exits"]),
            early=tuple(values["early"]),
            killed=tuple(values["killed"]),
            findings=tuple(map(Findings.from_json, values["findings"])),
        )


def by_our_clock(outcome: Outcome, ahead_s: float) -> Outcome:
    """The outcome with times as this machine's clock had them; clocks that agree within 0.1 s are left alone.

    Args:
        outcome: of another machine.
        ahead_s: how much our clock is ahead of its.
    """
    if abs(ahead_s) < _CLOCKS_AGREE_S:
        return outcome
    exits = (exit if exit.time is None else replace(exit, time=exit.time + ahead_s) for exit in outcome.exits)
    return replace(outcome, exits=tuple(exits))


def merged(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcome of a job from those of its nodes, in any order; there is at least one."""
    return replace(
        outcomes[0],
        seconds=max(outcome.seconds for outcome in outcomes),
        exits=tuple(sorted((exit for outcome in outcomes for exit in outcome.exits), key=lambda exit: exit.rank)),
        early=tuple(sorted(rank for outcome in outcomes for rank in outcome.early)),
        killed=tuple(sorted(rank for outcome in outcomes for rank in outcome.killed)),
        findings=tuple(findings for outcome in outcomes for findings in outcome.findings),
    )
