import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import pad
from torchvision.transforms import v2

from trainer.data.datasets import TensorImages
from trainer.data.sampler import mix_seed
from trainer.data.transforms import (
    BatchAugment,
    Normaliser,
    batch_augment,
    eval_transform,
    resolve_augment,
    sample_hash,
    train_transform,
)
from trainer.errors import ConfigError
from trainer.preprocessing import Preprocessing

SMALL = Preprocessing(28, 28, 1, (0.3,), (0.4,))
LARGE = Preprocessing(64, 80, 3, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def photo(width: int = 150, height: int = 100) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x % 256, y % 256, (x + y) % 256], axis=-1).astype(np.uint8))


def images(count: int, channels: int = 1, size: int = 28) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, channels, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def test_evaluation_agrees_with_torchvisions_reference_transform() -> None:
    expected = v2.Compose([v2.Resize(80, antialias=True), v2.CenterCrop(64)])(v2.functional.pil_to_tensor(photo()))
    assert torch.equal(eval_transform(LARGE)(photo()), expected)


def test_evaluation_is_close_to_resizing_by_pillow() -> None:
    by_pillow = v2.functional.pil_to_tensor(v2.Compose([v2.Resize(80), v2.CenterCrop(64)])(photo()))
    assert (eval_transform(LARGE)(photo()).int() - by_pillow.int()).abs().max() <= 2


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("augment", ["none", "flip", "crop", "resized_crop", "auto"])
@pytest.mark.parametrize("size", [(150, 100), (5, 7), (64, 64), (80, 80), (1, 400)])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_transform_gives_bytes_of_the_inputs_shape(
    interpolation: str, augment: str, size: tuple[int, int], channels: int
) -> None:
    wanted = Preprocessing(64, 80, channels, (0.5,) * channels, (0.2,) * channels, interpolation)
    image = photo(*size)
    for given in (image, image.convert("L"), v2.functional.pil_to_tensor(image)):
        for transform in (train_transform(wanted, augment), eval_transform(wanted)):
            result = transform(given)
            assert result.dtype == torch.uint8
            assert result.shape == (channels, 64, 64)


def test_a_tensor_of_the_right_size_passes_without_work() -> None:
    image = images(1)[0]
    assert eval_transform(SMALL)(image) is image
    assert train_transform(SMALL, "none")(image) is image


def test_a_banner_is_resized_without_gigabytes() -> None:
    banner = Image.new("RGB", (60_000, 2), "red")
    assert (eval_transform(LARGE)(banner)[0] == 255).all()


def test_grey_shown_as_colour_has_three_equal_channels_and_back_it_is_the_same() -> None:
    colour = eval_transform(Preprocessing(28, 28, 3, (0.5,) * 3, (0.5,) * 3))
    grey = images(1)[0]
    assert torch.equal(colour(grey), grey.expand(3, 28, 28))
    assert (eval_transform(SMALL)(colour(grey)).int() - grey.int()).abs().max() <= 1


def test_two_channels_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.channels=2"):
        eval_transform(Preprocessing(28, 28, 2, (0.5,) * 2, (0.5,) * 2))


def test_flip_flips_about_half_and_nothing_where_it_would_change_the_label() -> None:
    torch.manual_seed(0)
    image = images(1)[0]
    flipping, keeping = train_transform(SMALL, "flip"), train_transform(SMALL, "flip", flip=False)
    flipped = 0
    for _ in range(200):
        result = flipping(image)
        assert torch.equal(result, image) or torch.equal(result, image.flip(-1))
        flipped += torch.equal(result, image.flip(-1))
        assert torch.equal(keeping(image), image)
    assert 70 < flipped < 130


def test_crop_gives_a_window_of_the_reflected_image() -> None:
    torch.manual_seed(0)
    image = images(1)[0]
    padded = pad(image[None].float(), (3, 3, 3, 3), mode="reflect")[0].to(torch.uint8)
    windows = {padded[:, y : y + 28, x : x + 28].numpy().tobytes() for y in range(7) for x in range(7)}
    transform = train_transform(SMALL, "crop", flip=False)
    seen = {transform(image).numpy().tobytes() for _ in range(300)}
    assert seen <= windows
    assert len(seen) > 40


def test_auto_takes_resized_crop_from_64_pixels_on() -> None:
    assert resolve_augment("auto", SMALL) == "crop"
    assert resolve_augment("auto", LARGE) == "resized_crop"
    assert resolve_augment("flip", LARGE) == "flip"


def test_the_torch_seed_alone_decides_the_augmentation() -> None:
    transform = train_transform(LARGE, "resized_crop")
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(transform(photo()))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_gets_windows_of_the_reflected_images_flipped_or_not(channels: int) -> None:
    batch = images(64, channels)
    augmented = BatchAugment(channels=channels, shift=3, flip=True)(batch, seed=1, epoch=2, samples=np.arange(64))
    padded = pad(batch.float(), (3, 3, 3, 3), mode="reflect").to(torch.uint8)
    found = []
    for index in range(64):
        for y in range(7):
            for x in range(7):
                window = padded[index, :, y : y + 28, x : x + 28]
                found += [
                    (y, x, flipped)
                    for flipped in (False, True)
                    if torch.equal(augmented[index], window.flip(-1) if flipped else window)
                ]
    assert len(found) == 64
    assert {y for y, _, _ in found} == {x for _, x, _ in found} == set(range(7))
    assert 16 < sum(flipped for _, _, flipped in found) < 48


def test_a_samples_augmentation_does_not_depend_on_its_batch() -> None:
    batch = images(300)
    augment = BatchAugment(channels=1, shift=3, flip=True)
    whole = augment(batch, seed=7, epoch=3, samples=np.arange(300))
    chosen = np.random.default_rng(0).permutation(300)[:50]
    assert torch.equal(augment(batch[chosen], seed=7, epoch=3, samples=chosen), whole[chosen])
    for sample in (0, 299):
        alone = augment(batch[sample : sample + 1], seed=7, epoch=3, samples=np.array([sample]))
        assert torch.equal(alone[0], whole[sample])


def test_seed_epoch_and_sample_each_change_the_augmentation() -> None:
    samples = np.arange(10_000)
    hashes = [sample_hash(seed, epoch, samples) for seed, epoch in ((0, 0), (1, 0), (0, 1), (2**63 - 1, 0))]
    assert len(np.unique(np.concatenate(hashes))) == 40_000
    # Each bit is set about half of the time: 10,000 draws have a standard deviation of 50.
    for values in hashes:
        for bit in range(64):
            assert abs(int((values >> np.uint64(bit) & np.uint64(1)).sum()) - 5_000) < 300


def test_batches_and_single_samples_derive_their_seeds_alike() -> None:
    hashes = sample_hash(5, 3, np.arange(50))
    assert (hashes >> np.uint64(1)).tolist() == [mix_seed(5, 3, sample) for sample in range(50)]


def test_the_batch_that_is_given_is_not_changed() -> None:
    batch = images(16)
    before = batch.clone()
    for shift, flip in ((3, True), (0, True), (3, False)):
        BatchAugment(channels=1, shift=shift, flip=flip)(batch, seed=1, epoch=0, samples=np.arange(16))
    assert torch.equal(batch, before)


def test_evaluation_of_a_batch_equals_that_of_its_samples() -> None:
    split = TensorImages(images(20), torch.zeros(20))
    wanted = Preprocessing(28, 28, 3, (0.5,) * 3, (0.5,) * 3)
    augment = batch_augment(wanted, "none", flip=True, split=split)
    assert augment is not None
    batch = augment(split.images, seed=0, epoch=0, samples=np.arange(20))
    assert torch.equal(batch, torch.stack([eval_transform(wanted)(image) for image in split.images]))


def test_batches_are_augmented_only_where_the_images_have_the_inputs_size(tmp_path: Path) -> None:
    split = TensorImages(images(2), torch.zeros(2))
    augment = batch_augment(SMALL, "auto", flip=False, split=split)
    assert augment is not None
    assert (augment.shift, augment.flip) == (3, False)
    assert batch_augment(SMALL, "resized_crop", flip=True, split=split) is None
    assert batch_augment(LARGE, "none", flip=True, split=split) is None
    assert batch_augment(SMALL, "none", flip=True, split=[(photo(), 0)]) is None


def test_a_batch_of_128_takes_well_under_a_millisecond() -> None:
    batch, samples = images(128), np.arange(128)
    augment = BatchAugment(channels=1, shift=3, flip=True)
    durations = []
    for _ in range(100):
        started = time.perf_counter()
        augment(batch, seed=1, epoch=0, samples=samples)
        durations.append(time.perf_counter() - started)
    assert min(durations) < 1e-3


def test_the_normaliser_agrees_with_torchvisions() -> None:
    batch = images(8, 3)
    expected = v2.functional.normalize(batch.float() / 255, list(LARGE.mean), list(LARGE.std))
    torch.testing.assert_close(Normaliser(LARGE)(batch), expected, rtol=1e-5, atol=1e-5)


def test_the_normaliser_keeps_channels_last_and_adds_nothing_to_a_state_dict() -> None:
    normaliser = Normaliser(LARGE)
    result = normaliser(images(8, 3).to(memory_format=torch.channels_last))
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert normaliser(images(8, 3)).is_contiguous()
    assert not normaliser.state_dict()


def test_floating_point_images_are_taken_as_normalised_already() -> None:
    batch = torch.rand(2, 3, 4, 4)
    assert Normaliser(LARGE)(batch) is batch
