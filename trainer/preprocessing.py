"""What turns a decoded image into the model's input; kept with the weights, so that it is never guessed again."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Size and normalisation of the model's input.

    Attributes:
        image_size: side of the square input, pixels.
        resize_size: length to which the shorter side is resized before the centre crop of evaluation, pixels.
        channels: 1 (grey) or 3 (RGB).
        mean: per channel, of images scaled to 0..1.
        std: per channel, of images scaled to 0..1.
        interpolation: `bilinear` or `bicubic`, with antialiasing.
    """

    image_size: int
    resize_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
