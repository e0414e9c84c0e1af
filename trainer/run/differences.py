"""What differs among the workers of a job, or their nodes, that should be the same. Pure; standard library only."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.cores import as_list
from trainer.wording import plural

# Each node has its own GPUs and temporary files, and each process its own place in the job.
_OWN = re.compile(
    r"^(CUDA_VISIBLE_DEVICES|NVIDIA_VISIBLE_DEVICES|PACELINE_.*|TORCH_FR_DUMP_.*|TORCH_NCCL_DEBUG_INFO_.*"
    r"|.*_CACHE_(DIR|PATH))$"
)
_MOST_NAMED, _MOST_LINES, _LONGEST = 6, 3, 120


def in_words(workers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Differences, each in a line: `node 1 (gpu07) has torch 2.13.0, the other 7 have 2.14.1`.

    Args:
        workers: what each has found, as `surroundings.found` and the trainer's own add to it, with `node`, `host` and
            `rank`; without `rank` they are nodes.
    """
    facts = [_facts(worker) for worker in workers]
    names = dict.fromkeys(name for of in facts for name in of)
    return [
        _line(name, [of.get(name) for of in facts], workers)
        for name in names
        if any(of.get(name) != facts[0].get(name) for of in facts)
    ]


def shortened(lines: Sequence[str], where: str) -> list[str]:
    """The first few differences, and where the others are."""
    if len(lines) <= _MOST_LINES:
        return list(lines)
    more = len(lines) - _MOST_LINES + 1
    return [*lines[: _MOST_LINES - 1], f"{plural(more, 'further difference')} among the workers: {where}"]


def common(workers: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The variables of most workers: what a variable is for the most of them, if it is set there."""
    names = {name for worker in workers for name in worker["variables"]}
    most = {name: Counter(worker["variables"].get(name) for worker in workers).most_common(1)[0][0] for name in names}
    return {name: value for name, value in sorted(most.items()) if value is not None}


def beside(variables: Mapping[str, str], usual: Mapping[str, str]) -> dict[str, str | None]:
    """What of a worker's variables is not as usual; None: it is not set there."""
    names = sorted(variables.keys() | usual.keys())
    return {name: variables.get(name) for name in names if variables.get(name) != usual.get(name)}


def _facts(worker: Mapping[str, Any]) -> dict[str, str]:
    """What should be the same, by how it is called in a line."""
    versions = {name: worker[name] for name in ("python", "driver") if worker.get(name)}
    gpu = {
        "GPU" if name == "name" else name: of for name, of in worker.get("gpu", {}).items() if name != "memory_bytes"
    }
    variables = {f"{name}=": value for name, value in worker["variables"].items() if not _OWN.match(name)}
    return {name: str(value) for name, value in {**versions, **worker["packages"], **gpu, **variables}.items()}


def _line(name: str, values: Sequence[str | None], workers: Sequence[Mapping[str, Any]]) -> str:
    by_node: dict[int, set[str | None]] = {}
    for worker, value in zip(workers, values, strict=True):
        by_node.setdefault(worker["node"], set()).add(value)
    hosts = {worker["node"]: worker["host"] for worker in workers}
    if all(len(of) == 1 for of in by_node.values()):
        groups = _grouped({node: next(iter(of)) for node, of in by_node.items()})
        parts = [_who(nodes, "node", hosts) for nodes in groups.values()]
    else:
        groups = _grouped({worker["rank"]: value for worker, value in zip(workers, values, strict=True)})
        parts = [_who(ranks, "rank") for ranks in groups.values()]
    last = list(groups.values())[-1]
    if len(last) > 1:
        parts[-1] = f"the other {len(last)} have"
    written = [_value(name, value, is_first=not at) for at, value in enumerate(groups)]
    return ", ".join(f"{who} {what}" for who, what in zip(parts, written, strict=True))


def _grouped(values: Mapping[int, str | None]) -> dict[str | None, list[int]]:
    """Numbers by value: the value of the most is the last."""
    groups: dict[str | None, list[int]] = {}
    for number, value in values.items():
        groups.setdefault(value, []).append(number)
    return dict(sorted(groups.items(), key=lambda group: (len(group[1]), group[1][0] == 0)))


def _who(numbers: Sequence[int], noun: str, hosts: Mapping[int, str] | None = None) -> str:
    if len(numbers) == 1:
        host = f" ({hosts[numbers[0]]})" if hosts else ""
        return f"{noun} {numbers[0]}{host} has"
    runs = as_list(numbers).split(",")
    more = f" ... ({len(numbers)} of them)" if len(runs) > _MOST_NAMED else ""
    return f"{noun}s {','.join(runs[:_MOST_NAMED])}{more} have"


def _value(name: str, value: str | None, *, is_first: bool) -> str:
    if value is None:
        return f"no {name.rstrip('=')}" if is_first else "none"
    shown = value if len(value) <= _LONGEST else f"{value[:_LONGEST]} ..."
    if not is_first:
        return shown or "an empty one"
    return f"{name}{shown}" if name.endswith("=") else f"{name} {shown}"
