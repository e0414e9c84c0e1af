"""Which cores the workers of a machine are bound to: those of their GPU's NUMA node. Pure, but for `look`.

torch has a binding of its own (`torchrun --numa-binding`). It asks CUDA where the GPUs are, which nothing may touch
before our workers are forked, it needs the program `numactl`, and it takes cores away where a NUMA node has no GPU.
Here as there a worker may use all the cores near its GPU, and the kernel divides them among the workers that share
them: those who have work take what others leave idle. Memory needs no policy beside that: Linux takes it from the NUMA
node of the core that first writes to it.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainer.cores import as_list, from_list
from trainer.wording import plural

_NODES = Path("/sys/devices/system/node")


@dataclass(frozen=True, slots=True)
class Topology:
    """Where the cores and GPUs of a machine are.

    Attributes:
        nodes: the cores that we may use, by NUMA node; only nodes that have some.
        distances: from each of them to each of them, as the firmware tells: 10 is the node itself.
        gpus: the NUMA node of each GPU that we may use, in CUDA's order; None where it is not known.
    """

    nodes: Mapping[int, frozenset[int]] = field(default_factory=dict)
    distances: Mapping[int, Mapping[int, int]] = field(default_factory=dict)
    gpus: tuple[int | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Binding:
    """Where workers run.

    Attributes:
        cores: each worker's, as the kernel writes them: 0-15,32-47; empty where they are not bound.
        share: cores of each worker at least, where those that have the same divide them evenly.
        why_not: why they are not bound, though the machine has several NUMA nodes.
    """

    cores: tuple[str, ...] = ()
    share: int = 0
    why_not: str = ""


def bind(topology: Topology, workers: int, *, on_gpus: bool, needed: int | None = None) -> Binding:
    """Binds each worker to the NUMA node of its GPU, and to further near ones where that has too few cores.

    Without GPUs the workers are dealt out over the nodes. Nothing is bound where that would cost a worker cores that
    it needs.

    Args:
        topology: the machine.
        workers: how many it has; the i-th has the i-th GPU.
        on_gpus: whether they have GPUs.
        needed: cores that are enough for a worker and its loading processes; None: its share of all.
    """
    everything = frozenset[int]().union(*topology.nodes.values())
    fair = len(everything) // workers
    nodes = sorted(topology.nodes)
    if len(nodes) < 2 or not fair:
        return Binding(share=fair)
    homes = [topology.gpus[i] if on_gpus else nodes[i * len(nodes) // workers] for i in range(workers)]
    for gpu, home in enumerate(homes):
        if home is None:
            return Binding(share=fair, why_not=f"the NUMA node of GPU {gpu} is not known")
        if home not in topology.nodes:
            return Binding(share=fair, why_not=f"none of the cores that we may use is on NUMA node {home}, GPU {gpu}'s")
    enough = min(fair, needed or fair)
    areas = _areas(topology, Counter(home for home in homes if home is not None), enough)
    share = min(len(cores) // homes.count(home) for home, cores in areas.items())
    if share < enough:
        what = "its GPU" if on_gpus else "its NUMA node"
        return Binding(
            share=fair, why_not=f"a worker would have {plural(share, 'core')} near {what}, and may need {enough}"
        )
    if all(cores == everything for cores in areas.values()):
        return Binding(share=fair)
    return Binding(cores=tuple(as_list(areas[home]) for home in homes if home is not None), share=share)


def _areas(topology: Topology, homes: Counter[int], enough: int) -> dict[int, frozenset[int]]:
    """The cores for the workers of each NUMA node that has any: its own, then the nearest ones that are nobody's.

    Args:
        topology: the machine.
        homes: how many workers each of them has.
        enough: cores after which a worker needs no more.
    """
    areas = {home: topology.nodes[home] for home in sorted(homes)}
    free = set(topology.nodes) - set(areas)
    while free:
        poorest = min(areas, key=lambda home: (len(areas[home]) // homes[home], home))
        if len(areas[poorest]) // homes[poorest] >= enough:
            break
        nearest = min(free, key=lambda node: (topology.distances.get(poorest, {}).get(node, 255), node))
        areas[poorest] |= topology.nodes[nearest]
        free.remove(nearest)
    return areas


def described(cores: Sequence[str]) -> str:
    """A binding in words: `workers 0-3 on cores 0-31, 4-7 on 32-63`."""
    groups = [(as_list(i for i, of in enumerate(cores) if of == one), one) for one in dict.fromkeys(cores)]
    (first, its), *others = groups
    return ", ".join(
        [
            f"worker{'s' if set('-,') & set(first) else ''} {first} on cores {its}",
            *(f"{who} on {one}" for who, one in others),
        ]
    )


def look(gpus: Sequence[int | None] = (), *, root: Path = _NODES) -> Topology:
    """This machine, as far as we may use it: our affinity already says what a cpuset, Slurm or taskset leave us.

    Args:
        gpus: the NUMA node of each GPU.
        root: where the kernel describes the NUMA nodes; one that is not there has none.
    """
    allowed = os.sched_getaffinity(0)
    found = {}
    for folder in root.glob("node[0-9]*"):
        if cores := from_list((folder / "cpulist").read_text()) & allowed:
            found[int(folder.name.removeprefix("node"))] = frozenset(cores)
    # A row of distances has one for each node that is online, those without cores among them.
    online = sorted(int(folder.name.removeprefix("node")) for folder in root.glob("node[0-9]*"))
    distances = {
        node: dict(zip(online, map(int, (root / f"node{node}" / "distance").read_text().split()), strict=False))
        for node in found
    }
    return Topology(dict(sorted(found.items())), distances, tuple(gpus))
