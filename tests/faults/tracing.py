"""Runs one save under strace, which ends it or makes a system call fail where it is told to."""

import functools
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as serialise

from tests.trainer_command import ROOT
from trainer import checkpoint
from trainer.checkpoint import Checkpoint
from trainer.rundir import RunDir

CALLS = "openat,write,fsync,fdatasync,rename,renameat,renameat2,mkdir,mkdirat,unlink,unlinkat,rmdir"
_LINE = re.compile(r"^(?:\d+ +)?(\w+)\((.*)")


@dataclass(frozen=True)
class Call:
    """A system call of the save: the `number`-th `name` of its process, from 1."""

    name: str
    number: int
    text: str


def tensors(step: int) -> dict[str, torch.Tensor]:
    """What the checkpoint of a step holds."""
    return {"model.a": torch.full((5000,), float(step)), "model.b": torch.arange(7) + step}


def prepare(run: RunDir, *steps: int) -> None:
    """Checkpoints of some steps, as an earlier attempt left them."""
    for step in steps:
        checkpoint.save(run.checkpoint(step), Checkpoint(tensors(step), {"step": step}))


def save(run: RunDir, step: int, *options: str, log: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Saves a step in a process of its own, under strace with these options."""
    source = run.path.parent / f"step-{step}.safetensors"
    if not source.exists():
        source.write_bytes(serialise(tensors(step)))
    trace = ["strace", "-f", "-qq", "-y", "-e", f"trace={CALLS}", "-o", str(log or os.devnull)]
    script = Path(__file__).with_name("one_save.py")
    return subprocess.run(
        [*trace, *options, sys.executable, str(script), str(run.path), str(step), str(source)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def calls(run: RunDir, step: int) -> list[Call]:
    """The system calls of a save of this step into this directory (which it changes), in their order."""
    log = run.path.parent / "trace"
    done = save(run, step, log=log)
    assert done.stdout == "saved", done.stderr
    seen: dict[str, int] = {}
    found: list[Call] = []
    begun = False
    for line in log.read_text().splitlines():
        if match := _LINE.match(line):
            name = match[1]
            seen[name] = seen.get(name, 0) + 1
            if begun:
                found.append(Call(name, seen[name], line))
            begun = begun or (name == "openat" and f'"{run.path}", O_RDONLY' in line)
    end = next(number for number, call in enumerate(found) if '"saved"' in call.text)
    assert end > 20, "the trace does not begin with the save"
    return found


def load(run: RunDir) -> int:
    """The step that a new attempt finds; its content must be that step's, bit for bit."""
    step, found, damaged = checkpoint.find_newest(run)
    assert found is not None
    assert not damaged, damaged
    assert found.state == {"step": step}
    assert found.tensors.keys() == tensors(step).keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in tensors(step).items())
    return step


@functools.cache
def why_not() -> str:
    """Why nothing can be traced here; empty where it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    done = subprocess.run(["strace", "-qq", "-e", "trace=none", "true"], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"strace may not trace here: {done.stderr.strip()}"


needs_strace = pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
