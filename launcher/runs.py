"""Runs as their directories show them, from any terminal: what state they are in, where, and how far."""

import argparse
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher import records
from trainer.errors import ConfigError, UnfitError
from trainer.run import runname
from trainer.run.launches import row_of
from trainer.rundir import RELEASED, RunDir, read_json
from trainer.wording import command

STARTING_S = 600.0
"""A job that has not said anything for this long after its start is lost."""

SILENT_S = 180.0
"""So is one on another machine, whose lock may not be seen from here, without a sign of life for this long."""


@dataclass(frozen=True, slots=True)
class RunView:
    """A run as it stands now.

    Attributes:
        run: its directory.
        state: pending, running, finished, failed, stopped, preempted, or lost: it says it runs, but nobody is there;
            unreadable where its files cannot be read.
        step: optimizer steps done; None while unknown.
        total_steps: of the whole run; None while unknown.
        saved_step: of the newest checkpoint, from which the run would go on; None without one.
        accuracy: validation accuracy (0-1), the best of a run that has ended or else the latest; None without one.
        is_best: whether it is the best one.
        images_per_second: of all workers; None unless running.
        gpu_percent: mean utilisation; None unless running on GPUs.
        eta_s: seconds to the end from now; None unless running.
        attempt: the latest, from 0.
        host: where that was started.
        job_id: the scheduler's; None without one.
        updated: UNIX seconds of the last sign of life.
        failure: the content of failure.json where the state is failed, else empty.
        reason: who asked it to stop and how it did, or why it failed, where the launcher knows; else empty.
        exit_code: of its last job, where that has ended and told it; else None.
        event: the last row of events.jsonl; empty without one.
    """

    run: RunDir
    state: str
    step: int | None
    total_steps: int | None
    saved_step: int | None
    accuracy: float | None
    is_best: bool
    images_per_second: float | None
    gpu_percent: float | None
    eta_s: float | None
    attempt: int
    host: str
    job_id: str | None
    updated: float
    failure: dict[str, Any]
    reason: str
    exit_code: int | None
    event: dict[str, Any]

    @property
    def is_live(self) -> bool:
        """Whether there is, or will be, a job."""
        return self.state in ("pending", "running")

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        names = [name for name in self.__slots__ if name not in ("run", "failure")]
        shown = {name: getattr(self, name) for name in names}
        failure = {name: self.failure[name] for name in ("rank", "type", "message") if name in self.failure}
        return {"name": self.run.name, "directory": str(self.run.path), **shown, "failure": failure or None}


def find_all(directory: Path) -> list[RunDir]:
    """The runs in a directory, the one with the latest sign of life first.

    Raises:
        ConfigError: there is no such directory.
    """
    try:
        paths = [path for path in directory.iterdir() if runname.is_run(path)]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(f"no directory {directory}", "--dir DIRECTORY says where the runs are") from error
    except OSError as error:
        raise UnfitError(f"cannot read {directory}: {error.strerror or error}", "check its permissions") from error
    return sorted(map(RunDir, paths), key=_last_sign, reverse=True)


def chosen(verb: str, options: argparse.Namespace, *, count: int = 1) -> list[RunDir]:
    """The runs that a verb's command line names, by name in `--dir` or by directory.

    Args:
        verb: the verb.
        options: what `Parser` has read, `--dir` among it.
        count: how many runs the verb takes.

    Raises:
        ConfigError: it names more or fewer, or there is none of a name.
    """
    if len(options.words) != count:
        example = "RUN" if count == 1 else " ".join(f"RUN{number}" for number in range(1, count + 1))
        raise ConfigError(
            f"{verb} takes {'one run' if count == 1 else f'{count} runs'}, not {len(options.words)}",
            f"{command('paceline')} {verb} {example}; {command('paceline')} status lists them",
        )
    return [RunDir(runname.find(word, Path(options.dir or "runs"))) for word in options.words]


def is_script(run: RunDir) -> bool:
    """Whether a run is one of a program behind `--`, which keeps no checkpoints of ours."""
    return "--" in records.first_argv(run)


def is_launched(run: RunDir) -> bool:
    """Whether the latest launch of a run was by `paceline run`, which conducts its workers."""
    return records.argv(records.launches(run)[-1])[:2] == ["paceline", "run"]


def again(run: RunDir) -> list[str] | None:
    """The words behind `paceline run` that go on with a run as it was last trained; None where another way began it."""
    words = records.argv(_launch(run, records.status(run), held=run.is_held()))
    if words[:2] != ["paceline", "run"]:
        return None
    own = words.index("--") if "--" in words else len(words)
    # Whether it keeps a terminal is asked anew each time.
    given = [word for word in words[2:own] if word != "--detach"]
    return [*runname.continuing(given, run.name), *words[own:]]


def again_by_trainer(run: RunDir) -> list[str] | None:
    """The overrides that go on with a run that `python -m trainer` began; None where another way began it."""
    program, *words = records.first_argv(run) or [""]
    if Path(program).parts[-2:] != ("trainer", "__main__.py") or any(word.startswith("-") for word in words):
        return None
    return runname.continuing(words, run.name)


def said(view: RunView) -> Path | None:
    """What the latest job of a run would have shown on a terminal, if it had none."""
    first = row_of(records.launches(view.run), view.attempt).get("attempt", 0)
    path = view.run.terminal_log(first)
    return path if path.exists() else None


def look(run: RunDir, *, now: float | None = None) -> RunView:
    """A run as it stands now, from its files and its lock alone; one that cannot be read is told as such."""
    now = time.time() if now is None else now
    try:
        return _look(run, now)
    except OSError as error:
        return _unreadable(run, f"{error.strerror or error} ({error.filename or run.path})")


def _look(run: RunDir, now: float) -> RunView:
    status, held = records.status(run), run.is_held()
    launched = _launch(run, status, held=held)
    attempt = _last_restart(run, max(int(status.get("attempt") or 0), int(launched.get("attempt") or 0)))
    failure = records.failure(run, attempt)
    # The holder of a run renews its record, also in an evaluation of an hour.
    updated = max(float(status.get("time") or 0), float(launched.get("time") or 0), _beat(run))
    state = "running" if held else _state(run, status, launched, failure, now - updated)
    running, saved = state == "running", records.newest_checkpoint(run)
    ended = state not in ("pending", "running")
    best = status.get("best_accuracy") if ended else None
    # What was killed has said its last word before its last checkpoint.
    steps = [step for step in (status.get("step"), saved if ended else None) if step is not None]
    eta = status.get("eta_s") if running else None
    return RunView(
        run=run,
        state=state,
        step=max(steps, default=None),
        total_steps=status.get("total_steps"),
        saved_step=saved,
        accuracy=best or records.latest(run.metrics, "val/accuracy"),
        is_best=bool(best),
        images_per_second=status.get("images_per_second") if running else None,
        gpu_percent=status.get("gpu_percent") if running else None,
        eta_s=None if eta is None else max(0.0, float(eta) - (now - float(status.get("time", now)))),
        attempt=attempt,
        host=str(launched.get("host", "")),
        job_id=launched.get("job_id"),
        updated=updated,
        failure=failure if state == "failed" else {},
        reason=str(status.get("reason") or "") if state in ("stopped", "failed") else "",
        exit_code=_exit_code(state, status),
        event=records.last_event(run),
    )


def _unreadable(run: RunDir, why: str) -> RunView:
    nothing = dict.fromkeys(records.FIGURES)
    return RunView(
        run=run,
        state="unreadable",
        saved_step=None,
        accuracy=None,
        is_best=False,
        attempt=0,
        host="",
        job_id=None,
        updated=_last_sign(run),
        failure={},
        reason=why,
        exit_code=None,
        event={},
        **nothing,
    )


def _exit_code(state: str, status: dict[str, Any]) -> int | None:
    code = status.get("exit_code", 0 if state == "finished" else None)
    return code if state == status.get("state") and isinstance(code, int) else None


def _launch(run: RunDir, status: dict[str, Any], *, held: bool) -> dict[str, Any]:
    """The launch that a run's status is of, or the latest, where that came after the last word of the status.

    One that found the run taken has its row, too; so while somebody has it who says so in the status, it is that one's.
    """
    rows = records.launches(run)
    is_newer = float(rows[-1].get("time") or 0) >= float(status.get("time") or 0)
    told = held and status.get("state") == "running"
    return rows[-1] if is_newer and not told else row_of(rows, int(status.get("attempt") or 0))


def _last_restart(run: RunDir, attempt: int) -> int:
    """The last attempt in a row of restarts by a launcher: those have logs, but no launch of their own."""
    while run.log(attempt + 1, 0).parent.is_dir() and not run.attempt_job(attempt + 1).exists():
        attempt += 1
    return attempt


def _state(
    run: RunDir, status: dict[str, Any], launched: dict[str, Any], failure: dict[str, Any], silent: float
) -> str:
    """The state of a run that nobody has; between the start of an attempt and its first word it is pending."""
    state = str(status.get("state", "pending"))
    if state in ("running", "pending") and failure:
        # Told by a worker that was not the one to write the state.
        return "failed"
    if state == "running":
        elsewhere = launched.get("host") not in (None, "", socket.gethostname())
        return "running" if elsewhere and silent < SILENT_S else "lost"
    # One that goes on has the run for a while before it says so.
    began_after = float(launched.get("time") or 0) >= float(status.get("time") or 0)
    if state == "pending" or (began_after and state in ("stopped", "preempted", "failed")):
        # Launched, and nothing said yet; a job in a queue is its scheduler's to judge.
        if launched.get("job_id"):
            return "pending"
        if not _is_launching(run, launched):
            # It has come to nothing; what the run was before, it is still.
            return "lost" if state == "pending" else state
        return "pending" if silent < STARTING_S else "lost"
    return state


def _is_launching(run: RunDir, launched: dict[str, Any]) -> bool:
    """Whether the launcher of an attempt that has said nothing yet may still be there."""
    if launched.get("host") != socket.gethostname():
        return True
    # Without locks the clock tells.
    return run.may_be_launching(int(launched.get("attempt") or 0))


def _beat(run: RunDir) -> float:
    """UNIX seconds of the holder's last renewal; 0 where there is none, or it has released the run."""
    return 0.0 if RELEASED in read_json(run.holder) else records.modified(run.holder)


def _last_sign(run: RunDir) -> float:
    return max(records.modified(path) for path in (run.status, run.job, run.config))
