"""`paceline diff`: the first step at which two runs part, and what was different about them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from launcher import runs
from launcher.arguments import Parser
from trainer.errors import ConfigError
from trainer.run.parting import compare, trace_of
from trainer.rundir import RunDir, read_json
from trainer.wording import plural

HELP = """\
paceline diff RUN1 RUN2 [--json] [--dir DIR]

  paceline diff first-try second-try

The first step whose loss or weights are not the same bit for bit, and what differs in
configuration, code and machines. RUN is a run's name or its directory.

  --json      for programs
  --dir DIR   where the runs are (runs)

Exit codes: 0 all that both have recorded is the same, 1 they part, 2 wrong arguments."""

_SHOWN = 8
_COMMIT = 12


def main(arguments: Sequence[str]) -> int:
    """Compares two runs; returns the exit code."""
    parser = Parser("diff", HELP, flags=["--json"], values=["--dir"])
    options = parser.read(arguments)
    if options.help:
        return parser.print_text()
    one, other = runs.chosen("diff", options, count=2)
    for run in (one, other):
        if not run.steps.exists():
            raise ConfigError(f"run {run.name} has recorded no steps yet", "it writes them every log_every_steps")
    parting = compare(trace_of(one), trace_of(other))
    differences = dict(_differences(one, other))
    if options.json:
        print(json.dumps({"version": 1, "agree": parting.agree, **asdict(parting), "differences": differences}))
        return 0 if parting.agree else 1
    first, *more = parting.lines()
    print(f"{one.name} and {other.name}: {first}")
    for line in more:
        print(f"  {line}")
    for name, (was, now) in list(differences.items())[:_SHOWN]:
        print(f"  {name}: {was} | {now}")
    if len(differences) > _SHOWN:
        print(f"  and {plural(len(differences) - _SHOWN, 'more difference')} (--json has them)")
    if not differences and not parting.agree:
        print("  no difference in configuration, code or machines: data, or arithmetic that is not deterministic")
        print("  (deterministic=true makes it so); paceline replay RUN --step N does the steps again")
    return 0 if parting.agree else 1


def _differences(one: RunDir, other: RunDir) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """What may be the reason, the likeliest first: name -> (in the one, in the other)."""
    from trainer.config import differences, read_config

    configs = [read_config(run.config) for run in (one, other)]
    yield from differences(*configs).items()
    for name in ("log_every_steps", "micro_batch_size", "on_nonfinite"):
        values = tuple(getattr(config, name) for config in configs)
        if values[0] != values[1]:
            yield name, values
    jobs = [read_json(run.job) for run in (one, other)]
    codes = [_code(run, job) for run, job in zip((one, other), jobs, strict=True)]
    if codes[0] != codes[1]:
        yield "code", (codes[0][0], codes[1][0])
    for name in ("world_size", "python"):
        if jobs[0].get(name) != jobs[1].get(name):
            yield name, (jobs[0].get(name), jobs[1].get(name))
    workers = [read_json(run.environment).get("workers", []) for run in (one, other)]
    for name, pick in (("host", _host), ("device", _device)):
        seen = [", ".join(sorted({pick(worker) for worker in found})) for found in workers]
        if seen[0] != seen[1]:
            yield name, (seen[0], seen[1])
    packages = [job.get("packages", {}) for job in jobs]
    for name in sorted(packages[0].keys() | packages[1].keys()):
        versions = packages[0].get(name), packages[1].get(name)
        if versions[0] != versions[1]:
            yield name, versions


def _code(run: RunDir, job: dict[str, Any]) -> tuple[str, str]:
    """The commit, and what the working tree had beyond it."""
    code = job.get("code") or {}
    commit = code.get("commit", "unknown")[:_COMMIT]
    changes = run.code_diff.read_text(errors="replace") if run.code_diff.exists() else ""
    return f"{commit} with changes" if code.get("dirty") else commit, changes


def _host(worker: dict[str, Any]) -> str:
    return str(worker.get("host"))


def _device(worker: dict[str, Any]) -> str:
    return str(worker.get("gpu", {}).get("name") or str(worker.get("device", "")).split(":")[0])
