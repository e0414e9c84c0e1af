"""Errors for people: what is wrong and where, then the exact override or command that mends it."""

from collections.abc import Mapping, Sequence
from typing import Any

STOPPED = 75
"""Exit code of a worker, and of a job, that stopped on request with a checkpoint written (EX_TEMPFAIL)."""

Instead = tuple[Sequence[str], Sequence[str]]
"""What to write for what, where an error knows it."""


class PacelineError(Exception):
    """A problem that a user can understand and mend; printed as a few lines, without a traceback.

    Args:
        problem: what is wrong and where, one sentence without a full stop.
        fix: the exact override or command that mends it, or the thing to look at.
        details: what a program would want to know, for failure.json; plain values.
        instead: words of the command line (or a key before its `=`), and what to write for them; no words, where
            something is to be added.
    """

    exit_code = 1

    def __init__(
        self,
        problem: str,
        fix: str = "",
        *,
        details: Mapping[str, Any] | None = None,
        instead: Instead | None = None,
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.fix = fix
        self.details = dict(details or {})
        self.instead = instead

    @property
    def added(self) -> str:
        """The override with which the same command works; empty where there is none."""
        return self.instead[1][0] if self.instead and not self.instead[0] else ""

    def mended(self, words: Sequence[str]) -> list[str] | None:
        """A command line, in which the problem was found, as it works; None where the error does not know."""
        if self.instead is None:
            return None
        old, new = map(list, self.instead)
        own = words.index("--") if "--" in words else len(words)
        if not old:
            return [*words[:own], *new, *words[own:]]
        for at in range(own):
            if list(words[at : at + len(old)]) == old:
                return [*words[:at], *new, *words[at + len(old) :]]
            if len(old) == len(new) == 1 and words[at].lstrip("+").startswith(f"{old[0]}="):
                return [*words[:at], f"{new[0]}={words[at].partition('=')[2]}", *words[at + 1 :]]
        return None

    def __str__(self) -> str:
        return f"{self.problem}\n  {self.fix}" if self.fix else self.problem


class ConfigError(PacelineError):
    """The configuration or the arguments are wrong; nothing was started (exit code 2)."""

    exit_code = 2


class SeveralErrors(ConfigError):
    """Several things are wrong at once; each is told on a line of its own."""

    def __init__(self, errors: Sequence[ConfigError]) -> None:
        told = "\n  ".join(f"{error.problem}: {error.fix}" for error in errors)
        super().__init__(f"{len(errors)} problems in the configuration\n  {told}")
        self._errors = errors

    def mended(self, words: Sequence[str]) -> list[str] | None:
        """As of a single error; None where one of them does not know."""
        mended: list[str] | None = list(words)
        for error in self._errors:
            mended = error.mended(mended) if mended is not None else None
        return mended


class InUseError(ConfigError):
    """Another job has the run: whatever lies in its directory is that job's."""


class UnfitError(PacelineError):
    """The environment is unfit: no such GPU, data that cannot be read, no space (exit code 3)."""

    exit_code = 3


class TrainingError(PacelineError):
    """The training itself failed (exit code 1)."""

    exit_code = 1
