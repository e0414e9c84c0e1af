"""Every model by name, with the right head; anybody's model by import path."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision import models

from trainer.config.schema import ModelConfig
from trainer.errors import ConfigError
from trainer.model import registry
from trainer.model.build import build_model
from trainer.model.heads import logits_and_aux

CLASSES = 7
TORCHVISION = models.list_models(module=models)
AUXILIARY_HEADS = {"inception_v3": 1, "googlenet": 2}


class EmptyOnMeta(TorchFunctionMode):
    """Parameters take no memory and no time to initialise; what constructors compute stays real."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def smallest_of_each_family() -> list[str]:
    """The model with the fewest parameters of each of torchvision's files, each a family of its own."""
    families: dict[str, tuple[int, str]] = {}
    for name in TORCHVISION:
        parameters = min(member.meta["num_params"] for member in models.get_model_weights(name))
        family = models.get_model_builder(name).__module__
        families[family] = min(families.get(family, (parameters, name)), (parameters, name))
    return sorted(name for _, name in families.values())


@pytest.mark.parametrize("name", TORCHVISION)
def test_every_torchvision_classifier_gets_heads_for_the_number_of_classes(name: str) -> None:
    with EmptyOnMeta():
        model = build_model(ModelConfig(name=name), num_classes=CLASSES, channels=3)
    outputs = [getattr(m, "out_features", None) or getattr(m, "out_channels", None) for m in model.modules()]
    assert outputs.count(CLASSES) == 1 + AUXILIARY_HEADS.get(name, 0)
    assert 1000 not in outputs


@pytest.mark.parametrize("name", smallest_of_each_family())
def test_every_family_gives_logits_and_auxiliary_logits_in_training(name: str) -> None:
    with EmptyOnMeta():
        model = build_model(ModelConfig(name=name), num_classes=CLASSES, channels=3)
    size = 299 if name == "inception_v3" else 224
    logits, auxiliary = logits_and_aux(model.to("meta").train()(torch.empty(2, 3, size, size, device="meta")))
    assert logits.shape == (2, CLASSES)
    assert [aux.shape for aux in auxiliary] == [(2, CLASSES)] * AUXILIARY_HEADS.get(name, 0)


@pytest.mark.parametrize("name", ["resnet18", "MobileNet_V3_Small", "squeezenet1_1", "shufflenet_v2_x0_5"])
def test_a_built_model_computes(name: str) -> None:
    model = build_model(ModelConfig(name=name), num_classes=3, channels=3).eval()
    logits = model(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 3)
    assert torch.isfinite(logits).all()
    assert all(p.dtype == torch.float32 and p.device.type == "cpu" for p in model.parameters())


def test_the_same_seed_gives_the_same_initial_weights() -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(build_model(ModelConfig(name="small_resnet"), num_classes=10, channels=1).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])


def test_a_vit_is_built_for_the_size_of_the_images() -> None:
    with EmptyOnMeta():
        model = build_model(ModelConfig(name="vit_b_32"), num_classes=CLASSES, channels=3, image_size=64)
    assert model.to("meta").eval()(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, CLASSES)


@pytest.mark.parametrize(("name", "size"), [("vgg11", 31), ("inception_v3", 74), ("densenet121", 28), ("alexnet", 62)])
def test_images_too_small_for_the_network_are_refused_with_the_smallest_size(name: str, size: int) -> None:
    with pytest.raises(ConfigError) as refused:
        build_model(ModelConfig(name=name), num_classes=CLASSES, channels=3, image_size=size)
    assert f"data.image_size={size + 1}" in refused.value.fix


@pytest.mark.parametrize(
    ("name", "size", "fix"),
    [
        ("vit_b_16", 28, "data.image_size=16 or data.image_size=32"),
        ("ViT_H_14", 8, "data.image_size=14"),
        ("maxvit_t", 256, "data.image_size=224 or data.image_size=448"),
    ],
)
def test_images_of_a_size_that_does_not_divide_are_refused_with_the_nearest_that_do(
    name: str, size: int, fix: str
) -> None:
    with EmptyOnMeta(), pytest.raises(ConfigError, match=f"these have {size} pixels a side") as refused:
        build_model(ModelConfig(name=name), num_classes=CLASSES, channels=3, image_size=size)
    assert refused.value.fix == fix


@pytest.mark.parametrize("name", ["efficientnet_v2_s", "swin_t"])
def test_models_whose_weights_name_a_larger_size_still_take_small_images(name: str) -> None:
    with EmptyOnMeta():
        model = build_model(ModelConfig(name=name), num_classes=CLASSES, channels=3, image_size=32)
    assert model.to("meta").eval()(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, CLASSES)


def test_a_misspelt_name_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError) as refused:
        build_model(ModelConfig(name="ResNet-50"), num_classes=2, channels=3)
    assert "model.name=resnet50?" in refused.value.fix
    with pytest.raises(ConfigError) as refused:
        build_model(ModelConfig(name="efficentnet_b0"), num_classes=2, channels=3)
    assert "model.name=efficientnet_b0?" in refused.value.fix


def test_a_detector_is_not_taken_for_a_classifier() -> None:
    with pytest.raises(ConfigError, match="not an image classification model"):
        build_model(ModelConfig(name="fasterrcnn_resnet50_fpn"), num_classes=2, channels=3)


def test_a_torchvision_model_refuses_grey_images_and_says_what_to_set() -> None:
    assert registry.input_channels(ModelConfig(name="resnet18")) == 3
    with pytest.raises(ConfigError) as refused:
        build_model(ModelConfig(name="resnet18"), num_classes=2, channels=1)
    assert "data.channels=3" in refused.value.fix


@pytest.mark.parametrize("channels", [1, 3])
def test_our_model_takes_what_the_data_has(channels: int) -> None:
    assert registry.input_channels(ModelConfig(name="small_resnet")) is None
    model = build_model(ModelConfig(name="SMALL_RESNET"), num_classes=4, channels=channels).eval()
    for side in (8, 28, 33):
        assert model(torch.randn(2, channels, side, side)).shape == (2, 4)


def test_constructor_arguments_come_from_the_configuration() -> None:
    narrow = build_model(ModelConfig(name="small_resnet", args={"width": 4}), num_classes=4, channels=1)
    wide = build_model(ModelConfig(name="small_resnet", args={"width": 8}), num_classes=4, channels=1)
    assert sum(p.numel() for p in wide.parameters()) > 3 * sum(p.numel() for p in narrow.parameters())


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"widht": 4}, "widht"),
        ({"num_classes": 4}, "comes from the data"),
        ({"in_channels": 3}, "data.channels"),
    ],
)
def test_wrong_constructor_arguments_are_refused(args: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_model(ModelConfig(name="small_resnet", args=args), num_classes=4, channels=1)


def test_channels_last_changes_the_memory_format_and_not_the_result() -> None:
    def logits(channels_last: bool) -> tuple[torch.Tensor, bool]:
        torch.manual_seed(0)
        model = build_model(ModelConfig(channels_last=channels_last), num_classes=4, channels=3).eval()
        weight = next(m.weight for m in model.modules() if isinstance(m, nn.Conv2d))
        torch.manual_seed(1)
        return model(torch.randn(2, 3, 28, 28)), weight.is_contiguous(memory_format=torch.channels_last)

    (plain, was_last), (last, is_last) = logits(False), logits(True)
    assert (was_last, is_last) == (False, True)
    torch.testing.assert_close(plain, last)


class Flat(nn.Module):
    """A user's model that wants to know everything."""

    def __init__(self, num_classes: int, in_channels: int, image_size: int, hidden: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(in_channels * image_size**2, hidden), nn.Linear(hidden, num_classes)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


def broken(**_: Any) -> nn.Module:
    raise RuntimeError("no such layer")


def fixed() -> nn.Module:
    return nn.Identity()


def nothing() -> str:
    return "not a module"


def test_your_own_model_is_told_what_it_asks_for() -> None:
    config = ModelConfig(_target_=f"{__name__}.Flat", args={"hidden": 5})
    model = build_model(config, num_classes=6, channels=1, image_size=9)
    assert registry.input_channels(config) is None
    assert model(torch.randn(2, 1, 9, 9)).shape == (2, 6)
    assert isinstance(model, nn.Module)
    assert next(model.parameters()).shape[0] == 5


def test_your_own_model_with_keyword_arguments_gets_the_number_of_classes() -> None:
    config = ModelConfig(_target_="torchvision.models.resnet18")
    model = build_model(config, num_classes=6, channels=3)
    assert model.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 6)
    config = ModelConfig(_target_="torchvision.models.resnet18", args={"num_classes": 5})
    assert build_model(config, num_classes=6, channels=3).eval()(torch.randn(1, 3, 32, 32)).shape == (1, 5)


def test_your_own_model_without_arguments_is_called_without() -> None:
    assert isinstance(build_model(ModelConfig(_target_=f"{__name__}.fixed"), num_classes=6, channels=3), nn.Identity)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("no_such_package.Model", "cannot be imported: .*no_such_package"),
        ("torchvision.models.resnet19", "cannot be imported"),
        (f"{__name__}.broken", "RuntimeError: no such layer"),
        (f"{__name__}.nothing", "returned str"),
    ],
)
def test_a_bad_target_says_what_is_wrong(target: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_model(ModelConfig(_target_=target), num_classes=6, channels=3)
