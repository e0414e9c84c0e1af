"""The image of a safetensors file in memory: the library reads it, bit for bit, and later changes cannot leak in."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from trainer import checkpoint, commit
from trainer.checkpoint import Checkpoint, Image
from trainer.errors import ConfigError, TrainingError
from trainer.model.files import read_state


def of_every_kind() -> dict[str, torch.Tensor]:
    return {
        "model.weight": torch.randn(3, 5),
        "model.strided": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "model.transposed": torch.randn(4, 6).t(),
        "model.count": torch.tensor(7),
        "model.mask": torch.tensor([True, False, True]),
        "model.half": torch.randn(7, 3).half(),
        "model.brain": torch.randn(3).bfloat16(),
        "model.eight": torch.randn(5).to(torch.float8_e4m3fn),
        "model.none": torch.zeros(0, 3),
        "optimizer.0.exact": torch.randn(11, dtype=torch.float64),
    }


def content(image: Image) -> bytes:
    return b"".join(image.pieces())


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    bits = [tensor.contiguous().flatten().view(torch.uint8) if tensor.numel() else tensor for tensor in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(bits[0], bits[1])


def test_the_library_reads_every_dtype_and_layout_bit_for_bit() -> None:
    tensors = of_every_kind()
    image = Image(tensors)
    image.fill(tensors)
    found = load(content(image))
    assert found.keys() == tensors.keys()
    assert all(same(found[name].view(tensors[name].shape), tensors[name]) for name in tensors)
    assert len(content(image)) == image.nbytes


def test_an_image_is_filled_again_without_moving_and_later_changes_stay_out() -> None:
    tensors = of_every_kind()
    image = Image(tensors)
    image.fill(tensors)
    first = content(image)
    for tensor in tensors.values():
        tensor.zero_()
    assert content(image) == first
    assert image.fits(tensors)
    image.fill(tensors)
    assert not any(tensor.float().any() for tensor in load(content(image)).values())
    assert not image.fits({**tensors, "model.weight": torch.randn(5, 3)})
    assert not image.fits({**tensors, "model.weight": torch.randn(3, 5).double()})


def test_a_part_is_a_file_of_its_own_under_other_names(tmp_path: Path) -> None:
    tensors = of_every_kind()
    image = Image(tensors)
    image.fill(tensors)
    names = {name.removeprefix("model."): name for name in tensors if name.startswith("model.")}
    commit.replace_file(tmp_path / "weights" / "last.safetensors", image.part(names))
    found = load_file(tmp_path / "weights" / "last.safetensors")
    assert found.keys() == names.keys()
    assert all(same(found[name].view(tensors[here].shape), tensors[here]) for name, here in names.items())


def test_a_part_that_was_changed_after_it_was_written_is_refused_wherever_it_was(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(3.0), "b": torch.arange(4)}
    image, path = Image(tensors), tmp_path / "weights.safetensors"
    image.fill(tensors)
    commit.replace_file(path, image.part({"a": "a", "b": "b"}, {"step": "7"}))
    assert read_state(path).keys() == tensors.keys()
    content = path.read_bytes()
    # The step that it is of, a tensor's name, the first and the last byte of the tensors.
    for at in (content.index(b'"7"') + 1, content.index(b'"a"') + 1, len(content) - 4 * 8 - 3 * 4, len(content) - 1):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(ConfigError, match="is damaged: the checksum in it does not agree"):
            read_state(path)
    save_file(tensors, path)
    assert read_state(path).keys() == tensors.keys()


def test_a_checkpoint_is_read_as_it_was_written_and_by_plain_safetensors(tmp_path: Path) -> None:
    tensors = of_every_kind()
    folder = tmp_path / "checkpoints" / "step-00000007"
    checkpoint.save(folder, Checkpoint(tensors, {"step": 7, "nested": {"loss": 0.1}}))
    found = checkpoint.load(folder)
    assert found.state == {"step": 7, "nested": {"loss": 0.1}}
    plain = load_file(folder / "tensors.safetensors")
    assert all(same(found.tensors[name], plain[name]) for name in tensors)
    assert all(same(found.tensors[name].view(tensors[name].shape), tensors[name]) for name in tensors)


def test_a_dtype_that_the_file_cannot_hold_is_named() -> None:
    with pytest.raises(TrainingError, match=r"cannot hold model\.wave, which is torch\.complex128"):
        Image({"model.wave": torch.zeros(2, dtype=torch.complex128)})
