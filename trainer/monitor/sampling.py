"""The monitor's threads: sample this node, and bring other nodes' samples to rank 0 without a collective."""

import json
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from trainer.config import MonitorConfig

_log = logging.getLogger(__name__)

# Rows of other nodes that wait for rank 0's sampling thread; more are dropped, oldest first.
_WAITING_ROWS = 1024
# A node that has been silent for longer than this and five periods does not count in `gpu_percent`.
_STALE_S = 10.0
# Different problems that a node tells rank 0; what comes after that many is noise.
_MOST_PROBLEMS = 100


class KeyValueStore(Protocol):
    """What the monitor uses of a `torch.distributed.Store`; give it a clone, for its calls block."""

    def set(self, key: str, value: str, /) -> Any:
        """Writes a key."""

    def check(self, keys: list[str], /) -> bool:
        """Whether all keys exist, at once."""
        ...

    def get(self, key: str, /) -> bytes:
        """Reads a key that exists."""
        ...


class NodeSampler:
    """Samples this node's GPUs and host; made and used in one thread.

    Args:
        config: which GPUs.
        node_rank: this node's number, part of every row.
        report: told what could not be read and why, once a kind.
        gpus_in_use: how many of the visible GPUs this node's workers use; None for all.
    """

    def __init__(
        self,
        config: MonitorConfig,
        *,
        node_rank: int,
        report: Callable[[str, str], None],
        gpus_in_use: int | None = None,
    ) -> None:
        from trainer.monitor.host import Host
        from trainer.monitor.nvml import Gpus

        self._identity = {"node": node_rank, "host": socket.gethostname()}
        self._gpus = Gpus(config.gpus, report, in_use=gpus_in_use)
        self._host = Host(report)

    def sample(self) -> dict[str, Any]:
        """One row: `time` (UNIX seconds), `node`, `host`, and the figures of `Gpus` and `Host`."""
        return {"time": time.time(), **self._identity, **self._gpus.sample(), **self._host.sample()}

    def close(self) -> None:
        """Lets go of NVML."""
        self._gpus.close()


class Monitor:
    """Samples every node beside the training; nothing here can fail, block or slow down a step.

    On the first worker of each node one thread samples. With several nodes a second thread exchanges rows
    through the store: each node overwrites one key of its own, rank 0 polls them. A dead node or store
    makes a gap in its rows and nothing else.

    Args:
        config: which GPUs, how often.
        node_rank: this node's number.
        nodes: machines of the job.
        is_first_on_node: whether this worker samples its node; on the others every method does nothing.
        is_rank_zero: whether this worker receives all rows.
        store: the side channel; None with one node, or to keep other nodes' rows away.
        sink: receives every row, on rank 0 only, always from the monitor's own thread.
        on_event: receives `{"time", "node", "event": "monitor_problem", "what", "problem"}`, once a kind and
            node; on rank 0 only, from the monitor's threads.
        gpus_in_use: how many of the visible GPUs this node's workers use; None for all.
    """

    def __init__(
        self,
        config: MonitorConfig,
        *,
        node_rank: int,
        nodes: int,
        is_first_on_node: bool,
        is_rank_zero: bool,
        store: KeyValueStore | None,
        sink: Callable[[dict[str, Any]], None],
        on_event: Callable[[dict[str, Any]], None],
        gpus_in_use: int | None = None,
    ) -> None:
        self._config = config
        self._node_rank = node_rank
        self._nodes = nodes
        self._is_rank_zero = is_rank_zero
        self._store = store
        self._sink = sink
        self._on_event = on_event
        self._gpus_in_use = gpus_in_use
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._latest: dict[int, dict[str, Any]] = {}
        # By our own clock: the nodes' clocks may disagree.
        self._arrived_at: dict[int, float] = {}
        self._arrived: deque[dict[str, Any]] = deque(maxlen=_WAITING_ROWS)
        self._problems: list[dict[str, Any]] = []
        self._told: set[str] = set()
        self._threads: list[threading.Thread] = []
        if is_first_on_node:
            self._threads.append(threading.Thread(target=self._sampling, name="monitor", daemon=True))
            if store is not None and nodes > 1:
                target = self._gathering if is_rank_zero else self._sending
                self._threads.append(threading.Thread(target=target, name="monitor-store", daemon=True))

    def start(self) -> None:
        """Starts the threads; returns at once."""
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float = 2.0) -> None:
        """Ends the threads; one that hangs in a driver or a store is left behind when the time is over."""
        self._stopping.set()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))

    def latest(self) -> dict[str, Any]:
        """This node's newest row; empty before the first."""
        with self._lock:
            return dict(self._latest.get(self._node_rank, {}))

    def gpu_percent(self) -> float | None:
        """Mean utilisation, 0-100, of the GPUs of all nodes that were heard of lately; None without GPUs."""
        oldest = time.monotonic() - _STALE_S - 5 * self._config.period_s
        with self._lock:
            rows = [row for node, row in self._latest.items() if self._arrived_at[node] > oldest]
        values = [v for row in rows for name, v in row.items() if name.endswith("/utilization_percent")]
        return sum(values) / len(values) if values else None

    def _sampling(self) -> None:
        try:
            sampler = NodeSampler(
                self._config, node_rank=self._node_rank, report=self._problem, gpus_in_use=self._gpus_in_use
            )
        except Exception as error:
            self._problem("the monitor", f"{type(error).__name__}: {error}")
            return
        due = time.monotonic()
        while not self._stopping.is_set():
            try:
                self._take(sampler.sample())
            except Exception as error:
                self._problem("sampling", f"{type(error).__name__}: {error}")
            # After a hang, or a suspended machine, the missed samples are not made up for.
            due = max(due + self._config.period_s, time.monotonic())
            self._stopping.wait(due - time.monotonic())
        sampler.close()

    def _take(self, row: dict[str, Any]) -> None:
        with self._lock:
            self._latest[self._node_rank] = row
            self._arrived_at[self._node_rank] = time.monotonic()
        if not self._is_rank_zero:
            return
        self._sink(row)
        while self._arrived:
            self._sink(self._arrived.popleft())

    def _sending(self) -> None:
        assert self._store is not None
        sent: dict[str, Any] = {}
        while not self._stopping.wait(self._config.period_s):
            with self._lock:
                row = self._latest.get(self._node_rank, {})
                message = {"row": row, "problems": list(self._problems)}
            if message == sent:
                continue
            try:
                self._store.set(_key(self._node_rank), json.dumps(message))
                sent = message
            except Exception as error:
                self._problem("the store", f"{type(error).__name__}: {error}")

    def _gathering(self) -> None:
        seen: dict[int, bytes] = {}
        heard: dict[int, int] = {}
        while not self._stopping.wait(self._config.period_s):
            for node in range(self._nodes):
                if node == self._node_rank or self._stopping.is_set():
                    continue
                try:
                    heard[node] = self._receive(node, seen, heard.get(node, 0))
                except Exception as error:
                    self._problem(f"the samples of node {node}", f"{type(error).__name__}: {error}")

    def _receive(self, node: int, seen: dict[int, bytes], problems_heard: int) -> int:
        """Takes what another node left in the store; returns how many of its problems are known by now."""
        assert self._store is not None
        # A get of a missing key waits, and would make one late node hide all others.
        if not self._store.check([_key(node)]):
            return problems_heard
        raw = self._store.get(_key(node))
        if raw == seen.get(node):
            return problems_heard
        seen[node] = raw
        message = json.loads(raw)
        if message["row"]:
            with self._lock:
                new = message["row"] != self._latest.get(node)
                self._latest[node] = message["row"]
                self._arrived_at[node] = time.monotonic()
            if new:
                self._arrived.append(message["row"])
        for event in message["problems"][problems_heard:]:
            self._tell(event)
        return len(message["problems"])

    def _problem(self, what: str, problem: str) -> None:
        """Notes a failure once; rank 0 tells it, another node sends it to rank 0 with its next row."""
        with self._lock:
            if what in self._told or len(self._told) >= _MOST_PROBLEMS:
                return
            self._told.add(what)
            event = {
                "time": time.time(),
                "node": self._node_rank,
                "event": "monitor_problem",
                "what": what,
                "problem": problem,
            }
            self._problems.append(event)
        if self._is_rank_zero:
            self._tell(event)

    def _tell(self, event: dict[str, Any]) -> None:
        try:
            self._on_event(event)
        except Exception:
            _log.exception("the monitor's event %s could not be passed on", event)


def _key(node: int) -> str:
    return f"paceline/monitor/{node}"
