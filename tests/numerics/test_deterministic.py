"""deterministic=true gives the same run bit for bit, and says what it switches."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.numerics.runs import configuration, train_in
from tests.workers import alone
from trainer.config import Config
from trainer.run.parting import compare, trace_of
from trainer.rundir import RunDir
from trainer.worker import prepare


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    prepare(Config())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_deterministic_runs_are_the_same_bit_for_bit(precision: str, tmp_path: Path) -> None:
    traces = []
    for name in ("a", "b"):
        config = prepare(configuration([], deterministic=True, precision=precision))
        assert torch.are_deterministic_algorithms_enabled()
        error, said = train_in(alone(), tmp_path / name, config)
        assert error is None
        assert "deterministic: only algorithms that compute the same twice; slower" in said
        traces.append(trace_of(RunDir(tmp_path / name)))
    assert compare(*traces).agree
    error, _ = train_in(alone(), tmp_path / "c", prepare(configuration([], deterministic=True, seed=1)))
    assert error is None
    assert not compare(traces[0], trace_of(RunDir(tmp_path / "c"))).agree
