"""Who of a silent job is the cause, from stacks as they are seen."""

import ctypes
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from launcher.hang import blame, stacks, waiting
from launcher.hang.sighting import Sighting
from launcher.hang.stacks import Frame, Stacks, Thread
from launcher.verdict import HANG, exit_code, first_failure
from tests.waiting import until
from trainer.heartbeat import Phase

USER = Frame("main", "/home/me/train.py", 80)
REDUCE = (
    Frame("all_reduce", "/v/site-packages/torch/distributed/distributed_c10d.py", 3000),
    Frame("wrapper", "/v/site-packages/torch/distributed/c10d_logger.py", 80),
    USER,
)
BACKWARD = (
    Frame("c10d::Reducer::finalize_backward", "/v/torch/lib/libtorch_cpu.so", 0),
    Frame("_engine_run_backward", "/v/site-packages/torch/autograd/graph.py", 1072),
    USER,
)
LOADS = (
    Frame("read", "/usr/lib/libc.so.6", 0),
    Frame("_PollLikeSelector.select", selectors.__file__, 415),
    Frame("_MultiProcessingDataLoaderIter._get_data", "/v/site-packages/torch/utils/data/dataloader.py", 1300),
    Frame("_BaseDataLoaderIter.__next__", "/v/site-packages/torch/utils/data/dataloader.py", 700),
    USER,
)


def at(rank: int, frames: tuple[Frame, ...] = REDUCE, *, state: str = "S", **known: object) -> Sighting:
    return Sighting(rank, Stacks(state, threads=(Thread("MainThread", frames),)), **known)  # type: ignore[arg-type]


CASES = {
    "elsewhere": ([*(at(rank) for rank in range(63)), at(63, LOADS, host="node7", phase=Phase.STEP)], [63]),
    "in the exchange of gradients": ([at(0, BACKWARD), at(1, LOADS), at(2, BACKWARD)], [1]),
    "in the exchange, as Python alone shows it": ([at(0, BACKWARD[1:]), at(1, LOADS)], [1]),
    "computes in backward": ([at(0), at(1, BACKWARD[1:], busy=True)], [1]),
    "stopped": ([at(0), at(1, state="T"), at(2, LOADS)], [1]),
    "behind": ([at(0, LOADS, beats=7), at(1, LOADS, beats=6), at(2, LOADS, beats=7)], [1]),
    "ended": ([at(0), at(1), Sighting(2, Stacks(""), ended=0)], [2]),
    "another collective": ([at(0), at(1), at(2, (REDUCE[0], Frame("save", "/home/me/train.py", 9)))], [2]),
    "gave up": ([Sighting(0, Stacks(""), gave_up="Timed out waiting 10ms"), at(1, LOADS), at(2)], [1]),
    "computes": ([at(0, LOADS, busy=True), at(1, LOADS), at(2, LOADS)], [0]),
    "alone": ([at(0, LOADS)], [0]),
    "nobody": ([at(0), at(1)], []),
}


@pytest.mark.parametrize("case", CASES)
def test_the_rank_for_which_the_others_wait_is_named(case: str) -> None:
    seen, expected = CASES[case]
    assert blame.culprits(seen) == expected
    hang = blame.judge(seen, 31.0, now=1.0, stacks="/s.txt")
    assert hang.rank == (expected or [0])[0]
    assert first_failure([hang]) is hang
    assert exit_code([hang]) == HANG
    assert len(hang.message.splitlines()) <= 4


def test_63_ranks_that_wait_are_one_line_and_the_one_elsewhere_comes_first() -> None:
    seen, _ = CASES["elsewhere"]
    hang = blame.judge(seen, 31.0, now=1.0, stacks="/s.txt")
    assert hang.host == "node7"
    assert hang.message.splitlines() == [
        "rank 63 hangs: no step for 31 s",
        "rank 63: is in _BaseDataLoaderIter.__next__ (data/dataloader.py:700), from main (me/train.py:80)",
        "ranks 0-62: wait in all_reduce (distributed/distributed_c10d.py:3000), from main (me/train.py:80)",
    ]
    assert hang.place == "/home/me/train.py:80 in main"
    assert hang.meaning == "ranks 0-62 wait for it"
    text = blame.report(seen)
    assert text.count("all_reduce (/v/site-packages") == 1
    assert "read (libc.so.6)" in text


DRIVER = [
    ("clock_gettime", "linux-vdso.so.1"),
    ("0x14e37c724994", "libcuda.so.1"),
    ("0x14e44688a7d8", "libcudart.so.12"),
]
"""What is innermost of a wait for CUDA, as far as py-spy finds names."""


@pytest.mark.parametrize(
    ("called", "waits"),
    [
        (
            [
                "cudaStreamSynchronize",
                "at::native::_local_scalar_dense_cuda",
                "at::_ops::item::call",
                "THPVariable_item",
            ],
            True,
        ),
        (
            ["cudaMemcpyAsync", "at::native::_local_scalar_dense_cuda(at::Tensor const&)::{lambda()#1}::operator()"],
            True,
        ),
        (["cudaDeviceSynchronize", "THCPModule_cudaSynchronize"], True),
        (["cudaEventSynchronize"], True),
        # The queue of the device is full.
        (["cudaLaunchKernel", "at::native::vectorized_elementwise_kernel"], True),
        (["hipStreamSynchronize"], True),
        (["at::native::cpublas::gemm", "at::native::addmm_out"], False),
        (["cudaGetDevice"], False),
    ],
)
def test_a_wait_for_the_device_is_known_by_its_native_calls(called: list[str], waits: bool) -> None:
    native = [*DRIVER, *((function, "libtorch_cuda.so") for function in called)]
    frames = (*(Frame(function, file, 0) for function, file in native), USER)
    assert waiting.waits_for_others(frames) is waiting.waits_for_device(frames) is waits
    if waits:
        # Whoever is elsewhere is the cause; where nobody is, a device may be.
        assert blame.culprits([at(0, frames), at(1, LOADS)]) == [1]
        alone = blame.judge([at(0, frames)], 31.0, now=1.0, stacks="")
        assert "rank 0: waits for the device in main (me/train.py:80)" in alone.message
        assert "a device hangs" in alone.meaning


def test_a_debugger_and_a_compiler_are_left_alone_and_data_loading_has_a_watch_of_its_own() -> None:
    debugged = (Frame("interaction", "/usr/lib/python3.11/pdb.py", 400), USER)
    compiled = (USER, Frame("compile_fx", "/v/torch/_inductor/compile_fx.py", 4))
    loaded = (LOADS[1], Frame("wait", "/v/trainer/data/watch.py", 60))
    for frames, silent_s, excused in [
        (debugged, 1e6, True),
        (compiled, 600.0, True),
        (compiled, 1e6, False),
        (loaded, 299.0, True),
        (loaded, 400.0, False),
        (REDUCE, 31.0, False),
    ]:
        assert bool(waiting.excuse(frames, silent_s, 300.0)) == excused


@pytest.mark.parametrize(
    ("one", "gets_on"),
    [
        (at(0, LOADS, busy=True), True),
        (at(0, LOADS), False),
        (at(0, LOADS, state="D"), True),
        (at(0, LOADS, state="T", busy=True), False),
        # Computing is no work where it is a wait.
        (at(0, REDUCE, busy=True), False),
        (at(0, BACKWARD, busy=True), False),
        (at(0, BACKWARD[1:], busy=True), True),
    ],
)
def test_a_rank_that_computes_or_that_the_kernel_serves_may_only_be_slow(one: Sighting, gets_on: bool) -> None:
    assert one.gets_on is gets_on


FORBIDDEN = """
import ctypes, faulthandler, json, os, sys, threading
from launcher.hang import stacks
libc = ctypes.CDLL(None)
# Even as root, a process that may not be dumped cannot be looked into without this capability.
libc.prctl(24, 19)
written, (ready, tell) = os.memfd_create("stacks"), os.pipe()
def holds_the_lock():
    os.write(tell, b".")
    ctypes.PyDLL(None).sleep(600)
if not (child := os.fork()):
    libc.prctl(1, 9)
    libc.prctl(4, 0)
    faulthandler.register(stacks.STACKS_SIGNAL, file=written, all_threads=True)
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    holds_the_lock()
os.read(ready, 1)
seen = stacks.take([child], {child: written}, native=True)[child]
print(json.dumps([[frame.function for frame in thread.frames] for thread in seen.threads]))
blind = stacks.take([child], {}, native=False)[child]
print(json.dumps([blind.state, len(blind.threads), blind.why_not]))
os.kill(child, 9)
"""


def test_where_it_is_forbidden_to_look_into_a_process_it_tells_itself_though_c_holds_pythons_lock() -> None:
    done = subprocess.run([sys.executable, "-c", FORBIDDEN], capture_output=True, text=True, timeout=60, check=True)
    seen, (state, count, why_not) = map(json.loads, done.stdout.splitlines())
    assert seen[0][:2] == ["holds_the_lock", "<module>"]
    assert seen[1][:1] == ["wait"]
    assert (state, count) == ("S", 0)
    assert why_not


def test_py_spy_sees_the_innermost_call_of_a_process_even_of_a_stopped_one() -> None:
    ready, tell = os.pipe()
    if not (child := os.fork()):
        ctypes.CDLL(None).prctl(1, 9)
        lock = threading.Lock()
        lock.acquire()
        os.write(tell, b".")
        lock.acquire()
    os.read(ready, 1)
    try:
        until(lambda: stacks.state_of(child)[0] == "S", "it waits for the lock")
        for state in ("S", "T"):
            seen = stacks.take([child], {}, native=True)[child]
            assert (seen.state, seen.why_not) == (state, "")
            python = [frame for frame in seen.main if not frame.is_native]
            assert python[0].function == "test_py_spy_sees_the_innermost_call_of_a_process_even_of_a_stopped_one"
            if state == "S":
                os.kill(child, signal.SIGSTOP)
                os.waitpid(child, os.WUNTRACED)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert stacks.take([child], {}, native=True)[child].state == ""


IN_THE_KERNEL = """
#include <unistd.h>
int wait_in_the_kernel(void) {
    if (vfork() == 0) { pause(); _exit(0); }
    return 0;
}
"""
"""A call in which the kernel lets nobody halt the process, as that of a dead file system."""


def test_a_process_in_the_kernels_hands_is_seen_without_waiting_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kernel.c").write_text(IN_THE_KERNEL)
    library = tmp_path / "libkernel.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "kernel.c"], check=True)
    # Longer than this test would take.
    monkeypatch.setattr(stacks, "_SPY_LIMIT_S", 600.0)
    monkeypatch.setattr(stacks, "_WRITTEN_LIMIT_S", 600.0)
    call = f"import ctypes\ndef stalls():\n    ctypes.CDLL('{library}').wait_in_the_kernel()\nstalls()"
    with subprocess.Popen([sys.executable, "-c", call], start_new_session=True) as process:
        try:
            until(lambda: stacks.state_of(process.pid)[0] == "D", "the kernel has it", process)
            seen = stacks.take([process.pid], {process.pid: 0}, native=True)[process.pid]
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    assert (seen.state, seen.main[0].function) == ("D", "stalls")
