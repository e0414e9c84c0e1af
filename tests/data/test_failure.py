"""A loading process that dies or hangs is named, with what it was reading."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.dying import FATAL, build
from tests.trainer_command import DIGITS, TRAINER, run
from tests.waiting import until
from trainer.data import failure, loader, transforms, watch
from trainer.data.bench import AtWork
from trainer.data.sampler import Indices
from trainer.data.samples import Samples
from trainer.errors import UnfitError
from trainer.rundir import read_json
from trainer.trouble.mishap import is_echo


def fails(folder: Path, how: str, *further: str) -> tuple[str, dict[str, object]]:
    """What is said, and failure.json's details."""
    arguments = [
        *DIGITS[1:],
        "data._target_=tests.data.dying.build",
        f"data.args={{how: {how}}}",
        "data.augment=none",
        "data.workers=2",
        "global_batch_size=8",
        "epochs=3",
        f"run.dir={folder}",
        "run.name=r",
    ]
    done = run(TRAINER, *arguments, *further)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    row = read_json(folder / "r" / "failure.json")
    assert (row["type"], row["exit_code"]) == ("TrainingError", 1)
    details = row["details"]
    assert details["samples"] == [FATAL]
    assert details["paths"] == [f"/far/{FATAL}.png"]
    return done.stderr, details


def test_a_killed_loading_process_is_named_with_its_sample(tmp_path: Path) -> None:
    said, details = fails(tmp_path, "SIGKILL")
    assert f"was ended by SIGKILL at sample {FATAL} (/far/{FATAL}.png)" in said
    assert "out of memory?" in said
    assert details["exit_code"] == -9


def test_a_hanging_loading_process_is_named_with_its_sample(tmp_path: Path) -> None:
    said, _ = fails(tmp_path, "hang", "data.timeout_s=4")
    assert "gave no batch for data.timeout_s=4 seconds: process" in said
    assert f"at sample {FATAL} (/far/{FATAL}.png), for " in said


BUSY = [AtWork(0, 100, 3, 0.2), AtWork(1, 101, None, 9.0)]


@pytest.mark.parametrize(
    ("text", "codes", "says"),
    [
        ("DataLoader worker (pid 100) is killed by signal: Bus error. ", [-7, None], "was ended by SIGBUS at sample 3"),
        (
            "DataLoader worker (pid(s) 101, 100) exited unexpectedly",
            [7, 7],
            "0 (pid 100) has exited with code 7",
        ),
        ("DataLoader worker (pid(s) 101) exited unexpectedly", [None, -15], "by SIGTERM while it waited for work"),
        ("unable to resize file </torch_9_1_2> to the right size: No space left on device (28)", [], "(/dev/shm, "),
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", [None, None], None),
        ("CUDA error", [None, None], None),
    ],
)
def test_what_torch_says_is_told_with_names(text: str, codes: list[int | None], says: str | None) -> None:
    named = failure.explain(RuntimeError(text), [0] * 9, BUSY, codes)
    assert (named is None) == (says is None)
    assert says is None or says in str(named)


RESET = ConnectionResetError(104, "Connection reset by peer")


def test_a_process_that_died_while_it_handed_a_batch_over_is_named() -> None:
    named = failure.explain(RESET, [0] * 9, BUSY, [-9, None])
    assert "was ended by SIGKILL at sample 3" in str(named)
    assert failure.explain(RESET, [0] * 9, BUSY, [None, 0]) is None


def test_a_longer_time_out_is_offered_as_far_as_there_is_one() -> None:
    week = 7 * 24 * 3600
    assert f"data.timeout_s={week} waits longer" in str(failure.hang(BUSY, [0] * 9, timeout_s=week - 1))
    assert "waits longer" not in str(failure.hang(BUSY, [0] * 9, timeout_s=week))


def test_of_those_that_give_no_batch_the_stopped_and_the_slow_are_named() -> None:
    def said(*at_work: AtWork) -> str:
        return str(failure.hang(at_work, [0] * 9, timeout_s=5))

    assert "seconds: process 0 (pid 100) at sample 3, for 0.2 s\n" in said(*BUSY)
    stopped = AtWork(2, 102, None, 7.0, is_stopped=True)
    assert "seconds: process 2 (pid 102) while it waited for work, stopped by a signal\n  find out who" in said(
        *BUSY, stopped
    )
    assert "(pid 101) while it waited for work\n" in said(BUSY[1])


def test_without_other_workers_no_error_is_another_ones_echo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not is_echo(RESET)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert is_echo(RESET)


def load(how: str = "SIGKILL", *, workers: int = 2, timeout_s: int = 20) -> loader.Loader:
    splits = build(how)
    samples = Samples(
        splits.train,
        transforms.eval_transform(splits.preprocessing),
        seed=0,
        batch_augment=None,
        skip_bad=False,
        report=None,
    )
    indices = [Indices(0, np.arange(first, first + 8)) for first in range(0, 40, 8)]
    return loader.load_batches(
        samples,
        indices,
        workers=workers,
        prefetch=3 - workers,
        device=torch.device("cpu"),
        timeout_s=timeout_s,
        persistent=True,
    )


@pytest.fixture
def loading() -> Iterator[loader.Loader]:
    """Processes of which the second will be killed."""
    before = signal.getsignal(signal.SIGCHLD)
    batches = load()
    yield batches
    batches._iterator._shutdown_workers()
    signal.signal(signal.SIGCHLD, before)


def test_after_any_error_the_dead_are_asked_for_and_no_further_one_interrupts(loading: loader.Loader) -> None:
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        list(loading)
    assert f"was ended by SIGKILL at sample {FATAL}" in str(loader.explain(RESET))
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL


def test_the_next_job_of_a_sweep_hears_of_its_own_dead_and_of_no_others(loading: loader.Loader) -> None:
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        list(loading)
    handler = signal.getsignal(signal.SIGCHLD)
    assert callable(handler)
    loader.explain(RESET)
    of_the_first = [process.pid for process in loading._iterator._workers]
    second = load()
    batches = iter(second)
    assert signal.getsignal(signal.SIGCHLD) == handler
    with pytest.raises(RuntimeError, match="DataLoader worker") as raised:
        list(batches)
    assert not any(str(pid) in str(raised.value) for pid in of_the_first)
    assert f"was ended by SIGKILL at sample {FATAL}" in str(second.explain(raised.value))
    second._iterator._shutdown_workers()


@pytest.mark.parametrize(("how", "number"), [("deaf", signal.SIGALRM), ("hang", signal.SIGSTOP)])
def test_a_process_that_does_not_answer_is_ended_and_named(
    how: str, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_GRACE_S", 0.0)
    before = signal.getsignal(signal.SIGCHLD)
    batches = load(how, workers=1, timeout_s=1)
    try:
        arriving = iter(batches)
        bench, process = batches._samples.bench, batches._iterator._workers[0]
        until(lambda: any(one.sample == FATAL for one in bench.look()), "the sample at which it hangs")
        until(batches._iterator._worker_result_queue._reader.poll, "the first batch, of which the tensors stay there")
        os.kill(process.pid, number)
        until(lambda: bench.look()[0].is_stopped or bool(batches._samples.split.is_deaf), "the process to be deaf")
        with pytest.raises((RuntimeError, OSError, EOFError)) as raised:
            next(arriving)
        assert "timed out" not in str(raised.value)
        named = loader.explain(raised.value)
        assert f"process 0 (pid {process.pid}) at sample {FATAL} (/far/{FATAL}.png)" in str(named)
        assert ("stopped by a signal" in str(named)) == (number == signal.SIGSTOP)
        assert loader.explain(UnfitError("this image")) is None
        process.join(10)
        assert process.exitcode == -signal.SIGKILL
    finally:
        batches._iterator._shutdown_workers()
        signal.signal(signal.SIGCHLD, before)
