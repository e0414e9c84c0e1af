"""An image file of any common kind -> 8-bit grey or RGB, upright, on white."""

import errno
import io
import os
from typing import cast

import numpy as np
from PIL import ExifTags, Image, ImageOps

from trainer.data.bad_image import BadImage

# What the file itself can be blamed for. All else (EIO, ESTALE, ENOTCONN, EMFILE, ENOMEM ...) is trouble of the machine
# or the network, and never a reason to skip an image.
_FAULTS_OF_THE_FILE = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EACCES,
    errno.EPERM,
    errno.ENXIO,
}
_UPRIGHT = 1


class StorageTrouble(OSError):
    """A file that cannot be read just now, for reasons that lie outside it."""


def decode(path: str | os.PathLike[str], channels: int) -> Image.Image:
    """Reads an image: the first frame, turned upright by its EXIF orientation, transparency on white.

    Args:
        path: a file of a format that Pillow reads.
        channels: 1 for grey ("L"), 3 for colour ("RGB").

    Raises:
        BadImage: the file is missing, empty, truncated, no image, or too large to be a sane one.
        StorageTrouble: the machine or its storage is in trouble: too many open files, input/output errors.
    """
    try:
        # One read of the whole file: quick on network file systems, and errors of the disk stay apart.
        with open(path, "rb") as stream:  # noqa: PTH123  # a Path per image would cost more than the call
            content = stream.read()
    except OSError as error:
        if error.errno not in _FAULTS_OF_THE_FILE:
            raise StorageTrouble(error.errno, error.strerror, os.fsencode(path).decode("utf-8", "replace")) from error
        raise BadImage(path, error.strerror or str(error)) from error
    if not content:
        raise BadImage(path, "the file is empty")
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            return _plain(_upright(image), "L" if channels == 1 else "RGB")
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:
        # Pillow's decoders raise nearly anything on damaged bytes: SyntaxError, struct.error, zlib.error ...
        raise BadImage(path, _reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image of a known format"
    return str(error) or type(error).__name__


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, _UPRIGHT)
    except (SyntaxError, ValueError, KeyError, IndexError, TypeError, OSError, EOFError):
        # Damaged EXIF beside good pixels is common; other readers pass over it as well.
        return image
    return image if orientation == _UPRIGHT else ImageOps.exif_transpose(image)


def _plain(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I"):
        image = _eight_bit(image)
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no defined range; save the image with 8 or 16 bits")
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    elif image.mode == "P" or (image.mode == "CMYK" and mode == "L"):
        # Straight to grey, Pillow would take the palette's indices or the inks for something they are not.
        image = image.convert("RGB")
    # A copy where there was nothing to convert: the file's own object would keep its bytes alive.
    return image.convert(mode) if image.mode != mode else image.copy()


def _eight_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    # Mode "I" holds 32 bits, but what Pillow opens in it nearly always has 16: the values tell.
    top = 65_535 if values.max(initial=0) <= 65_535 else 2**31 - 1
    scaled = (values.clip(0, top) * 255 + top // 2) // top
    return cast(Image.Image, Image.fromarray(scaled.astype(np.uint8)))
