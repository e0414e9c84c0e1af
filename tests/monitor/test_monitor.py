import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import pytest

from trainer.config import MonitorConfig
from trainer.monitor.sampling import KeyValueStore, Monitor, NodeSampler

Row = dict[str, Any]


class DictStore:
    """A store in memory; a subclass may fail or hang."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def set(self, key: str, value: str, /) -> None:
        self.values[key] = value.encode()

    def check(self, keys: list[str], /) -> bool:
        return all(key in self.values for key in keys)

    def get(self, key: str, /) -> bytes:
        return self.values[key]


class Sent:
    """Collects what a monitor hands over."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.events: list[Row] = []
        self._came = threading.Condition()

    def row(self, row: Row) -> None:
        self._take(self.rows, row)

    def event(self, event: Row) -> None:
        self._take(self.events, event)

    def until(self, condition: Callable[[], object]) -> None:
        """Waits, from one thing that comes to the next, until the condition holds."""
        with self._came:
            assert self._came.wait_for(condition, timeout=20), "waited for 20 s"

    def _take(self, into: list[Row], it: Row) -> None:
        with self._came:
            into.append(it)
            self._came.notify_all()

    def nodes(self) -> set[int]:
        return {row["node"] for row in self.rows}

    def of(self, node: int) -> list[Row]:
        return [row for row in list(self.rows) if row["node"] == node]


@contextmanager
def monitor(
    sent: Sent, *, node: int = 0, nodes: int = 1, store: KeyValueStore | None = None, **changes: Any
) -> Generator[Monitor, None, None]:
    arguments: dict[str, Any] = {
        "node_rank": node,
        "nodes": nodes,
        "is_first_on_node": True,
        "is_rank_zero": node == 0,
        "store": store,
        "sink": sent.row,
        "on_event": sent.event,
    }
    running = Monitor(MonitorConfig(gpus="none", period_s=0.02), **(arguments | changes))
    running.start()
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture
def samples_begin(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Waits until as many samples more have begun; all but the last of them are then complete."""
    begun, sample = threading.Semaphore(0), NodeSampler.sample

    def counted(sampler: NodeSampler) -> Row:
        begun.release()
        return sample(sampler)

    def wait(count: int) -> None:
        for _ in range(count):
            assert begun.acquire(timeout=20), "waited for 20 s"

    monkeypatch.setattr(NodeSampler, "sample", counted)
    return wait


def test_rows_name_their_node_host_and_time() -> None:
    sent = Sent()
    before = time.time()
    with monitor(sent) as running:
        sent.until(lambda: len(sent.rows) > 2)
        latest = running.latest()
    assert {"time", "node", "host", "host/cpu_percent", "host/memory_used_bytes"} <= set(latest)
    assert before <= sent.rows[0]["time"] <= sent.rows[1]["time"] <= time.time()
    assert sent.events == []


def test_only_the_first_worker_of_a_node_samples() -> None:
    sent = Sent()
    with monitor(sent, is_first_on_node=False) as running:
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("monitor")]
        assert running.latest() == {}
        assert running.gpu_percent() is None


def test_nothing_is_sampled_after_stop_and_stop_without_start_is_fine() -> None:
    sent = Sent()
    with monitor(sent):
        sent.until(lambda: sent.rows)
    count = len(sent.rows)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("monitor")]
    assert len(sent.rows) == count
    Monitor(
        MonitorConfig(),
        node_rank=0,
        nodes=1,
        is_first_on_node=True,
        is_rank_zero=True,
        store=None,
        sink=sent.rows.append,
        on_event=sent.events.append,
    ).stop()


def test_every_nodes_rows_reach_rank_zero_through_one_key_a_node() -> None:
    store, first, other = DictStore(), Sent(), Sent()
    with (
        monitor(first, nodes=3, store=store),
        monitor(other, node=1, nodes=3, store=store),
        monitor(other, node=2, nodes=3, store=store),
    ):
        first.until(lambda: all(len(first.of(node)) > 3 for node in range(3)))
    assert sorted(store.values) == ["paceline/monitor/1", "paceline/monitor/2"]
    assert other.rows == []
    times = [row["time"] for row in first.of(2)]
    assert times == sorted(set(times))


def test_a_torch_store_serves_as_the_side_channel() -> None:
    from torch.distributed import TCPStore

    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    client = TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False)
    first, other = Sent(), Sent()
    with monitor(first, nodes=2, store=server), monitor(other, node=1, nodes=2, store=client):
        first.until(lambda: first.nodes() == {0, 1} and len(first.of(1)) > 1)
    assert first.of(1)[1]["host/cpu_percent"] >= 0
    assert (other.rows, first.events, other.events) == ([], [], [])


def test_a_node_that_ends_makes_a_gap_and_rank_zero_goes_on() -> None:
    store, first = DictStore(), Sent()
    with monitor(first, nodes=2, store=store):
        with monitor(Sent(), node=1, nodes=2, store=store):
            first.until(lambda: first.of(1))
        first.until(lambda: len(first.rows) and first.rows[-1]["node"] == 0)
        last, own = len(first.of(1)), len(first.of(0))
        first.until(lambda: len(first.of(0)) > own + 5)
    # At most what was on its way may have come.
    assert len(first.of(1)) <= last + 1


class HangingStore(DictStore):
    """Its calls never return until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    def set(self, key: str, value: str, /) -> None:
        self.released.wait()

    def check(self, keys: list[str], /) -> bool:
        return self.released.wait()


@pytest.mark.parametrize("node", [0, 1])
def test_a_store_that_hangs_holds_up_neither_sampling_nor_stopping(
    node: int, samples_begin: Callable[[int], None]
) -> None:
    store, sent = HangingStore(), Sent()
    with monitor(sent, node=node, nodes=2, store=store) as running:
        samples_begin(2)
        first = running.latest()["time"]
        samples_begin(2)
        assert running.latest()["time"] > first
        begin = time.monotonic()
        running.stop(timeout_s=0.2)
        assert time.monotonic() - begin < 2
        store.released.set()


class BrokenStore(DictStore):
    def check(self, keys: list[str], /) -> bool:
        raise ConnectionResetError("the other end is gone")


def test_a_store_that_fails_is_told_once_and_sampling_goes_on() -> None:
    sent = Sent()
    with monitor(sent, nodes=2, store=BrokenStore()):
        sent.until(lambda: sent.events and len(sent.rows) > 5)
    assert [event["what"] for event in sent.events] == ["the samples of node 1"]
    assert "the other end is gone" in sent.events[0]["problem"]


def test_a_message_that_is_not_ours_does_not_end_the_gathering() -> None:
    store, sent = DictStore(), Sent()
    store.set("paceline/monitor/1", "not json")
    with monitor(sent, nodes=3, store=store), monitor(Sent(), node=2, nodes=3, store=store):
        sent.until(lambda: sent.nodes() == {0, 2})
    assert [event["what"] for event in sent.events] == ["the samples of node 1"]


def test_another_nodes_problems_reach_rank_zero_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.monitor.host import Host

    def fail(host: Host) -> dict[str, float]:
        raise OSError("no such file")

    monkeypatch.setattr(Host, "_shared_memory", fail)
    store, first, other = DictStore(), Sent(), Sent()
    with monitor(first, nodes=2, store=store), monitor(other, node=1, nodes=2, store=store):
        first.until(lambda: len(first.events) == 2 and len(first.of(1)) > 3)
    assert sorted(event["node"] for event in first.events) == [0, 1]
    assert all(event["event"] == "monitor_problem" for event in first.events)
    assert other.events == []


def test_a_sink_that_raises_is_told_once_and_gets_the_next_row() -> None:
    sent = Sent()

    def sink(row: Row) -> None:
        sent.row(row)
        raise OSError("disk full")

    with monitor(sent, sink=sink):
        sent.until(lambda: len(sent.rows) > 3)
    assert [event["what"] for event in sent.events] == ["sampling"]


def test_an_event_that_cannot_be_passed_on_does_not_end_the_monitor() -> None:
    sent = Sent()

    def on_event(event: Row) -> None:
        sent.event(event)
        raise OSError("disk full")

    with monitor(sent, nodes=2, store=BrokenStore(), on_event=on_event):
        sent.until(lambda: sent.events)
        told = len(sent.rows)
        sent.until(lambda: len(sent.rows) > told + 3)
    assert [event["what"] for event in sent.events] == ["the samples of node 1"]


def test_a_sampling_that_fails_altogether_is_told_once_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = threading.Semaphore(0)

    def fail(sampler: NodeSampler) -> Row:
        attempts.release()
        raise RuntimeError("the driver is mad")

    monkeypatch.setattr(NodeSampler, "sample", fail)
    sent = Sent()
    with monitor(sent):
        assert all(attempts.acquire(timeout=20) for _ in range(4))
    assert [event["problem"] for event in sent.events] == ["RuntimeError: the driver is mad"]


_WITH_GPUS = """
import json, queue, time
from tests.stand_in_nvml import busy_gpus, write_figures
from trainer.config import MonitorConfig
from trainer.monitor.sampling import Monitor, NodeSampler

reports, result = [], {}
sampler = NodeSampler(MonitorConfig(), node_rank=0, report=lambda *report: reports.append(report))
sampler.sample()
begin = time.thread_time()
for _ in range(100):
    row = sampler.sample()
result["cpu_seconds"] = (time.thread_time() - begin) / 100
result["gpus"] = len([name for name in row if name.endswith("power_watts")])

rows = queue.Queue()
slow = Monitor(
    MonitorConfig(period_s=0.1), node_rank=0, nodes=1, is_first_on_node=True, is_rank_zero=True, store=None,
    sink=rows.put, on_event=reports.append, gpus_in_use=2,
)
slow.start()
rows.get(timeout=20)
result["gpu_percent"] = slow.gpu_percent()
write_figures(FIGURES, busy_gpus(8) | {"gpu0.power_mw.delay_ms": 60_000})
try:
    while True:
        rows.get(timeout=0.5)
except queue.Empty:
    pass  # No sample any more: the driver hangs.
begin = time.monotonic()
slow.stop(timeout_s=0.3)
result["stop_seconds"] = time.monotonic() - begin
result["reports"] = reports
print(json.dumps(result))
"""


def test_eight_gpus_cost_little_and_a_driver_that_hangs_does_not_hold_up_the_end(
    with_gpus: Callable[[str], Any],
) -> None:
    result = with_gpus(_WITH_GPUS)
    assert result["gpus"] == 8
    assert result["reports"] == []
    assert result["gpu_percent"] == 90.5
    # At one sample a second: less than half a per cent of a core.
    assert result["cpu_seconds"] < 0.005
    assert result["stop_seconds"] < 2
