"""What a check has found, and the running of checks."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from launcher.doctor.apart import NoAnswer, ask
from trainer.errors import PacelineError

T = TypeVar("T")

STATES = PASS, WARN, FAIL = "pass", "warn", "fail"
_LIMIT_S = 10.0
_NAME_WIDTH = 14


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


@dataclass(frozen=True, slots=True)
class Check(Generic[T]):
    """Something to look at.

    Attributes:
        name: what is looked at, a word or two; its finding's name, which programs rely on.
        look: looks at it; may raise, hang or crash.
        limit_s: seconds that it may take.
        hangs: what to do when it takes longer.
    """

    name: str
    look: Callable[[T], Finding]
    limit_s: float
    hangs: str

    def __call__(self, subject: T) -> Finding:
        """Looks, here and now."""
        return self.look(subject)


def check(
    name: str, *, limit_s: float = _LIMIT_S, hangs: str = "`dmesg | tail` may say what hangs"
) -> Callable[[Callable[[T], Finding]], Check[T]]:
    """Makes a check of a function."""
    return lambda look: Check(name, look, limit_s, hangs)


def examine(checks: Iterable[Check[T]], subject: T) -> list[Finding]:
    """Runs each check on a subject; one that raises, hangs or crashes becomes a finding of its own."""
    return [_run(check, subject) for check in checks]


def worst(findings: Sequence[Finding]) -> str:
    """The worst state among findings."""
    states = {finding.state for finding in findings}
    return next((state for state in (FAIL, WARN) if state in states), PASS)


def lines(findings: Sequence[Finding]) -> list[str]:
    """Findings for a person: a line each, and what to do below it."""
    width = max((_NAME_WIDTH, *(len(finding.name) for finding in findings)))
    shown = []
    for finding in findings:
        shown.append(f"  {finding.state}  {finding.name:<{width}}  {finding.message}")
        if finding.fix and finding.state != PASS:
            shown.append(f"        {'':<{width}}  do: {finding.fix}")
    return shown


def _run(check: Check[T], subject: T) -> Finding:
    def answer() -> dict[str, Any]:
        try:
            return check(subject).to_json()
        except PacelineError as error:
            return Finding(check.name, FAIL, error.problem, error.fix).to_json()
        except OSError as error:
            # What the machine refuses to a check it will refuse to a job.
            return Finding(check.name, FAIL, f"could not be checked: {error}", _refused(error)).to_json()
        except Exception as error:
            message = f"could not be checked: {type(error).__name__}: {error}"
            return Finding(check.name, WARN, message, "this is the doctor's own fault: please report it").to_json()

    try:
        return Finding(**ask(answer, check.limit_s))
    except NoAnswer as error:
        return Finding(check.name, FAIL, str(error), check.hangs)


def _refused(error: OSError) -> str:
    return (
        f"see `ls -ld {error.filename}` and `df {error.filename}`" if error.filename else "`dmesg | tail` may say why"
    )
