"""Counting and averaging on a GPU: the same figures as on the CPU, and nothing that waits for the device."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from tests.workers import alone
from trainer.evaluate.metrics import Scores, Tally
from trainer.model.ema import Ema


@contextmanager
def no_waiting() -> Iterator[None]:
    """Whatever waits for the GPU raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("classes", [7, 1001])
def test_batches_are_counted_without_waiting_for_the_device(classes: int) -> None:
    draw = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(64, classes, generator=draw), torch.randint(-1, classes, (64,), generator=draw)) for _ in range(5)
    ]
    found: list[Scores] = []
    for device in ("cpu", "cuda"):
        tally = Tally(classes, torch.device(device))
        placed = [(logits.to(device), targets.to(device)) for logits, targets in batches]
        tally.update(*placed[0])
        if device == "cuda":
            with no_waiting():
                for batch in placed[1:]:
                    tally.update(*batch)
        else:
            for batch in placed[1:]:
                tally.update(*batch)
        found.append(tally.scores(alone()))
    expected, counted = found
    assert counted.figures == pytest.approx(expected.figures, abs=1e-6)
    assert torch.equal(counted.actual, expected.actual)
    assert torch.equal(counted.predicted, expected.predicted)
    assert torch.equal(counted.hits, expected.hits)


def test_the_average_is_updated_without_waiting_for_the_device() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)).cuda()
    ema = Ema(model, 0.99)
    with no_waiting():
        for update in range(1, 4):
            ema.update(update)
        ema.update(4, left_out=torch.ones((), device="cuda"))
        ema.follow_buffers()
    assert torch.allclose(ema.state()["0.weight"], dict(model.named_parameters())["0.weight"])
