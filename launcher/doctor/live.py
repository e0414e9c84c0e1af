"""Short trials on the machine itself, in processes of their own and with a time limit, and what they mean."""

import json
import os
import selectors
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from launcher.doctor.apart import NoAnswer, ask
from launcher.doctor.finding import FAIL, PASS, WARN, Finding
from launcher.doctor.gpu_facts import GpuFacts
from launcher.doctor.storage import trial_folder
from launcher.doctor.surroundings import Surroundings
from trainer import wording
from trainer.cores import count_cpus
from trainer.trouble import meaning

ORDER = ("libraries", "matmul", "memory trial", "all-reduce", "decoding")
"""The trials, which are their findings' names, too."""

LIMIT_S = 90.0
_TEMPORARY_S = 10.0
_SLOWEST_SHARE = 0.85
_FEW_IMAGES = 100
# Bytes/s of a link in one direction; of PCI Express a lane, by its generation.
_NVLINK, _NVLINK_5 = 25e9, 50e9
_BLACKWELL = (10, 0)
_LANE = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.97e9, 5: 3.94e9, 6: 7.56e9}
# What nccl-tests reach of that on sound machines is 0.7 to 0.8 and, through the host's bridges, 0.3 to 0.7.
_LEAST_OF_NVLINK, _LEAST_OF_PCIE = 0.4, 0.2

Row = Mapping[str, Any]


def examine(here: Surroundings, *, limit_s: float = LIMIT_S) -> Iterator[Finding]:
    """Runs the trials for a job's workers and judges them, each as soon as it is known."""
    gpus = here.machine.visible if here.config.device != "cpu" else 0
    workers = min(here.workers, gpus) if gpus else here.workers
    rows: list[Row] = []
    try:
        # Asked apart, since where temporary files lie may hang, too.
        parent = Path(ask(tempfile.gettempdir, _TEMPORARY_S))
    except NoAnswer:
        fix = "export TMPDIR=/a/directory/you/can/write"
        yield Finding("trials", FAIL, "there is no directory for temporary files that can be written", fix)
        return
    with trial_folder(parent) as place, (place / "stderr").open("w+") as errors:
        words = ["-m", "launcher.doctor.trials", str(workers), "cuda" if gpus else "cpu", str(place)]
        process = subprocess.Popen(
            [sys.executable, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            # As the workers of a job have it.
            env={"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", **here.environment},
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            for row in _rows(process.stdout, limit_s):
                rows.append(row)
                if len([other for other in rows if other["trial"] == row["trial"]]) == expected(row["trial"], workers):
                    yield judge(row["trial"], rows, here.gpus)
            in_time = _ended(process)
            if not in_time or process.returncode != 0:
                errors.seek(0)
                yield broken(rows, workers, errors.read(), limit_s=None if in_time else limit_s)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            # One that hangs in the driver stays until the driver lets go of it.
            _ended(process)


def expected(trial: str, workers: int) -> int:
    """How many rows a trial gives: each worker looks at its own device, one speaks for all."""
    return workers if trial in ("matmul", "memory trial") else 1


def judge(trial: str, rows: Sequence[Row], gpus: Sequence[GpuFacts]) -> Finding:
    """What a trial's rows mean."""
    own = [row for row in rows if row["trial"] == trial]
    if trial == "libraries":
        return _libraries(own[0])
    if trial == "matmul":
        return _matmul(own)
    if trial == "memory trial":
        return _memory(own)
    return _all_reduce(own[0], gpus) if trial == "all-reduce" else _decoding(own[0])


def broken(rows: Sequence[Row], workers: int, errors: str, *, limit_s: float | None) -> Finding:
    """What it means that the trials did not come to their end.

    Args:
        rows: what was measured before.
        workers: how many there are.
        errors: what they have printed on stderr.
        limit_s: the time that they had, if it was too short for them.
    """
    order = [name for name in ORDER if workers > 1 or name != "all-reduce"]
    missing = next(
        (name for name in order if len([row for row in rows if row["trial"] == name]) < expected(name, workers)), "end"
    )
    done = {row["rank"] for row in rows if row["trial"] == missing}
    lacking = [rank for rank in range(workers) if rank not in done] if expected(missing, workers) > 1 else []
    who = f" on rank {', '.join(map(str, lacking))}" if lacking else ""
    if limit_s is not None:
        message = f"no answer within {limit_s:.0f} s: {missing}{who} hangs"
        return Finding("trials", FAIL, message, "NCCL_DEBUG=INFO says more")
    last = next((line for line in reversed(errors.strip().splitlines()) if line.strip()), "no word of it")
    known = meaning.of_log(errors, ours=False) or meaning.of_error("", last, ours=False)
    fix = f"{known.meaning}: {known.advice}" if known else "CUDA_LAUNCH_BLOCKING=1 or NCCL_DEBUG=INFO says more"
    return Finding("trials", FAIL, f"{missing}{who} failed: {last}", fix)


def best_rate(gpus: Sequence[GpuFacts]) -> tuple[str, float, float]:
    """By which link the GPUs are joined, its bytes/s in one direction, and the least share of it that is sound."""
    links = min((gpu.nvlinks for gpu in gpus), default=0)
    if links:
        is_newest = all(gpu.capability is not None and gpu.capability >= _BLACKWELL for gpu in gpus)
        return wording.plural(links, "NVLink"), links * (_NVLINK_5 if is_newest else _NVLINK), _LEAST_OF_NVLINK
    lanes = min((gpu.lanes or 0 for gpu in gpus), default=0)
    generation = min((gpu.pcie_generation or 0 for gpu in gpus), default=0)
    return f"PCI Express {generation} x{lanes}", lanes * _LANE.get(generation, 0.0), _LEAST_OF_PCIE


def _libraries(row: Row) -> Finding:
    if row["unavailable"] is not None:
        known = meaning.of_error("RuntimeError", row["unavailable"], ours=False)
        fix = f"{known.meaning}: {known.advice}" if known else "nvidia-smi, and the lines `torch` and `GPUs` above"
        return Finding("libraries", FAIL, f"torch.cuda.is_available() is False: {row['unavailable']}", fix)
    built = [name.removeprefix("sm_") for name in row["architectures"] if name.startswith("sm_")]
    text = ", ".join(
        f"{name} {value}"
        for name, value in (("cuDNN", _cudnn(row["cudnn"])), ("NCCL", row["nccl"]))
        if value is not None
    )
    foreign = sorted(
        {
            f"{name} ({major}.{minor})"
            for name, major, minor in row["gpus"]
            if not _has_code(major, minor, row["architectures"])
        }
    )
    if foreign:
        message = f"this torch has no code for {', '.join(foreign)}, only for {', '.join(built)}"
        return Finding("libraries", FAIL, message, "another build of torch: see the line `torch`")
    names = ", ".join(sorted({f"{name} ({major}.{minor})" for name, major, minor in row["gpus"]}))
    if names:
        text = f"{text}; torch.cuda.is_available(), with code for {names}"
    return Finding("libraries", PASS, text or "torch runs")


def _cudnn(number: int | None) -> str | None:
    """Its version, which it gives as a number: 92400 is 9.24.0."""
    return None if number is None else f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def _has_code(major: int, minor: int, architectures: Iterable[str]) -> bool:
    """Whether code was built for a GPU: for its generation up to its own step, or as PTX of an earlier one."""
    for name in architectures:
        kind, _, number = name.partition("_")
        version = int("".join(letter for letter in number if letter.isdigit()))
        step = (version // 10, version % 10)
        if kind == "compute" and step <= (major, minor):
            return True
        if kind == "sm" and step[0] == major and step[1] <= minor:
            return True
    return False


def _matmul(rows: Sequence[Row]) -> Finding:
    wrong = [f"rank {row['rank']}" for row in rows if not row["right"]]
    if wrong:
        return Finding("matmul", FAIL, f"a wrong result on {', '.join(wrong)}", "leave that GPU out, have it replaced")
    rates = [row["tflops"] for row in rows]
    text = f"right on all; {wording.significant(min(rates))} to {wording.significant(max(rates))} TFLOP/s"
    # Workers on the CPU share its cores, and take turns.
    slow = [row for row in rows if row["is_gpu"] and row["tflops"] < _SLOWEST_SHARE * statistics.median(rates)]
    if slow:
        share = wording.whole_percent(slow[0]["tflops"] / statistics.median(rates))
        message = f"{text}; rank {slow[0]['rank']} reaches {share} of the others, which will wait for it"
        return Finding("matmul", WARN, message, "look at its clocks and at who else is on it: nvidia-smi")
    return Finding("matmul", PASS, text)


def _memory(rows: Sequence[Row]) -> Finding:
    wrong = [f"rank {row['rank']} ({row['wrong']:,} bytes)" for row in rows if row["wrong"]]
    if wrong:
        return Finding("memory trial", FAIL, f"bytes changed on {', '.join(wrong)}", "leave it out, have it replaced")
    least = wording.size(min(row["bytes"] for row in rows))
    return Finding("memory trial", PASS, f"{least} each, written and read twice")


def _all_reduce(row: Row, gpus: Sequence[GpuFacts]) -> Finding:
    if not row["right"]:
        fix = "NCCL_P2P_DISABLE=1 tells whether peer access is at fault"
        return Finding("all-reduce", FAIL, "the sum is wrong", fix)
    text = f"{wording.size(row['busbw'])}/s bus bandwidth with {wording.size(row['bytes'])}"
    link, best, least = best_rate(gpus)
    if not best:
        return Finding("all-reduce", PASS, text)
    share = row["busbw"] / best
    text = f"{text}, {wording.whole_percent(share)} of {link}"
    if share < least:
        fix = "NCCL_DEBUG=INFO shows which way it takes, nvidia-smi topo -m which there are"
        return Finding("all-reduce", WARN, f"{text}: slow", fix)
    return Finding("all-reduce", PASS, text)


def _decoding(row: Row) -> Finding:
    rate, cores = row["images_per_second"], count_cpus()
    whole = f"about {wording.number(rate * cores)} with all {cores}"
    text = f"{wording.number(rate)} images/s a core (500x375 JPEG), {whole}"
    if rate < _FEW_IMAGES:
        return Finding("decoding", WARN, f"{text}: slow", "who else uses the cores? `top`; smaller images on the disk")
    return Finding("decoding", PASS, text)


def _rows(stream: IO[bytes], limit_s: float) -> Iterator[Row]:
    """The lines of JSON that come until the stream or the time ends."""
    deadline, rest = time.monotonic() + limit_s, b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline - time.monotonic())):
            piece = os.read(stream.fileno(), 1 << 16)
            if not piece:
                return
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                # Libraries print, too.
                with suppress(ValueError):
                    yield json.loads(line)


def _ended(process: "subprocess.Popen[bytes]") -> bool:
    try:
        process.wait(1.0)
    except subprocess.TimeoutExpired:
        return False
    return True
