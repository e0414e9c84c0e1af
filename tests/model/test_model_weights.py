"""Pretrained weights from files, by name, and their preprocessing."""

from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn
from torchvision import models

from trainer.config.schema import ModelConfig
from trainer.errors import ConfigError, PacelineError
from trainer.model.build import build_model
from trainer.model.weights import load_weights, weights_preprocessing


def saved(path: Path, model: nn.Module, **wrapped: Any) -> str:
    """The model's state in a file, filled with values that no initialisation gives."""
    state = model.state_dict()
    for number, value in enumerate(state.values()):
        value.copy_(torch.full_like(value, number % 7 + 1))
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save({**wrapped, "model": state} if wrapped else state, path)
    return str(path)


def refused(config: ModelConfig, num_classes: int = 10) -> PacelineError:
    with pytest.raises(PacelineError) as error:
        build_model(config, num_classes=num_classes, channels=3)
    assert len(str(error.value)) < 600
    return error.value


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_a_file_whose_head_fits_is_loaded_whole(tmp_path: Path, suffix: str) -> None:
    source = models.get_model("squeezenet1_1", num_classes=5)
    file = saved(tmp_path / f"w{suffix}", source)
    model = build_model(ModelConfig(name="squeezenet1_1", weights=file), num_classes=5, channels=3)
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("resnet18", {"fc.weight", "fc.bias"}),
        ("squeezenet1_1", {"classifier.1.weight", "classifier.1.bias"}),
        ("mobilenet_v3_small", {"classifier.3.weight", "classifier.3.bias"}),
        ("densenet121", {"classifier.weight", "classifier.bias"}),
    ],
)
def test_a_head_of_another_size_is_new_and_all_else_is_loaded(tmp_path: Path, name: str, head: set[str]) -> None:
    source = models.get_model(name)
    file = saved(tmp_path / "w.pth", source)
    model = build_model(ModelConfig(name=name, weights=file), num_classes=5, channels=3)
    theirs = source.state_dict()
    fresh = {
        key
        for key, value in model.state_dict().items()
        if value.shape != theirs[key].shape or not torch.equal(value, theirs[key])
    }
    assert fresh == head


def test_googlenet_takes_a_file_with_auxiliary_heads_and_leaves_them_out(tmp_path: Path) -> None:
    source = models.get_model("googlenet", num_classes=9, init_weights=False)
    config = ModelConfig(name="googlenet", weights=saved(tmp_path / "w.pth", source))
    model = build_model(config, num_classes=4, channels=3)
    assert torch.equal(model.state_dict()["conv1.conv.weight"], source.state_dict()["conv1.conv.weight"])
    assert not [key for key in model.state_dict() if key.startswith("aux")]
    assert getattr(model, "transform_input", None) is True


def test_without_loading_the_architecture_is_the_same_as_with(tmp_path: Path) -> None:
    source = models.get_model("googlenet", num_classes=4, init_weights=False)
    config = ModelConfig(name="googlenet", weights=saved(tmp_path / "w.pth", source))
    loaded = build_model(config, num_classes=4, channels=3)
    empty = build_model(config, num_classes=4, channels=3, pretrained=False)
    assert loaded.state_dict().keys() == empty.state_dict().keys()
    assert not torch.equal(next(loaded.parameters()), next(empty.parameters()))


def test_whoever_loads_a_state_afterwards_needs_no_file(tmp_path: Path) -> None:
    config = ModelConfig(name="squeezenet1_1", weights=str(tmp_path / "gone.pth"))
    assert weights_preprocessing(config) is None
    build_model(config, num_classes=4, channels=3, pretrained=False)
    assert "gone.pth is not a file" in refused(config).problem


def test_versioned_modules_load_from_a_file_without_versions(tmp_path: Path) -> None:
    source = models.get_model("mnasnet0_5")
    config = ModelConfig(name="mnasnet0_5", weights=saved(tmp_path / "w.safetensors", source))
    model = build_model(config, num_classes=4, channels=3)
    assert torch.equal(next(model.parameters()), next(source.parameters()))


def test_the_old_layer_names_of_published_densenets_are_understood(tmp_path: Path) -> None:
    source = models.get_model("densenet121")
    source_state = source.state_dict()
    old = OrderedDict(
        (key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."), value)
        for key, value in source_state.items()
        if not key.endswith("num_batches_tracked")
    )
    assert any("norm.1" in key for key in old)
    torch.save(old, tmp_path / "densenet121-a639ec97.pth")
    config = ModelConfig(name="densenet121", weights=str(tmp_path / "densenet121-a639ec97.pth"))
    model = build_model(config, num_classes=4, channels=3)
    key = "features.denseblock1.denselayer1.conv2.weight"
    assert torch.equal(model.state_dict()[key], source_state[key])


def test_prefixes_and_wrappers_of_training_programs_are_taken_off(tmp_path: Path) -> None:
    source = models.get_model("squeezenet1_1", num_classes=5)
    state = {f"module._orig_mod.{key}": value for key, value in source.state_dict().items()}
    torch.save({"model": state, "epoch": 3, "args": Namespace(lr=0.1)}, tmp_path / "w.pth")
    config = ModelConfig(name="squeezenet1_1", weights=str(tmp_path / "w.pth"))
    model = build_model(config, num_classes=5, channels=3)
    assert torch.equal(next(model.parameters()), next(source.parameters()))


def test_a_vit_stretches_its_positions_to_another_image_size(tmp_path: Path) -> None:
    def vit(size: int, classes: int) -> nn.Module:
        return models.VisionTransformer(
            image_size=size,
            patch_size=8,
            num_layers=1,
            num_heads=2,
            hidden_dim=16,
            mlp_dim=16,
            num_classes=classes,
        )

    source, model = vit(32, 9), vit(64, 4)
    file = Path(saved(tmp_path / "w.pth", source))
    load_weights(model, file, num_classes=4, label="vit")
    positions = model.state_dict()["encoder.pos_embedding"]
    assert positions.shape == (1, 65, 16)
    assert torch.equal(positions[:, 0], source.state_dict()["encoder.pos_embedding"][:, 0])


def test_weights_work_for_your_own_model(tmp_path: Path) -> None:
    source = models.get_model("squeezenet1_1", num_classes=9)
    config = ModelConfig(_target_="torchvision.models.squeezenet1_1", weights=saved(tmp_path / "w.pth", source))
    model = build_model(config, num_classes=5, channels=3)
    assert torch.equal(next(model.parameters()), next(source.parameters()))


def test_a_file_of_another_architecture_is_refused_and_the_right_name_is_guessed(tmp_path: Path) -> None:
    file = saved(tmp_path / "w.pth", models.get_model("resnet34", num_classes=12))
    error = refused(ModelConfig(name="resnet18", weights=file))
    assert isinstance(error, ConfigError)
    assert "of its 218 tensors agree" in error.problem
    assert error.problem.endswith("; and 93 more like these")
    assert "model.name=resnet34" in error.fix


def test_a_file_of_another_width_is_refused(tmp_path: Path) -> None:
    file = saved(
        tmp_path / "w.pth", build_model(ModelConfig("small_resnet", args={"width": 8}), num_classes=10, channels=3)
    )
    error = refused(ModelConfig("small_resnet", weights=file))
    assert "stem.0.weight is 8x3x3x3 in the file, 16x3x3x3 in the model" in error.problem
    assert "model.args" in error.fix


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    for suffix in (".pth", ".safetensors"):
        whole = Path(saved(tmp_path / f"w{suffix}", models.get_model("squeezenet1_1")))
        for name, content in (
            ("cut", whole.read_bytes()[:100_000]),
            ("empty", b""),
            ("page", b"<html>404</html>"),
        ):
            file = tmp_path / f"{name}{suffix}"
            file.write_bytes(content)
            error = refused(ModelConfig(name="squeezenet1_1", weights=str(file)))
            assert isinstance(error, ConfigError)
            assert str(file) in error.problem
            assert "download it again" in error.fix, (name, suffix, str(error))


class Innocent:
    """Stands for a pickled class of somebody's training program."""


def test_a_file_with_python_objects_is_refused_unread(tmp_path: Path) -> None:
    torch.save({"model": {}, "trainer": Innocent()}, tmp_path / "w.pth")
    error = refused(ModelConfig(name="resnet18", weights=str(tmp_path / "w.pth")))
    assert "Python objects" in error.problem
    assert "state_dict()" in error.fix


def test_something_else_than_a_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "w.pth")
    error = refused(ModelConfig(name="resnet18", weights=str(tmp_path / "w.pth")))
    assert "not a state dict" in error.problem


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (ModelConfig(name="resnet50", weights="IMAGENET1K_V3"), "did you mean model.weights=IMAGENET1K_V"),
        (ModelConfig(name="resnet50", weights="IMAGENET1K_V3"), "DEFAULT, IMAGENET1K_V1, IMAGENET1K_V2"),
        (ModelConfig(name="resnet18", weights="no/such/file.pth"), "is not a file"),
        (ModelConfig(name="resnet18", weights="missing.safetensors"), "is not a file"),
        (ModelConfig(name="small_resnet", weights="DEFAULT"), "no pretrained weights"),
        (ModelConfig(_target_="torchvision.models.resnet18", weights="DEFAULT"), "no weights by name"),
        (ModelConfig(name="resnet19", weights="DEFAULT"), "did you mean model.name=resnet"),
    ],
)
def test_unknown_weights_are_refused_with_a_way_out(config: ModelConfig, words: str) -> None:
    assert words in str(refused(config))


def test_the_preprocessing_is_the_weights_own() -> None:
    given = weights_preprocessing(ModelConfig(name="ResNet50", weights="imagenet1k_v2"))
    assert given is not None
    assert (given.image_size, given.resize_size, given.interpolation) == (224, 232, "bilinear")
    assert given.mean == pytest.approx((0.485, 0.456, 0.406))
    swag = weights_preprocessing(ModelConfig(name="vit_b_16", weights="IMAGENET1K_SWAG_E2E_V1"))
    assert swag is not None
    assert (swag.image_size, swag.interpolation) == (384, "bicubic")
    assert weights_preprocessing(ModelConfig(name="resnet50")) is None
