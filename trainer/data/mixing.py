"""MixUp and CutMix of neighbours in the order of samples, so that no pair depends on who trains on which sample.

Sample i of a global step is mixed with sample i + 1, the last with the first; a sample whose partner cannot be read, or
that is alone, stays as it is. How much, and where, is drawn once a step from (seed, step), as timm does for a batch.
"""

import math
import random
from dataclasses import dataclass

import torch

from trainer.data.sampler import mix_seed

# Any number apart from the ranks, which seed what is random inside the model by (seed, step, rank, micro-batch).
_STREAM = -1


@dataclass(frozen=True, slots=True)
class Mix:
    """How the images of one step are mixed.

    Attributes:
        share: of an image that stays its own, 0..1; its target weighs as much.
        box: first and end row, first and end column that are the partner's; None: all pixels are blended.
    """

    share: float
    box: tuple[int, int, int, int] | None = None

    def __call__(self, images: torch.Tensor, partners: torch.Tensor) -> torch.Tensor:
        """Mixes the first images with their partners.

        Args:
            images: floating point [N, C, H, W].
            partners: int64 [B], B <= N: which of `images` the first B are mixed with.

        Returns:
            The mixed images [B, C, H, W], in new memory.
        """
        own = images[: len(partners)]
        if self.box is None:
            return images[partners].lerp_(own, self.share)
        top, bottom, left, right = self.box
        mixed = own.clone()
        mixed[..., top:bottom, left:right] = images[..., top:bottom, left:right][partners]
        return mixed


@dataclass(frozen=True, slots=True)
class Mixing:
    """MixUp (Zhang et al., 2018) and CutMix (Yun et al., 2019).

    Attributes:
        mixup: alpha of MixUp's Beta(alpha, alpha) distribution; 0: no MixUp.
        cutmix: alpha of CutMix's; 0: no CutMix. With both, each step is mixed by either with equal chance.
        seed: the run's seed.
    """

    mixup: float
    cutmix: float
    seed: int

    def of_step(self, step: int, height: int, width: int) -> Mix:
        """What is done to the images of a step, of `height` rows and `width` columns."""
        draws = random.Random(mix_seed(self.seed, step, _STREAM))
        cuts = self.cutmix > 0 and (self.mixup == 0 or draws.random() < 0.5)
        alpha = self.cutmix if cuts else self.mixup
        share = draws.betavariate(alpha, alpha)
        if not cuts:
            return Mix(share)
        # As torchvision's v2.CutMix: a box of that area around any pixel, as far as it lies in the image.
        reach = 0.5 * math.sqrt(1 - share)
        top, bottom = _span(draws.randrange(height), int(reach * height), height)
        left, right = _span(draws.randrange(width), int(reach * width), width)
        return Mix(1 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right))


def _span(centre: int, reach: int, size: int) -> tuple[int, int]:
    return max(0, centre - reach), min(size, centre + reach)
