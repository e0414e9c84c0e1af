import errno
import io
import os
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainer.data.bad_image import BadImage
from trainer.data.decode import decode
from trainer.data.sampler import Indices
from trainer.data.samples import BadBatch, Samples

GRADIENT = np.linspace(0, 255, 8 * 12, dtype=np.uint8).reshape(8, 12)
COLOURS = np.stack([GRADIENT, GRADIENT[::-1], GRADIENT[:, ::-1]], axis=-1)


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def test_rgb_and_grey_files_come_out_exactly(tmp_path: Path) -> None:
    colour = decode(save(tmp_path / "a.png", Image.fromarray(COLOURS)), 3)
    grey = decode(save(tmp_path / "b.png", Image.fromarray(GRADIENT)), 1)
    assert colour.mode == "RGB"
    assert np.array_equal(np.asarray(colour), COLOURS)
    assert grey.mode == "L"
    assert np.array_equal(np.asarray(grey), GRADIENT)


def test_grey_becomes_colour_and_colour_grey_as_the_model_needs(tmp_path: Path) -> None:
    grey_file = save(tmp_path / "grey.png", Image.fromarray(GRADIENT))
    colour_file = save(tmp_path / "colour.png", Image.fromarray(COLOURS))
    assert np.array_equal(np.asarray(decode(grey_file, 3)), GRADIENT[..., None].repeat(3, axis=-1))
    assert np.array_equal(np.asarray(decode(colour_file, 1)), np.asarray(Image.fromarray(COLOURS).convert("L")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path: Path, orientation: int) -> None:
    # What a camera stores when it is held that way (EXIF 2.3, tag 0x0112).
    stored = {
        1: COLOURS,
        2: COLOURS[:, ::-1],
        3: COLOURS[::-1, ::-1],
        4: COLOURS[::-1],
        5: COLOURS.transpose(1, 0, 2),
        6: np.rot90(COLOURS, 1),
        7: COLOURS[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(COLOURS, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    assert np.array_equal(np.asarray(decode(path, 3)), COLOURS)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_exif_beside_good_pixels_is_passed_over(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(COLOURS), exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff\x00")
    assert np.array_equal(np.asarray(decode(path, 3)), COLOURS)


def test_transparent_pixels_become_white(tmp_path: Path) -> None:
    alpha = np.zeros((8, 12), np.uint8)
    alpha[:4] = 255
    rgba = decode(save(tmp_path / "a.png", Image.fromarray(np.dstack([COLOURS, alpha]))), 3)
    grey = Image.fromarray(GRADIENT)
    grey.putalpha(Image.fromarray(alpha))
    grey_alpha = decode(save(tmp_path / "b.png", grey), 1)
    for image, original in ((rgba, COLOURS), (grey_alpha, GRADIENT)):
        assert np.array_equal(np.asarray(image)[:4], original[:4])
        assert (np.asarray(image)[4:] == 255).all()


def test_half_transparent_black_becomes_middle_grey(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.new("RGBA", (4, 4), (0, 0, 0, 128)))
    assert abs(int(np.asarray(decode(path, 3))[0, 0, 0]) - 127) <= 1


def test_a_palette_gives_its_colours_and_its_transparent_entry_is_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    plain = decode(save(tmp_path / "a.png", image), 3)
    transparent = decode(save(tmp_path / "b.png", image, transparency=1), 3)
    assert [plain.getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (200, 100, 50)]
    assert [transparent.getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (255, 255, 255)]
    # The grey of the colour, not the index in the palette.
    luma = Image.new("RGB", (1, 1), (200, 100, 50)).convert("L").getpixel((0, 0))
    assert decode(tmp_path / "a.png", 1).getpixel((1, 0)) == luma


def test_a_transparent_colour_of_an_rgb_png_is_white(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 1), (9, 8, 7))
    image.putpixel((1, 0), (1, 2, 3))
    decoded = decode(save(tmp_path / "a.png", image, transparency=(1, 2, 3)), 3)
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(9, 8, 7), (255, 255, 255)]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_cmyk_jpeg_has_the_right_brightness(tmp_path: Path, channels: int) -> None:
    image = Image.new("CMYK", (16, 16), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (8, 0, 16, 16))
    decoded = np.asarray(decode(save(tmp_path / "a.jpg", image, quality=95), channels)).astype(int)
    assert decoded[:, :6].min() > 245
    assert decoded[:, 10:].max() < 10


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 257, 32_896, 65_535]], np.uint16)
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(values))
    assert np.asarray(decode(path, 1)).tolist() == [[0, 1, 128, 255]]
    assert np.asarray(decode(path, 3))[..., 2].tolist() == [[0, 1, 128, 255]]


def test_a_sixteen_bit_pgm_is_scaled(tmp_path: Path) -> None:
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5 3 1 65535\n" + struct.pack(">3H", 0, 32_896, 65_535))
    assert np.asarray(decode(path, 1)).tolist() == [[0, 128, 255]]


def test_32_bit_integers_are_scaled(tmp_path: Path) -> None:
    values = np.array([[0, 2**30, 2**31 - 1]], np.int32)
    assert np.asarray(decode(save(tmp_path / "a.tif", Image.fromarray(values)), 1)).tolist() == [[0, 128, 255]]


def test_one_bit_images_are_black_and_white(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(GRADIENT > 100))
    assert np.array_equal(np.asarray(decode(path, 1)), (GRADIENT > 100) * np.uint8(255))


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    path = save(tmp_path / "a.gif", red, save_all=True, append_images=[blue])
    assert decode(path, 3).getpixel((0, 0)) == (255, 0, 0)


def test_floating_point_pixels_are_refused_with_the_reason(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", Image.fromarray(GRADIENT.astype(np.float32)))
    with pytest.raises(BadImage, match="no defined range"):
        decode(path, 3)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "bmp", "tif"])
@pytest.mark.parametrize("share", [0.1, 0.6])
def test_a_truncated_image_is_bad_in_every_format(tmp_path: Path, suffix: str, share: float) -> None:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / f"whole.{suffix}", Image.fromarray(noise))
    stream.write(path.read_bytes()[: int(path.stat().st_size * share)])
    truncated = tmp_path / f"truncated.{suffix}"
    truncated.write_bytes(stream.getvalue())
    decode(path, 3)
    with pytest.raises(BadImage, match=r"truncated\.") as caught:
        decode(truncated, 3)
    assert caught.value.path == str(truncated)
    assert caught.value.reason


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_bytes_raise_nothing_but_bad_image(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    for suffix in ("png", "tif", "gif", "webp", "bmp"):
        whole = np.frombuffer(save(tmp_path / f"a.{suffix}", Image.fromarray(COLOURS)).read_bytes(), np.uint8)
        for _ in range(40):
            damaged = whole.copy()
            damaged[generator.integers(0, len(whole), 6)] = generator.integers(0, 256, 6)
            path = tmp_path / f"damaged.{suffix}"
            path.write_bytes(damaged.tobytes())
            try:
                assert decode(path, 3).mode == "RGB"
            except BadImage:
                continue


@pytest.mark.parametrize(("content", "reason"), [(b"", "empty"), (b"not an image at all", "not an image")])
def test_empty_files_and_other_files_are_bad(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(BadImage, match=reason):
        decode(path, 3)


def test_a_missing_file_and_a_folder_are_bad(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none.jpg", "No such file"), (tmp_path, "directory")):
        with pytest.raises(BadImage, match=reason):
            decode(path, 3)


def test_a_decompression_bomb_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(GRADIENT))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with pytest.raises(BadImage, match="bomb"):
        decode(path, 1)


def test_too_many_open_files_is_no_fault_of_the_image(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(GRADIENT))
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
    taken: list[int] = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        with pytest.raises(OSError, match="Too many open files"):
            decode(path, 1)
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    "number", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EREMOTEIO]
)
def test_trouble_of_machine_or_storage_is_never_skipped(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    class Files:
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return decode("/far/a.png", 3), 0

    samples = Samples(Files(), lambda image: image, seed=0, skip_bad=True)
    monkeypatch.setattr("builtins.open", fails)
    batch = samples.__getitems__(Indices(0, np.array([0])))
    monkeypatch.undo()
    assert isinstance(batch, BadBatch)
    assert batch.problem == f"cannot read the image /far/a.png: {os.strerror(number)}"
    assert "not skipped" in batch.fix


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.ELOOP])
def test_what_the_file_is_to_blame_for_may_be_skipped(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("builtins.open", fails)
    with pytest.raises(BadImage):
        decode("/far/a.png", 3)


def test_a_name_of_any_bytes_can_be_told(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")
    Path(path).write_bytes(b"")
    with pytest.raises(BadImage) as caught:
        decode(path, 3)
    assert caught.value.path.encode("utf-8").endswith("caf\ufffd.jpg".encode())
