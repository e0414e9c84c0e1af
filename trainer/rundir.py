"""The run directory: the one place that spells its file names and writes them atomically.

Standard library only, so that every tool can read a run without importing the trainer.
"""

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer.run.rows import supersede_rows

RELEASED = "released"
"""The key of a holder's record that says that it trains no more, with its value the UNIX time of that."""


class RunDir:
    """The paths of one run, and the ways its small files are written.

    Args:
        path: the directory `<run.dir>/<run.name>`; it need not exist yet.

    Attributes:
        guard: called before a status or a checkpoint is published; raises an OSError in a job that may not do so.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.guard: Callable[[], None] = lambda: None
        self._status_lock = threading.Lock()

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    @property
    def config(self) -> Path:
        """The resolved configuration, as it was asked for."""
        return self.path / "config.yaml"

    @property
    def job(self) -> Path:
        """What was launched: argv, code, host."""
        return self.path / "job.json"

    @property
    def environment(self) -> Path:
        """What was found on each node, by the latest attempt."""
        return self.path / "env.json"

    def attempt_environment(self, attempt: int) -> Path:
        """What an attempt has found."""
        return self.path / "logs" / f"attempt-{attempt}" / "env.json"

    @property
    def status(self) -> Path:
        """State, step, epoch, rate; atomically replaced."""
        return self.path / "status.json"

    @property
    def metrics(self) -> Path:
        """Training and validation metrics, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def steps(self) -> Path:
        """The loss of every step and, for each row of metrics, a digest of the weights; one JSON object a line."""
        return self.path / "steps.jsonl"

    @property
    def monitor(self) -> Path:
        """GPU and host samples, one JSON object a line."""
        return self.path / "monitor.jsonl"

    @property
    def events(self) -> Path:
        """What happened besides training, one JSON object a line."""
        return self.path / "events.jsonl"

    @property
    def failure(self) -> Path:
        """The first error of the latest attempt, if it failed; of an earlier one until the latest has begun."""
        return self.path / "failure.json"

    def attempt_failure(self, attempt: int) -> Path:
        """The first error that a worker of an attempt has told; the launcher may know of an earlier one."""
        return self.path / "logs" / f"attempt-{attempt}" / "failure.json"

    @property
    def summary(self) -> Path:
        """The results of a finished run."""
        return self.path / "summary.json"

    @property
    def evaluation(self) -> Path:
        """The last and the best evaluation, class by class."""
        return self.path / "evaluation.json"

    @property
    def evaluation_lock(self) -> Path:
        """Held for the moment in which evaluation.json is changed."""
        return self.path / ".evaluation.lock"

    @property
    def classes(self) -> Path:
        """The class names in the order of the logits."""
        return self.path / "classes.json"

    @property
    def lock(self) -> Path:
        """Held by the job that trains in this directory."""
        return self.path / ".lock"

    @property
    def holder(self) -> Path:
        """Which job trains in this directory, or did so last; its time is renewed while it lives."""
        return self.path / ".holder.json"

    @property
    def stop(self) -> Path:
        """A file whose existence asks the job to stop; whoever has it removes it."""
        return self.path / "stop"

    @property
    def stop_now(self) -> Path:
        """Likewise, of a job's launcher, not to wait for its workers."""
        return self.path / "stop-now"

    @property
    def skipped_images(self) -> Path:
        """Images that could not be read and were left out, one JSON object a line (may repeat a path)."""
        return self.path / "skipped_images.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint taken after `step` optimizer steps."""
        return self.checkpoints / f"step-{step:08d}"

    def weights(self, name: str) -> Path:
        """A plain state dict; `name` is `last` or `best`."""
        return self.path / "weights" / f"{name}.safetensors"

    def log(self, attempt: int, rank: int) -> Path:
        """The output of one rank in one attempt."""
        return self.path / "logs" / f"attempt-{attempt}" / f"rank-{rank}.log"

    def agent_log(self, attempt: int, node: int) -> Path:
        """What the agent of a node other than the first has to say, from the job's first attempt on."""
        return self.log(attempt, 0).with_name(f"agent-{node}.log")

    def terminal_log(self, attempt: int) -> Path:
        """What a terminal would have shown of a job without one, from the job's first attempt on."""
        return self.log(attempt, 0).with_name("terminal.log")

    @property
    def code_diff(self) -> Path:
        """What the working tree had beyond the commit that job.json names."""
        return self.path / "code.diff"

    def attempt_code_diff(self, attempt: int) -> Path:
        """The same of an attempt whose working tree was another than the first's."""
        return self.path / "logs" / f"attempt-{attempt}" / "code.diff"

    def attempt_config(self, attempt: int) -> Path:
        """The configuration of an attempt that was asked for differently than the first."""
        return self.path / "logs" / f"attempt-{attempt}" / "config.yaml"

    def attempt_job(self, attempt: int) -> Path:
        """What was launched as an attempt, as its launcher has kept it for itself."""
        return self.path / "logs" / f"attempt-{attempt}" / "job.json"

    def attempt_restarts(self, attempt: int) -> Path:
        """How many restarts a launcher may make of an attempt; while it lives the next numbers are for these."""
        return self.path / "logs" / f"attempt-{attempt}" / "restarts.json"

    def attempt_plan(self, attempt: int) -> Path:
        """What a scheduler's job is to do as an attempt, without secrets."""
        return self.path / "logs" / f"attempt-{attempt}" / "plan.json"

    def launches(self) -> list[dict[str, Any]]:
        """The rows of job.json, the last to begin last; where it has none, all that it has as one row."""
        job = read_json(self.job)
        rows = job.get("attempts")
        rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        return [row for row in rows if isinstance(row.get("attempt", 0), int)] or [job]

    def next_attempt(self) -> int:
        """The number of the attempt to come: one more than the highest that any file knows of; logs may be deleted.

        What launchers that still live may need for restarts is passed over.
        """
        names = [path.name.removeprefix("attempt-") for path in (self.path / "logs").glob("attempt-*")]
        known = [row.get("attempt") for row in self.launches()]
        known += [self.read_status().get("attempt"), *(self._last_of(int(name)) for name in names if is_number(name))]
        return max((number for number in known if isinstance(number, int)), default=-1) + 1

    def _last_of(self, attempt: int) -> int:
        """The last number that the launcher of an attempt may still use."""
        restarts = read_json(self.attempt_restarts(attempt)).get("restarts")
        return attempt + restarts if isinstance(restarts, int) and self.may_be_launching(attempt) else attempt

    def may_be_launching(self, attempt: int) -> bool:
        """Whether the launcher of an attempt may still live, which holds the folder of its logs."""
        try:
            return _is_locked(self.log(attempt, 0).parent) is not False
        except OSError:
            return True

    def launched(self) -> list[int]:
        """The first attempts of the launchers that live, as far as locks can tell."""
        found = []
        for folder in (self.path / "logs").glob("attempt-*"):
            number = folder.name.removeprefix("attempt-")
            with suppress(OSError):
                if is_number(number) and _is_locked(folder):
                    found.append(int(number))
        return found

    def is_held(self) -> bool:
        """Whether a job trains in this directory right now, judged by its lock."""
        try:
            return _is_locked(self.lock) is True
        except FileNotFoundError:
            return False

    def read_status(self) -> dict[str, Any]:
        """The content of status.json, or an empty dict when there is none yet."""
        return read_json(self.status)

    def update_status(self, **fields: Any) -> None:
        """Replaces the given fields of status.json atomically and keeps the others; for one process at a time.

        With a new `state` goes what belonged to the one before: the exit code of an end, and its reason.
        """
        with self._status_lock:
            self.guard()
            status = self.read_status()
            if "state" in fields:
                status.pop("exit_code", None)
                status.pop("reason", None)
            write_json(self.status, {**status, **fields, "time": time.time()})

    def read_failure(self, attempt: int) -> dict[str, Any]:
        """The first error of an attempt, or an empty dict when none was told."""
        latest = read_json(self.failure)
        # What a worker has told stands where nobody was left to say it of the whole run.
        return latest if latest.get("attempt") == attempt else read_json(self.attempt_failure(attempt))

    def supersede_metrics(self, step: int, *, evaluates_again: bool = False) -> int:
        """Drops the rows of metrics and steps beyond `step`, which will be trained again; returns how many of metrics.

        Args:
            step: of the checkpoint from which the run goes on.
            evaluates_again: the evaluation of that very step will be done again, too.
        """
        superseded = 0
        for path in (self.steps, self.metrics):
            superseded = supersede_rows(path, step, evaluates_again=evaluates_again)
        return superseded


def _is_locked(path: Path) -> bool | None:
    """Whether somebody holds the lock of a file or a folder; None on a file system without locks, which cannot tell.

    Raises:
        OSError: it is not there, or must not be looked at.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False


def error_beside(log: Path) -> Path:
    """Where a rank that failed leaves word of its error, beside its log."""
    return log.with_suffix(".error.json")


def is_number(name: str) -> bool:
    """Whether a part of a file's name is a number as we write them: `str.isdigit` also takes what `int` does not."""
    return name.isascii() and name.isdigit()


def write_atomic(path: Path, data: bytes) -> None:
    """Writes `data` so that a reader, or a crash, sees either the old content or the new one.

    The file and its directory are synced, so the new content also survives a power cut.

    Raises:
        OSError: the disk is full, the directory is not writable, and so on; the old content is intact.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Makes renames and new names in a directory survive a power cut.

    Raises:
        OSError: the file system refused; what was renamed may be lost in a power cut.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Mapping[str, Any] | list[Any]) -> None:
    """Writes JSON atomically, indented for people."""
    write_atomic(path, _json_bytes(value))


def write_json_once(path: Path, value: Mapping[str, Any]) -> bool:
    """Writes JSON unless the file exists, also when several processes try at once; whether this one wrote it."""
    # Not by a hard link, which would show it whole at once: some file systems have none.
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(_json_bytes(value))
            stream.flush()
            os.fsync(descriptor)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def _json_bytes(value: Mapping[str, Any] | list[Any]) -> bytes:
    # Python's stand-ins for bytes of a file's name that are no UTF-8 become JSON's own escapes of them.
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, or an empty dict where the file does not exist or is not valid JSON in UTF-8."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
