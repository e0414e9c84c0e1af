"""Pretrained weights: found by name or file, and loaded into a model whose head may have another size."""

import difflib
import logging
import re
from collections import OrderedDict
from collections.abc import Container, Mapping
from pathlib import Path

from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from trainer.config.likeness import likely_models
from trainer.config.schema import ModelConfig
from trainer.errors import ConfigError
from trainer.model import registry
from trainer.model.files import download, read_state
from trainer.preprocessing import Preprocessing

_LOG = logging.getLogger(__name__)
_SHOWN = 3
_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
# The published DenseNet files name their layers `norm.1`, as modules can no longer be called; the pattern is
# torchvision.models.densenet's.
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var))$")


def find_weights(config: ModelConfig) -> WeightsEnum | Path | None:
    """What `model.weights` stands for: torchvision's weights, a file, or nothing. Fetches and reads nothing.

    Raises:
        ConfigError: no weights of that name for this model.
    """
    wanted = config.weights
    if wanted is None:
        return None
    path = Path(wanted).expanduser()
    if path.suffix.lower() in _SUFFIXES or "/" in wanted:
        return path
    if config._target_ is not None:
        raise ConfigError(
            f"model.weights={wanted}: a model given by _target_ has no weights by name",
            "give a .pth or .safetensors file, or model.weights=null",
        )
    registry.builder(config.name)
    enum = registry.weights_enum(config.name)
    if enum is None:
        raise ConfigError(f"{config.name} has no pretrained weights", "model.weights=null, or a file")
    known = {name.upper(): member for name, member in enum.__members__.items()}
    member = known.get(wanted.rsplit(".", 1)[-1].upper())
    if member is None:
        close = difflib.get_close_matches(wanted.upper(), known, n=1, cutoff=0.6)
        hint = f"did you mean model.weights={close[0]}? " if close else ""
        raise ConfigError(
            f"{config.name} has no weights {wanted}",
            f"{hint}It has {', '.join(sorted(known))}, or give a file",
        )
    found: WeightsEnum = member
    return found


def weights_preprocessing(config: ModelConfig) -> Preprocessing | None:
    """The preprocessing that torchvision's weights were trained for; None for files and for no weights.

    Raises:
        ConfigError: as `find_weights`.
    """
    source = find_weights(config)
    if source is None or isinstance(source, Path):
        return None
    transforms = source.transforms()
    return Preprocessing(
        image_size=transforms.crop_size[0],
        resize_size=transforms.resize_size[0],
        channels=len(transforms.mean),
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        interpolation=transforms.interpolation.value,
    )


def load_weights(model: nn.Module, source: WeightsEnum | Path, *, num_classes: int, label: str) -> None:
    """Loads weights into a model that was built for `num_classes`.

    A head of another size keeps its fresh initial values; everything else must agree in name and shape.

    Args:
        model: the network.
        source: of `find_weights`.
        num_classes: the size of the model's head.
        label: the model's name, for messages.

    Raises:
        ConfigError: there is no such file, or it is damaged, unsafe, or of another architecture.
        UnfitError: the download failed.
    """
    if isinstance(source, Path) and not source.is_file():
        raise ConfigError(f"model.weights={source} is not a file", "give the path of a .pth or .safetensors file")
    path = source if isinstance(source, Path) else download(source.url)
    state = _matched(read_state(path), model)
    own = model.state_dict()
    common = [key for key in own if key in state]
    differing = [key for key in common if own[key].shape != state[key].shape]
    head = _head_keys(own, state, differing, num_classes)
    if strange := misfits(own, state, but=head):
        guess = next(iter(likely_models({key: value.shape for key, value in state.items()}) - {label.lower()}), None)
        raise ConfigError(
            f"{path} does not fit {label}: {len(common) - len(differing)} of its {len(state)} tensors agree; {strange}",
            f"its size says model.name={guess}" if guess else "give model.name and model.args of the file's model",
        )
    body = OrderedDict((key, value) for key, value in state.items() if key not in head)
    # MNASNet refuses a state without a version; ours agrees with the model already.
    vars(body)["_metadata"] = getattr(own, "_metadata", {})
    model.load_state_dict(body, strict=False)
    if head:
        classes = state[head[0]].shape[0]
        _LOG.info("%s: %d tensors; new head for %d classes instead of %d", path, len(body), num_classes, classes)
    else:
        _LOG.info("%s: all %d tensors", path, len(body))


def misfits(own: Mapping[str, Tensor], state: Mapping[str, Tensor], *, but: Container[str] = ()) -> str:
    """What keeps a state from being a model's, in words; empty where nothing does.

    Args:
        own: the model's state.
        state: the file's.
        but: tensors whose shapes may differ.
    """
    strange = [f"{key} is not in the file" for key in own if key not in state]
    strange += [f"{key} is not in the model" for key in state if key not in own]
    strange += [
        f"{key} is {_shape(state[key])} in the file, {_shape(own[key])} in the model"
        for key in own
        if key in state and key not in but and own[key].shape != state[key].shape
    ]
    more = f"; and {len(strange) - _SHOWN} more like these" if len(strange) > _SHOWN else ""
    return "; ".join(strange[:_SHOWN]) + more


def _matched(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The state with the known differences between published files and models evened out."""
    own = model.state_dict()
    state = {_OLD_DENSENET.sub(r"\1\2", key): value for key, value in state.items()}
    for key, value in own.items():
        # Files from before torch 0.4.1 do not count batches.
        if key.endswith(".num_batches_tracked"):
            state.setdefault(key, value)
    # Auxiliary heads serve training only; a model built without them takes a file that has them.
    auxiliary = {"aux1", "aux2", "AuxLogits"}
    present = {key.split(".", 1)[0] for key in own}
    state = {k: v for k, v in state.items() if k.split(".", 1)[0] not in auxiliary - present}
    if isinstance(model, VisionTransformer) and "encoder.pos_embedding" in state:
        hidden = state["encoder.pos_embedding"].shape[-1]
        if hidden == own["encoder.pos_embedding"].shape[-1]:
            state = dict(interpolate_embeddings(model.image_size, model.patch_size, OrderedDict(state)))
    return state


def _head_keys(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], differing: list[str], num_classes: int
) -> list[str]:
    """The tensors that differ only because the file knows another number of classes.

    No family's names are needed: a head's tensors are `num_classes` long in the model, all the same other
    length in the file, and equal in their other dimensions.
    """
    candidates = [
        key
        for key in differing
        if own[key].ndim == state[key].ndim > 0
        and own[key].shape[0] == num_classes
        and own[key].shape[1:] == state[key].shape[1:]
    ]
    return candidates if len({state[key].shape[0] for key in candidates}) == 1 else []


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a single number"
