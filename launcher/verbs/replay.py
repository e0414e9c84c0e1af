"""`paceline replay`: does some steps of a run again, beside it, and says whether they come out as recorded."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher import runs
from launcher.arguments import Parser, typed
from trainer.answer import as_json
from trainer.config.overrides import with_overrides
from trainer.errors import ConfigError, TrainingError
from trainer.run import history
from trainer.run.history import Setup
from trainer.run.parting import trace_of
from trainer.rundir import RunDir, read_json
from trainer.wording import duration, plural

HELP = """\
paceline replay RUN --step N [--steps K] [--workers W] [data.root=DIR]

  paceline replay first-try --step 120             from the checkpoint before it
  paceline replay first-try --step 120 --steps 50  and the 49 after it

With the same samples, up to the next row of metrics; the run is not touched.
Says whether losses and weights come out as recorded, and if not: data, code or
hardware.

  --step N       the first step
  --steps K      how many (1)
  --workers W    processes (as many as the run had, or 1 without its GPUs)
  --dir DIR      where the runs are (runs)
  --json         for programs
  data.root=DIR  where the data is now, if it has moved since the last attempt

Exit codes: 0 as recorded, 1 not, 2 wrong arguments, 3 cannot be done here."""


_TURNS = 4
_WORD_S = 10.0


def main(arguments: Sequence[str]) -> int:
    """Replays some steps; returns the exit code."""
    parser = Parser("replay", HELP, flags=["--json"], values=["--step", "--steps", "--workers", "--dir"])
    options = parser.read(arguments)
    if options.help:
        return parser.print_text()
    overrides = [word for word in options.words if "=" in word]
    options.words = [word for word in options.words if word not in overrides]
    (run,) = runs.chosen("replay", options)
    if options.step is None:
        raise ConfigError("replay needs a step", f"{typed('replay', options.words[0])} --step N")
    if overrides:
        with_overrides(history.latest_config(run), overrides, may=history.MOVABLE, purpose="a replay")
    first = _number("--step", options.step)
    asked = first - 1 + _number("--steps", options.steps or "1")
    span = history.span_of(run, first)
    last = _last_step(run, asked, span.until)
    workers = _number("--workers", options.workers) if options.workers else _workers(span.setup)
    print(f"replaying run {run.name} to step {last:,} on {plural(workers, 'worker')}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="paceline-verdict-") as folder:
        verdict = Path(folder) / "verdict.json"
        several = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={workers}"] if workers > 1 else []
        replay = ["trainer.replay", str(run.path), str(verdict), str(first), str(last), *overrides]
        command = [sys.executable, *several, "-m", *replay]
        # Variables of a job that this may run in would make it a worker of that job.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PACELINE_")}
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            kept.pop(name, None)
        done = _replayed(command, kept)
        found = read_json(verdict)
    if not found:
        raise TrainingError(
            f"the replay itself failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}",
            f"see it whole: {' '.join(command)}",
        )
    code = int(found["code"])
    if options.json:
        not_compared = [last + 1, asked] if last < asked else None
        print(as_json(**found, steps=[first, min(last, asked)], not_compared=not_compared))
        return code
    for line in found["lines"]:
        print(line, file=sys.stderr if code > 1 else sys.stdout)
    if last < asked:
        print(_not_compared(run, span.setup, last + 1, asked))
    return code


def _replayed(command: Sequence[str], environment: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    """Runs a command to its end, and says now and then that it does."""
    began = time.monotonic()
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    with process:
        while True:
            try:
                out, err = process.communicate(timeout=_WORD_S)
            except subprocess.TimeoutExpired:
                print(f"  still at it, after {duration(time.monotonic() - began)}", file=sys.stderr)
            except BaseException:
                process.terminate()
                raise
            else:
                return subprocess.CompletedProcess(command, process.returncode, out, err)


def _not_compared(run: RunDir, setup: Setup, first: int, last: int) -> str:
    """Names the steps that were asked for and are of another set-up, and what does them again.

    Args:
        run: the run.
        setup: that of the steps before.
        first: the first of them, from 1.
        last: the last.
    """
    other = history.setup_at(run, first)
    changes = setup.differences(other).items()
    told = "; ".join(f"{name} {before}, then {now}" for name, (before, now) in changes)
    steps = f"step {first:,} is" if first == last else f"steps {first:,} to {last:,} are"
    more = f" --steps {last + 1 - first}" if last > first else ""
    return (
        f"not compared: {steps} from where attempt {other.attempt} went on with another set-up ({told}): "
        f"--step {first}{more} does that again"
    )


def _number(option: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{option} {text} is not a number from 1", f"{option} 1")
    return int(text)


def _last_step(run: RunDir, last: int, until: int | None) -> int:
    """The next step at or after `last` that has a digest to compare with, or at which the run had trouble.

    Args:
        run: the run.
        last: the last step that is asked for.
        until: the last one with the set-up of the first; None: the run's last.

    Raises:
        ConfigError: the run has not come that far.
    """
    rows = sorted(trace_of(run).digests)
    troubles = [row["step"] for row in history.course_of(run).troubles]
    after = [step for step in (*rows, *troubles) if step >= last]
    if not after:
        reached = max((*rows, *troubles), default=0)
        raise ConfigError(
            f"run {run.name} has recorded {plural(reached, 'step')}, so not step {last:,}", f"--step {reached}"
        )
    return min(after) if until is None else min(*after, until)


def _workers(setup: Setup) -> int:
    """As many as the attempt had, where they fit on this machine; several take turns on a core, slowly but exactly."""
    from launcher.gpus import count_gpus
    from trainer.cores import count_cpus

    return setup.workers if setup.workers <= (count_gpus() if setup.gpus else _TURNS * count_cpus()) else 1
