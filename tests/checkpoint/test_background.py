"""Writing beside the training: one at a time, a hang is named and waited for by nobody, a failure is tried again."""

import errno
import os
import queue
import threading

import pytest
import torch

from trainer.checkpoint import BackgroundWriter, Image

TENSORS = {"a": torch.ones(4)}


class Told:
    """What a writer said."""

    def __init__(self) -> None:
        self.failures: list[tuple[str, float]] = []
        self.overdue: queue.Queue[float] = queue.Queue()

    def writer(self, patience_s: float = 60.0) -> BackgroundWriter:
        return BackgroundWriter(
            on_failure=lambda reason, again: self.failures.append((reason, again)),
            on_overdue=self.overdue.put,
            patience_s=patience_s,
        )


def no_space(image: Image) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_write_that_hangs_is_named_and_holds_nobody_up() -> None:
    told, answers = Told(), threading.Event()
    writer = told.writer(patience_s=0.05)
    writer.start(TENSORS, lambda image: print(answers.wait(60)))
    assert writer.is_busy
    assert told.overdue.get(timeout=10) == pytest.approx(0.05, abs=0.01)
    assert writer.is_overdue
    answers.set()
    writer.wait(10)
    assert not writer.is_busy
    assert not writer.is_overdue
    assert writer.error is None
    assert told.overdue.empty()


def test_the_watch_over_a_write_ends_with_it() -> None:
    told = Told()
    writer = told.writer(patience_s=60)
    writer.start(TENSORS, lambda image: None)
    writer.wait(10)
    for watch in [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]:
        watch.join(10)
        assert not watch.is_alive()
    assert told.overdue.empty()


def test_failures_are_tried_again_with_growing_patience_until_one_write_succeeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    monkeypatch.setattr("trainer.checkpoint.background.time.monotonic", lambda: now[0])
    told = Told()
    writer = told.writer()
    for expected in (30, 60, 120):
        writer.start(TENSORS, no_space)
        writer.wait(10)
        assert told.failures[-1] == ("No space left on device", expected)
        assert not writer.wants_retry
        now[0] += expected
        assert writer.wants_retry
    writer.again()
    writer.wait(10)
    assert told.failures[-1][1] == 240
    writer.start(TENSORS, lambda image: None)
    writer.wait(10)
    assert writer.error is None
    assert not writer.wants_retry
    writer.start(TENSORS, no_space)
    writer.wait(10)
    assert told.failures[-1][1] == 30


def test_the_memory_is_taken_once() -> None:
    seen: list[int] = []
    writer = Told().writer()
    for value in range(3):
        writer.start({"a": torch.full((1000,), float(value))}, lambda image: seen.append(id(image)))
        writer.wait(10)
    assert len(set(seen)) == 1
