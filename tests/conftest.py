"""Which tests share a process when several run at once: those of a file, and all that share the one Slurm."""

import pytest

_SLURM = "tests/slurm/"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # First, since they take the longest one after the other.
    items.sort(key=lambda item: not item.nodeid.startswith(_SLURM))
    for item in items:
        file = item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group("slurm" if file.startswith(_SLURM) else file))
