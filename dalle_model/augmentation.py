"""Augmentation of training pictures as in the DALL-E paper (appendix A.2): size, place and side, never colour."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle_model.errors import DataError

NEAR, FAR = 288 / 256, 384 / 256  # the paper's bounds of the side before the last crop, for pictures of 256 px


def augmented(image: Tensor, target_px: int, generator: torch.Generator) -> Tensor:
    """uint8 [3, h, w] -> uint8 [3, target_px, target_px], a pure function of the generator's state.

    A random square of side s = min(h, w) is resized with an area filter to a side drawn uniformly from
    [min(s, 288), min(s, 384)] (for 256 px; other sizes keep the ratio), of which a random crop is taken, mirrored half
    of the time. Raises DataError when the picture is smaller than ``target_px``.
    """
    height, width = image.shape[1:]
    short = min(height, width)
    if short < target_px:
        raise DataError(
            f"a picture of {width} x {height} px cannot be cropped to {target_px} px; ingest larger ones or set augment to none"
        )
    square = _crop(image, short, generator)
    low, high = min(short, round(target_px * NEAR)), min(short, round(target_px * FAR))
    side = int(torch.randint(low, high + 1, (1,), generator=generator))
    if side != short:
        square = F.interpolate(square[None].float(), size=(side, side), mode="area")[0].round().to(torch.uint8)
    out = _crop(square, target_px, generator)
    return out.flip(2) if float(torch.rand((), generator=generator)) < 0.5 else out


def source_px(target_px: int) -> int:
    """Side that pictures should have for the whole range of sizes."""
    return round(target_px * FAR)


def _crop(image: Tensor, side: int, generator: torch.Generator) -> Tensor:
    top = int(torch.randint(0, image.shape[1] - side + 1, (1,), generator=generator))
    left = int(torch.randint(0, image.shape[2] - side + 1, (1,), generator=generator))
    return image[:, top : top + side, left : left + side]
