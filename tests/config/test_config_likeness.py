"""Which model a state is of, told by shapes alone: the right one or none, and never another."""

from functools import partial

import pytest
import torch
from torchvision import models

from trainer.config.likeness import likely_models

_FAMILIES = [
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "maxvit_t", "mnasnet0_5",
    "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "resnet18", "resnext50_32x4d", "shufflenet_v2_x0_5",
    "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11_bn", "vit_b_16", "wide_resnet50_2",
]  # fmt: skip
_UNTOLD = {"googlenet", "inception_v3", "maxvit_t"}
"""Auxiliary heads, or a head without a bias."""


@pytest.mark.parametrize("name", _FAMILIES)
def test_a_state_is_known_whatever_its_number_of_classes(name: str) -> None:
    build = partial(models.get_model, name)
    if name in ("googlenet", "inception_v3"):
        build = partial(build, init_weights=False)
    for classes in (1000, 3):
        # A regnet's widths are computed with tensors.
        with torch.device("cpu" if name.startswith("regnet") else "meta"):
            state = build(num_classes=classes).state_dict()
        found = likely_models({key: value.shape for key, value in state.items()})
        assert found == {name} or (name in _UNTOLD and not found)
