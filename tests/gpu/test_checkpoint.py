"""The image of a checkpoint in pinned memory: filling it is queued, and what is queued later cannot leak in."""

import pytest
import torch
from safetensors.torch import load

from trainer.checkpoint import Image

pytestmark = pytest.mark.gpu


def test_the_host_does_not_wait_and_later_steps_do_not_leak_in() -> None:
    tensors = {
        "model.weight": torch.randn(64, 64, 3, 3, device="cuda").contiguous(memory_format=torch.channels_last),
        "model.large": torch.randn(16 << 20, device="cuda"),
        "optimizer.weight.step": torch.tensor(3.0),
    }
    expected = {name: tensor.cpu().clone() for name, tensor in tensors.items()}
    image = Image(tensors)
    torch.cuda.synchronize()
    torch.cuda._sleep(500_000_000)
    event = torch.cuda.Event()
    event.record()
    image.fill(tensors)
    for tensor in tensors.values():
        tensor.add_(1)
    assert not event.query(), "the device is busy still, and the host is here"
    found = load(b"".join(image.pieces()))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    image.fill(tensors)
    found = load(b"".join(image.pieces()))
    assert torch.equal(found["model.large"], expected["model.large"] + 1)
