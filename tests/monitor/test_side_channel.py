"""The store that brings other nodes' samples to rank 0."""

from dataclasses import replace

import psutil

from tests.workers import run_workers
from trainer.distributed import World


def listening(world: World) -> list[str]:
    """The addresses at which this process takes connections for the store, once both have used it."""
    store = replace(world, local_rank=0, local_world_size=1).side_channel()
    assert store is not None
    store.set(str(world.rank), "here")
    assert store.get(str(1 - world.rank)) == b"here"
    connections = psutil.Process().net_connections("tcp")
    return [one.laddr.ip for one in connections if one.status == psutil.CONN_LISTEN and one.laddr.port == store.port]


def test_it_listens_on_the_interface_of_the_rendezvous_alone() -> None:
    assert run_workers(2, listening) == [["127.0.0.1"], []]
