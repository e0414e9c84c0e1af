"""Which attempt of a run has trained which of its steps, and with what; what the run has gone back on. No torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.config.continuation import differences, flatten
from trainer.config.plain import from_dict, read_config, to_dict
from trainer.config.schema import Config
from trainer.errors import UnfitError
from trainer.run.launches import row_of
from trainer.run.rows import read_json_lines
from trainer.rundir import RunDir, read_json

MOVABLE = ("data.root", "data.workers", "data.prefetch", "data.timeout_s", "distributed.timeout_s")
"""Keys that may differ from an attempt's without a bit of what it computed: they belong to place and time."""

_ROUNDING = ("micro_batch_size", "device", "distributed.bucket_mb", "distributed.find_unused_parameters")
_FULL_RANGE = ("fp32", "bf16")


@dataclass(frozen=True, slots=True)
class Setup:
    """What an attempt computed with.

    Attributes:
        attempt: its number, from 0.
        config: its configuration.
        workers: how many.
        seen: what each of them found on its machine, as in env.json; empty where that is not recorded.
        code: the checkout, as in job.json; None outside of one.
        packages: the installed distributions and their versions.
        python: the interpreter's version; empty where that is not recorded.
    """

    attempt: int
    config: Config
    workers: int
    seen: tuple[Mapping[str, Any], ...]
    code: Mapping[str, Any] | None
    packages: Mapping[str, str]
    python: str = ""

    @property
    def threads(self) -> int | None:
        """Those of a worker; None where that is not recorded."""
        return self.seen[0].get("threads") if self.seen else None

    @property
    def gpus(self) -> tuple[str, ...]:
        """The kinds of its GPUs."""
        return tuple(sorted({worker["gpu"]["name"] for worker in self.seen if "gpu" in worker}))

    def differences(self, other: "Setup") -> dict[str, tuple[Any, Any]]:
        """What makes the same steps come out otherwise, if only in their rounding: name -> (here, there)."""
        found = differences(self.config, other.config)
        mine, theirs = flatten(self.config), flatten(other.config)
        found |= {name: (mine[name], theirs[name]) for name in _ROUNDING if mine[name] != theirs[name]}
        policies = self.config.on_nonfinite, other.config.on_nonfinite
        # In fp16 the schedule depends on it; else it does nothing in finite steps, and `skip` alone goes past others.
        if policies[0] != policies[1] and ("skip" in policies or self.config.precision not in _FULL_RANGE):
            found["on_nonfinite"] = policies
        if self.workers != other.workers:
            found["workers"] = (self.workers, other.workers)
        if self.seen and other.seen:
            sides: tuple[tuple[str, Callable[[Setup], Any]], ...] = (("GPU", lambda s: s.gpus),)
            if not self.gpus:
                sides = (*sides, ("threads", lambda s: s.threads))
            found |= {name: (pick(self), pick(other)) for name, pick in sides if pick(self) != pick(other)}
        return found


@dataclass(frozen=True, slots=True)
class Stretch:
    """Steps that an attempt trained one after the other.

    Attributes:
        after: the step after which it began.
        attempt: which attempt; None where the record does not say.
    """

    after: int
    attempt: int | None


@dataclass(frozen=True, slots=True)
class Rollback:
    """Steps that the run has passed over since it was taken back.

    Attributes:
        first: the first of them.
        last: the last, in which the trouble was.
        what: what was not finite: `loss`, `gradients` or `weights`.
        to_step: the step after which the run went on.
    """

    first: int
    last: int
    what: str
    to_step: int


@dataclass(frozen=True, slots=True)
class Course:
    """What has become of a run, as its events tell: what was trained again counts as it was the last time.

    Attributes:
        stretches: the attempts' shares in its steps, ascending.
        rollbacks: those of which its checkpoints know.
        troubles: the events of numbers that are not finite, and of replicas that differ, with their `attempt`; the
            latter also where the steps were trained again since.
    """

    stretches: tuple[Stretch, ...]
    rollbacks: tuple[Rollback, ...]
    troubles: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Span:
    """Steps around one, all of them trained with the same set-up.

    Attributes:
        setup: of the attempt that trained that one.
        after: the step after which they begin.
        until: the last of them; None: the last of the run.
    """

    setup: Setup
    after: int
    until: int | None


def course_of(run: RunDir) -> Course:
    """What has become of a run."""
    stretches: list[Stretch] = []
    rollbacks: list[Rollback] = []
    troubles: list[dict[str, Any]] = []
    # Step of a checkpoint -> how many of the rollbacks it knows of.
    known: dict[int, int] = {}
    for row in read_json_lines(run.events):
        kind, attempt = row.get("event"), stretches[-1].attempt if stretches else None
        if kind == "checkpoint":
            known[row["step"]] = len(rollbacks)
        elif kind in ("nonfinite", "replicas_differ"):
            troubles.append({**row, "attempt": attempt})
        if kind == "start":
            after, attempt = row["step"], row.get("attempt")
            before = [rollback for rollback in rollbacks if rollback.to_step < after]
            rollbacks = rollbacks[: known[after]] if after in known else before
        elif kind == "rollback":
            after, (first, last) = row["to_step"], row["left_out"]
            rollbacks.append(Rollback(first, last, troubles[-1].get("what", "loss") if troubles else "loss", after))
        else:
            continue
        stretches = [*(stretch for stretch in stretches if stretch.after < after), Stretch(after, attempt)]
        troubles = [row for row in troubles if row["step"] <= after or row["event"] == "replicas_differ"]
        known = {step: count for step, count in known.items() if step <= after}
    if not stretches or stretches[0].after:
        stretches.insert(0, Stretch(0, None))
    return Course(tuple(stretches), tuple(rollbacks), tuple(troubles))


def span_of(run: RunDir, step: int) -> Span:
    """The steps that were trained with the same set-up as a step, counted from 1, without a gap.

    Raises:
        UnfitError: the record does not say which attempt has trained it, and they differ.
    """
    parts = course_of(run).stretches
    here = max(index for index, stretch in enumerate(parts) if stretch.after < step)
    setup = setup_of(run, parts[here].attempt)

    def same(index: int) -> bool:
        return not setup.differences(setup_of(run, parts[index].attempt))

    low, high = here, here + 1
    while low and same(low - 1):
        low -= 1
    while high < len(parts) and same(high):
        high += 1
    return Span(setup, parts[low].after, parts[high].after if high < len(parts) else None)


def setup_at(run: RunDir, step: int) -> Setup:
    """What the attempt computed with that was the last to train a step, counted from 1.

    Where the record does not say which one that was, the latest.
    """
    attempts = (part.attempt for part in reversed(course_of(run).stretches) if part.after < step)
    attempt, rows = next(attempts, None), _begun(run)
    return _setup(run, rows, rows[-1].get("attempt", 0) if attempt is None else attempt)


def setup_of(run: RunDir, attempt: int | None) -> Setup:
    """What an attempt computed with.

    Args:
        run: the run.
        attempt: its number, or that of a restart by its launcher; None where that is not known.

    Raises:
        UnfitError: it is not known, and the attempts differ.
    """
    rows = _begun(run)
    if attempt is not None:
        return _setup(run, rows, attempt)
    *others, latest = [_setup(run, rows, row.get("attempt", 0)) for row in rows]
    for other in others:
        if found := latest.differences(other):
            raise UnfitError(
                f"{run.events} does not say which attempt trained which steps, and they differ in {', '.join(found)}",
                "only an attempt of a version that records it can be told from others",
            )
    return latest


def latest_config(run: RunDir) -> Config:
    """The configuration of the last attempt that began: the run's, with the keys that do not matter as they are now.

    Where the record does not say which attempts began, that of the first.
    """
    return _config(run, _begun(run)[-1 if _starts(run) else 0].get("attempt", 0))


def as_of_now(run: RunDir, config: Config) -> Config:
    """An attempt's configuration, with the last one's place of the data and what else belongs to place and time."""
    values, latest = to_dict(config), to_dict(latest_config(run))
    for key in MOVABLE:
        section, _, name = key.partition(".")
        values[section][name] = latest[section][name]
    return from_dict(values)


def _starts(run: RunDir) -> list[int]:
    """The attempts that began to train, as far as the events number them."""
    starts = (row.get("attempt") for row in read_json_lines(run.events) if row.get("event") == "start")
    return [attempt for attempt in starts if attempt is not None]


def _begun(run: RunDir) -> list[dict[str, Any]]:
    """The rows of the attempts that began, or may have: a launcher writes its row before its attempt is agreed to.

    Of those before the first that the events number, and of all where they number none, that cannot be told.
    """
    rows, starts = run.launches(), _starts(run)
    if not starts:
        return rows
    begun = [row_of(rows, attempt) for attempt in starts]
    return [row for row in rows if row in begun or row.get("attempt", 0) < min(starts)]


def _setup(run: RunDir, rows: list[dict[str, Any]], attempt: int) -> Setup:
    row = row_of(rows, attempt)
    seen = read_json(run.attempt_environment(attempt)).get("workers", [])
    if not seen and row is rows[-1]:
        seen = read_json(run.environment).get("workers", [])
    return Setup(
        attempt=attempt,
        config=_config(run, row.get("attempt", 0)),
        workers=len(seen) or int(row.get("world_size", 1)),
        seen=tuple(seen),
        code=row.get("code"),
        packages=row.get("packages") or read_json(run.job).get("packages", {}),
        python=row.get("python", ""),
    )


def _config(run: RunDir, attempt: int) -> Config:
    own = run.attempt_config(attempt)
    return read_config(own if own.exists() else run.config)
