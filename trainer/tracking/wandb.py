"""Weights & Biases, kept at arm's length: only a thread of its own ever calls the library.

Its calls block for ever when its helper process hangs and raise when that process dies; importing it takes a
second. So rows go through a bounded queue, and the end of a run waits for a limited time only.
"""

import contextlib
import dataclasses
import importlib
import netrc
import os
import queue
import secrets
import shlex
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import psutil

from trainer import wording
from trainer.config import Config, WandbConfig
from trainer.run.secrets import redact_values
from trainer.rundir import RunDir, write_atomic

_QUEUE_ROWS = 2000
_FINISH_S = 10.0
# A failed run is to end everywhere within seconds; offline, the rest is written in a fraction of one.
_FAILED_FINISH_S = 3.0
# After the helper process was killed, for the thread to notice and take its exit hooks away.
_LAST_WORDS_S = 2.0
_INIT_TIMEOUT_S = 30.0
# monitor.jsonl has every sample; a chart in a browser does not need them all.
_MONITOR_PERIOD_S = 10.0
_PUBLIC_HOST = "https://api.wandb.ai"


def open(
    options: WandbConfig, run: RunDir, *, config: Config, attempt: int, warn: Callable[[str], None]
) -> "WandbTracker":
    """Opens the tracker; the library is imported, in a thread, with the first row of metrics."""
    return WandbTracker(options, run, config=config, attempt=attempt, warn=warn)


class WandbTracker:
    """Sends rows to W&B from a thread of its own; `step` is the axis of every chart.

    The id lies in `<run>/wandb/run_id`, so that a resumed run continues the same one. Samples of node n are
    shown as `node<n>/gpu/0/...`, thinned to one in ten seconds.

    Args:
        options: project, entity, group, tags, mode. WANDB_MODE of the environment wins over the mode.
        run: the run directory; W&B's own files lie in its folder `wandb`.
        config: stored with the run.
        attempt: how often the run was started before; stored with the run.
        warn: told, from any thread, what is lost or not honoured.
        finish_s: the longest time that `finish` waits, in seconds.
        queue_rows: rows that may wait for W&B; more are dropped and counted.
    """

    name = "wandb"

    def __init__(
        self,
        options: WandbConfig,
        run: RunDir,
        *,
        config: Config,
        attempt: int,
        warn: Callable[[str], None],
        finish_s: float = _FINISH_S,
        queue_rows: int = _QUEUE_ROWS,
    ) -> None:
        self._options = options
        self._run = run
        self._settings = {**redact_values(dataclasses.asdict(config)), "attempt": attempt}
        self._warn = warn
        self._finish_s = finish_s
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(queue_rows)
        self._lock = threading.Lock()
        self._dropped = 0
        self._step = 0
        self._monitor_due: dict[int, float] = {}
        self._summary: dict[str, Any] = {}
        self._failed = False
        self._offline_folder: Path | None = None
        self._url: str | None = None
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Queues a row; the first one starts the thread, when the training itself is under way."""
        self._step = int(row.get("step", self._step))
        self._put(dict(row))
        self._start()

    def monitor(self, row: Mapping[str, Any]) -> None:
        """Queues a sample with the latest step, if the last one of that node is ten seconds old."""
        node, now = int(row.get("node", 0)), float(row.get("time", time.time()))
        if now < self._monitor_due.get(node, 0.0):
            return
        self._monitor_due[node] = now + _MONITOR_PERIOD_S
        figures = {f"node{node}/{key}": value for key, value in row.items() if "/" in key and _can_chart(value)}
        self._put({"step": self._step, "time": now, **figures})

    def event(self, row: Mapping[str, Any]) -> None:
        """Leaves events to events.jsonl: W&B has no place for them."""

    def supersede(self, step: int, *, evaluates_again: bool) -> None:
        """Leaves what W&B has: it knows no taking back, and shows the later of two values of a step."""

    def flush(self) -> None:
        """Leaves it to W&B's helper process, which writes beside the training."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Sends what waits and the summary, and ends W&B's helper process; within `finish_s` or little more.

        An empty summary means that the run failed: W&B is told, and gets three seconds at most. A run that
        never had a row of metrics does not appear in W&B.
        """
        if self._thread.ident is None:
            return
        self._summary = dict(summary)
        limit_s = self._finish_s if summary else min(self._finish_s, _FAILED_FINISH_S)
        deadline = time.monotonic() + limit_s
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=limit_s)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            # Left alone it would hold up the interpreter's exit, and whoever reads our output to its end.
            self._kill_helpers()
            self._thread.join(_LAST_WORDS_S)
            how = f": {command}" if (command := self.sync_command()) else ""
            self._warn(f"W&B did not finish in {limit_s:g} s and is left behind; its files stay{how}")
        if self._dropped:
            self._warn(f"{self._dropped:,} rows did not reach W&B; metrics.jsonl and monitor.jsonl have them all")

    def hint(self) -> str | None:
        """How to upload an offline run, or where an online one is."""
        if (command := self.sync_command()) is not None:
            return f"W&B (offline): {command}"
        return f"W&B: {self._url}" if self._url else None

    def sync_command(self) -> str | None:
        """The command that uploads the run with all its attempts; None where it is online or not started."""
        if self._offline_folder is None:
            return None
        folders = sorted(self._offline_folder.parent.glob("offline-run-*"))
        return f"{wording.command('wandb')} sync " + " ".join(
            shlex.quote(wording.short_path(folder)) for folder in folders
        )

    def _start(self) -> None:
        with self._lock:
            if self._thread.ident is None:
                self._thread.start()

    def _put(self, row: dict[str, Any]) -> None:
        if self._failed:
            return
        try:
            self._queue.put_nowait(row)
        except queue.Full:
            self._dropped += 1
            if self._dropped == 1:
                self._warn("W&B does not keep up; rows are dropped there, metrics.jsonl has them all")

    def _work(self) -> None:
        wandb: ModuleType | None = None
        try:
            with _exit_hooks_kept():
                wandb = importlib.import_module("wandb")
                wandb.setup(wandb.Settings(silent=True))
                run = self._init(wandb)
            self._send(run)
            run.summary.update({key: value for key, value in self._summary.items() if _can_chart(value)})
            run.finish(exit_code=0 if self._summary else 1)
        except Exception as error:
            self._failed = True
            self._forget_queue()
            self._warn(f"W&B has failed, training goes on without it: {type(error).__name__}: {error}")
        finally:
            if wandb is not None:
                # Takes away the exit hook that would wait for the helper process without a limit.
                with contextlib.suppress(Exception):
                    wandb.teardown()

    def _forget_queue(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()

    def _send(self, run: Any) -> None:
        while (row := self._queue.get()) is not None:
            run.log(row)

    def _init(self, wandb: ModuleType) -> Any:
        mode = None if os.environ.get("WANDB_MODE") else self._mode()
        try:
            run = self._init_with(wandb, mode)
        except (wandb.errors.CommError, wandb.errors.UsageError) as error:
            if mode == "offline":
                raise
            self._warn(f"W&B cannot go online ({_first_line(error)}); offline instead")
            run = self._init_with(wandb, "offline")
        if run.settings.mode == "offline":
            self._offline_folder = Path(run.settings.sync_dir)
        else:
            self._url = run.url
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        return run

    def _init_with(self, wandb: ModuleType, mode: str | None) -> Any:
        return wandb.init(
            project=self._options.project,
            entity=self._options.entity,
            group=self._options.group,
            tags=self._options.tags,
            name=self._run.name,
            id=_run_id(self._run),
            resume="allow" if mode != "offline" else None,
            dir=self._run.path,
            config=self._settings,
            mode=mode,
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=_INIT_TIMEOUT_S,
                x_disable_stats=True,
                x_disable_meta=True,
                x_save_requirements=False,
                disable_code=True,
                disable_git=True,
            ),
        )

    def _mode(self) -> str:
        if self._options.mode != "auto":
            return self._options.mode
        return "online" if has_api_key() else "offline"

    def _kill_helpers(self) -> None:
        # The library does not name its process; ours is the only user of it here.
        for process in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                if process.name().startswith("wandb"):
                    process.kill()


def has_api_key(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether W&B would find an API key without asking: in the environment or in the .netrc file."""
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(environment.get("WANDB_BASE_URL") or _PUBLIC_HOST).netloc
    try:
        login = netrc.netrc(environment.get("NETRC") or Path.home() / ".netrc").authenticators(host)
    except (OSError, RuntimeError, netrc.NetrcParseError):
        return False
    return login is not None and bool(login[2])


def _run_id(run: RunDir) -> str:
    path = run.path / "wandb" / "run_id"
    try:
        if known := path.read_text().strip():
            return known
    except FileNotFoundError:
        pass  # The first attempt.
    made = secrets.token_hex(4)
    write_atomic(path, made.encode())
    return made


def _can_chart(value: Any) -> bool:
    return isinstance(value, (int, float, str))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def _exit_hooks_kept() -> Generator[None, None, None]:
    """W&B puts its own functions in the place of sys.exit and sys.excepthook; ours come back afterwards."""
    kept = sys.exit, sys.excepthook
    try:
        yield
    finally:
        sys.exit, sys.excepthook = kept
