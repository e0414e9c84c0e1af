"""Which tests share a process when several run at once: those of a file, and all that share the one Slurm."""

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling


class _Sharing(LoadFileScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return "slurm" if nodeid.startswith("tests/slurm/") else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> _Sharing:
    return _Sharing(config, log)
