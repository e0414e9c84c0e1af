"""`paceline diff`: the first step at which two runs part, and what was different about them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher import runs
from launcher.arguments import Parser
from trainer.answer import as_json
from trainer.errors import ConfigError
from trainer.run import history
from trainer.run.history import Setup
from trainer.run.parting import compare, trace_of
from trainer.wording import plural

HELP = """\
paceline diff RUN1 RUN2 [--json | -q] [--dir DIR]

  paceline diff first-try second-try

The first step whose loss or weights are not the same bit for bit, and what
differs in the configuration, code and machines that trained it.
RUN is a run's name or its directory.

  --json      for programs
  -q          that step's number alone
  --dir DIR   where the runs are (runs)

Exit codes: 0 they are the same, 1 they part, 2 wrong arguments."""

_ROUNDING = ("log_every_steps", "micro_batch_size", "on_nonfinite")
_SHOWN = 8
_COMMIT = 12


def main(arguments: Sequence[str]) -> int:
    """Compares two runs; returns the exit code."""
    parser = Parser("diff", HELP, flags=["--json", "-q"], values=["--dir"])
    options = parser.read(arguments)
    if options.help:
        return parser.print_text()
    one, other = runs.chosen("diff", options, count=2)
    for run in (one, other):
        if not run.steps.exists():
            raise ConfigError(f"run {run.name} has recorded no steps yet", "it writes them every log_every_steps")
    parting = compare(trace_of(one), trace_of(other))
    # Whatever attempt has trained that step: the others' set-ups have nothing to do with it.
    sides = [history.setup_at(run, parting.first) for run in (one, other)]
    differences = dict(_differences(sides, [one.path, other.path]))
    if options.json:
        print(as_json(agree=parting.agree, **asdict(parting), differences=differences))
        return 0 if parting.agree else 1
    if options.q:
        print("" if parting.agree else f"{parting.first}\n", end="")
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


def _differences(sides: Sequence[Setup], folders: Sequence[Path]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """What may be the reason, the likeliest first: name -> (in the one, in the other)."""
    from trainer.config import differences

    configs = [side.config for side in sides]
    yield from differences(*configs).items()
    codes = [_code(side, folder) for side, folder in zip(sides, folders, strict=True)]
    if codes[0] != codes[1]:
        yield "code", (codes[0][0], codes[1][0])
    found: dict[str, list[Any]] = {
        **{name: [getattr(config, name) for config in configs] for name in _ROUNDING},
        "world_size": [side.workers for side in sides],
        "python": [side.python for side in sides],
        "host": [_all(side, _host) for side in sides],
        "device": [_all(side, _device) for side in sides],
    }
    packages = [side.packages for side in sides]
    for name in sorted(packages[0].keys() | packages[1].keys()):
        found[name] = [versions.get(name) for versions in packages]
    yield from ((name, (values[0], values[1])) for name, values in found.items() if values[0] != values[1])


def _code(side: Setup, folder: Path) -> tuple[str, str]:
    """The commit, and what the working tree had beyond it."""
    code = side.code or {}
    commit = code.get("commit", "unknown")[:_COMMIT]
    file = folder / code["diff"] if code.get("diff") else None
    changes = file.read_text(errors="replace") if file and file.exists() else ""
    return f"{commit} with changes" if code.get("dirty") else commit, changes


def _all(side: Setup, pick: Callable[[Mapping[str, Any]], str]) -> str:
    return ", ".join(sorted({pick(worker) for worker in side.seen}))


def _host(worker: Mapping[str, Any]) -> str:
    return str(worker.get("host"))


def _device(worker: Mapping[str, Any]) -> str:
    return str(worker.get("gpu", {}).get("name") or str(worker.get("device", "")).split(":")[0])
