"""What a check has found, and the running of checks."""

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

T = TypeVar("T")

PASS, WARN, FAIL = "pass", "warn", "fail"
LIMIT_S = 30.0
_NAME_WIDTH = 14
"""Seconds that a check may take: storage that hangs must not hang the doctor."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check has found.

    Attributes:
        name: what was looked at, a word or two.
        state: pass, warn (it works, but) or fail (it will cost you a run).
        message: what was found, with units.
        fix: the exact command, option or override that mends it; empty where all is well.
    """

    name: str
    state: str
    message: str
    fix: str = ""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


Check = Callable[[T], Finding]


def examine(checks: Iterable[Check[T]], subject: T, *, limit_s: float = LIMIT_S) -> list[Finding]:
    """Runs each check on a subject; one that raises or hangs becomes a finding of its own."""
    return [_run(check, subject, limit_s) for check in checks]


def lines(findings: Sequence[Finding]) -> list[str]:
    """Findings for a person: a line each, and what to do below it."""
    width = max((_NAME_WIDTH, *(len(finding.name) for finding in findings)))
    shown = []
    for finding in findings:
        shown.append(f"  {finding.state}  {finding.name:<{width}}  {finding.message}")
        if finding.fix and finding.state != PASS:
            shown.append(f"        {'':<{width}}  do: {finding.fix}")
    return shown


def _run(check: Check[T], subject: T, limit_s: float) -> Finding:
    name = check.__name__.replace("_", " ")
    found: list[Finding] = []

    def work() -> None:
        try:
            found.append(check(subject))
        except Exception as error:
            # What the machine refuses to a check it will refuse to a job; anything else is the check's own fault.
            state = FAIL if isinstance(error, OSError) else WARN
            found.append(Finding(name, state, f"could not be checked: {type(error).__name__}: {error}"))

    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    thread.join(limit_s)
    return found[0] if found else Finding(name, FAIL, f"no answer within {limit_s:.0f} s", "see whether the disk hangs")
