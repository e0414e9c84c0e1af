"""A small residual network for small images, fast on a CPU: `model.name=small_resnet`."""

import torch
from torch import Tensor, nn
from torchvision.models._api import register_model


class SmallResNet(nn.Module):
    """A stem at full resolution, three residual blocks at a half, a quarter and an eighth, and a linear head.

    The head sees a grid of averages rather than one, since centred objects such as clothes and digits are
    told apart by where things are.

    Args:
        num_classes: size of the head.
        in_channels: channels of the images.
        width: channels of the first block; the second has twice, the third four times as many.
        grid: side of the grid of averages that the head sees.
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 1, width: int = 16, grid: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.blocks = nn.Sequential(
            ResidualBlock(width, width, stride=1),
            ResidualBlock(width, 2 * width, stride=2),
            ResidualBlock(2 * width, 4 * width, stride=2),
        )
        self.grid = grid
        self.pool = nn.AdaptiveAvgPool2d(grid)
        self.head = nn.Linear(4 * width * grid * grid, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, ResidualBlock):
                # Every block starts as the identity, for a higher learning rate (Goyal et al., 2017).
                nn.init.zeros_(module.norm2.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [batch, classes] of images [batch, channels, height, width], at least 2 pixels a side."""
        features = self.blocks(self.stem(images))
        if features.shape[-2:] != (self.grid, self.grid):
            # Where it would change nothing it is left out: its backward pass is not deterministic on a GPU.
            features = self.pool(features)
        return self.head(torch.flatten(features, 1))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which a mean makes smaller, not a stride (ResNet-D)."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True),
                nn.Conv2d(channels_in, channels_out, 1, bias=False),
                nn.BatchNorm2d(channels_out),
            )

    def forward(self, features: Tensor) -> Tensor:
        """Features of `channels_out` channels, smaller by the stride."""
        inner = self.relu(self.norm1(self.conv1(features)))
        return self.relu(self.norm2(self.conv2(inner)) + self.shortcut(features))


@register_model()
def small_resnet(
    *, num_classes: int = 10, in_channels: int = 1, width: int = 16, grid: int | None = None, image_size: int = 28
) -> SmallResNet:
    """Builds a `SmallResNet`, by default of 87 thousand parameters.

    Args:
        num_classes: size of the head.
        in_channels: channels of the images.
        width: channels of the first block.
        grid: side of the grid of averages that the head sees; None: that of the last features, at most 4.
        image_size: side of the images, pixels.
    """
    grid = grid or min(4, -(-image_size // 8))
    return SmallResNet(num_classes=num_classes, in_channels=in_channels, width=width, grid=grid)
