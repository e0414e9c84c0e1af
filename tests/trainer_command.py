"""Runs the trainer's public commands as real processes."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.waiting import until

ROOT = Path(__file__).resolve().parent.parent
TRAINER = [sys.executable, "-m", "trainer"]
PACELINE = [sys.executable, "-m", "launcher", "run"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "trainer"]
DIGITS = ["recipe=digits", "tracking=none", "device=cpu", "precision=fp32"]


def environment() -> dict[str, str]:
    """One thread a worker, no GPU, no colours; torchrun's variables of an outer job left out."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PACELINE_", "TORCHELASTIC_"))}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "FORCE_COLOR", "WANDB_API_KEY"):
        kept.pop(name, None)
    return {**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "offline"}


def free_port() -> int:
    """A port that nobody listens on at present."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def rank_variables(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What torchrun tells a worker on one machine."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in {**ranks, **address}.items()}


def run(
    command: list[str], *arguments: str, cwd: Path | None = None, text_in: str | None = None
) -> "subprocess.CompletedProcess[str]":
    """Runs a command to its end."""
    return subprocess.run(
        [*command, *arguments],
        env=environment(),
        cwd=cwd or ROOT,
        input=text_in,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def succeed(command: list[str], *arguments: str, cwd: Path | None = None) -> str:
    """Runs a command that must end well; returns what it said."""
    done = run(command, *arguments, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


def interrupt(command: list[str], *arguments: str, when: Callable[[], bool], number: signal.Signals) -> tuple[int, str]:
    """Starts a command, sends it a signal as soon as `when()` holds, and returns exit code and stderr."""
    process = subprocess.Popen(
        [*command, *arguments],
        env=environment(),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    until(when, "the moment to send the signal", process)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    return process.returncode, said
