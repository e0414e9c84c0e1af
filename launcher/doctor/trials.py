"""Short trials with torch, one process a worker: `python -m launcher.doctor.trials WORKERS DEVICE FOLDER`.

Each process prints what it has measured as a line of JSON, `{"trial": ..., "rank": ..., ...}`; `live` judges it. Torch
is imported once and the workers are forked; nothing touches CUDA before.
"""

import json
import os
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image

from launcher.processes import die_with_parent
from trainer.data.decode import decode

_TRIAL_S = 0.5
_CPU_BYTES, _GPU_BYTES = 16 << 20, 256 << 20
_CHUNK = 256 << 20
_FILL_SHARE, _SMALL_SHARE = 0.8, 0.1
_OWN_SHARE = 0.9
_ROUNDS = 5
_IMAGE = (500, 375)


def main() -> int:
    """Runs every trial; returns 0, or 1 where a worker did not come to its end."""
    die_with_parent(os.getppid())
    workers, device, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    context = get_context("fork")
    processes = [context.Process(target=work, args=(rank, workers, device, folder)) for rank in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return int(any(process.exitcode for process in processes))


def work(rank: int, workers: int, kind: str, folder: Path) -> None:
    """One worker's trials: its own device, then all together, then what one of them does for all."""
    die_with_parent(os.getppid())
    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if kind == "cuda" else torch.device("cpu")
    unavailable = why_unavailable() if device.type == "cuda" else None
    if rank == 0:
        tell("libraries", rank, unavailable=unavailable, **libraries(device if unavailable is None else None))
    if unavailable is not None:
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    tell("matmul", rank, **matmul(device))
    tell("memory trial", rank, **memory(device))
    if workers > 1:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=workers)
        found = all_reduce(device, workers)
        if rank == 0:
            tell("all-reduce", rank, **found)
        dist.destroy_process_group()
    if rank == 0:
        tell("decoding", rank, **decoding(folder))


def tell(trial: str, rank: int, **found: Any) -> None:
    """Prints a line at once: several processes share the pipe, and a short write is one piece."""
    os.write(1, (json.dumps({"trial": trial, "rank": rank, **found}) + "\n").encode())


def why_unavailable() -> str | None:
    """Why torch finds no CUDA here, in its words; None where it does."""
    if torch.cuda.is_available():
        return None
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().partition("\n")[0]
    return "torch does not say why"


def libraries(device: torch.device | None) -> dict[str, Any]:
    """Versions, and which GPUs there are and this build of torch has code for; None: CUDA cannot be asked."""
    gpus = []
    if device is not None and device.type == "cuda":
        gpus = [
            [torch.cuda.get_device_name(i), *torch.cuda.get_device_capability(i)]
            for i in range(torch.cuda.device_count())
        ]
    nccl = torch.cuda.nccl.version() if torch.distributed.is_nccl_available() else None
    return {
        "gpus": gpus,
        "architectures": (torch._C._cuda_getArchFlags() or "").split() if torch.version.cuda else [],
        "cudnn": torch.backends.cudnn.version() if torch.version.cuda else None,
        "nccl": nccl and ".".join(map(str, nccl)),
    }


def matmul(device: torch.device) -> dict[str, Any]:
    """Multiplies with a permutation, whose result is known exactly; `tflops` and whether it was right."""
    size, kind = (8192, torch.bfloat16) if device.type == "cuda" else (512, torch.float32)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0)).to(device)
    matrix = torch.randn(size, size, device=device, dtype=kind)
    permutation = torch.zeros(size, size, device=device, dtype=kind)
    permutation[order, torch.arange(size, device=device)] = 1
    right = bool(torch.equal(matrix @ permutation, matrix[:, order]))
    _finish(device)
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < _TRIAL_S:
        for _ in range(4):
            matrix @ permutation
        _finish(device)
        count += 4
    return {
        "is_gpu": device.type == "cuda",
        "right": right,
        "tflops": 2 * size**3 * count / (time.perf_counter() - begin) / 1e12,
    }


def memory(device: torch.device) -> dict[str, Any]:
    """Writes two patterns into most of a GPU's free memory, or some of the host's, and reads them back."""
    room = _CPU_BYTES * 4
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        # Whoever else is there must not run out of memory for a trial.
        room = int(free * (_FILL_SHARE if free > _OWN_SHARE * total else _SMALL_SHARE))
    size = min(_CHUNK, room)
    chunks = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(room // size)]
    wrong = 0
    for pattern in (0x55, 0xAA):
        for chunk in chunks:
            chunk.fill_(pattern)
        wrong += sum(int((chunk != pattern).sum()) for chunk in chunks)
    return {"bytes": size * len(chunks), "wrong": wrong}


def all_reduce(device: torch.device, workers: int) -> dict[str, Any]:
    """Sums a buffer over all workers; `busbw` is in bytes/s as nccl-tests define it, so it compares with a link's."""
    size = _GPU_BYTES if device.type == "cuda" else _CPU_BYTES
    buffer = torch.ones(size // 4, device=device)
    dist.all_reduce(buffer)
    right = bool((buffer == workers).all())
    buffer.zero_()
    _finish(device)
    dist.barrier()
    begin = time.perf_counter()
    for _ in range(_ROUNDS):
        dist.all_reduce(buffer)
    _finish(device)
    seconds = (time.perf_counter() - begin) / _ROUNDS
    return {"right": right, "busbw": 2 * (workers - 1) / workers * size / seconds, "bytes": size}


def decoding(folder: Path) -> dict[str, Any]:
    """Decodes a JPEG as the trainer does; images/s of one core."""
    path = folder / "image.jpg"
    noise = np.random.default_rng(0).normal(0, 12, (_IMAGE[1], _IMAGE[0], 3))
    ramp = np.linspace(0, 255, _IMAGE[0])[None, :, None]
    Image.fromarray((noise + ramp).clip(0, 255).astype(np.uint8)).save(path, quality=85)
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < _TRIAL_S:
        decode(path, 3)
        count += 1
    return {"images_per_second": count / (time.perf_counter() - begin)}


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(main())
