"""Pictures between their three forms: encoded bytes, uint8 RGB arrays, and float CHW tensors in [0, 1].

Only clean pictures pass here: our own re-encodings. Bytes of unknown origin go through ``decoding`` first.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from dalle_model.errors import DataError

if TYPE_CHECKING:
    import torch

UInt8Array = npt.NDArray[np.uint8]


def decode_rgb(data: bytes) -> UInt8Array:
    """Bytes of one of our own pictures -> uint8 [H, W, 3]. DataError when they are no picture."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(
            f"{len(data)} bytes of a stored picture do not decode ({error}); run `dalle verify` on its artifact"
        ) from error


def encode_png(image: UInt8Array) -> bytes:
    """uint8 [H, W, 3] -> PNG without metadata."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def square(image: UInt8Array, px: int) -> UInt8Array:
    """Centre crop to the shorter side, then resize to ``px``: uint8 [H, W, 3] -> uint8 [px, px, 3].

    Shrinking averages (area filter, as in the DALL-E paper's augmentation); enlarging is bicubic.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    crop = image[top : top + side, left : left + side]
    if side == px:
        return np.ascontiguousarray(crop)
    resample = Image.Resampling.BOX if px < side else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(crop).resize((px, px), resample))


def stack_squares(pictures: Sequence[bytes], px: int) -> UInt8Array:
    """Encoded pictures -> uint8 [B, px, px, 3]."""
    out = np.empty((len(pictures), px, px, 3), np.uint8)
    for row, data in enumerate(pictures):
        out[row] = square(decode_rgb(data), px)
    return out


def to_float(images: "npt.NDArray[np.uint8] | torch.Tensor") -> "torch.Tensor":
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in [0, 1], on the device of its input."""
    import torch

    tensor = images if isinstance(images, torch.Tensor) else torch.from_numpy(np.array(images))
    if tensor.dtype != torch.uint8 or tensor.ndim != 4 or tensor.shape[-1] != 3:
        raise DataError(f"pictures of shape {tuple(tensor.shape)} and type {tensor.dtype}; expected uint8 [B, H, W, 3]")
    return tensor.permute(0, 3, 1, 2).contiguous().to(torch.float32).div_(255.0)


def to_uint8(images: "torch.Tensor") -> UInt8Array:
    """float [B, 3, H, W] in [0, 1] -> uint8 [B, H, W, 3], rounded to nearest, values outside clipped."""
    import torch

    if images.ndim != 4 or images.shape[1] != 3:
        raise DataError(f"pictures of shape {tuple(images.shape)}; expected [B, 3, H, W]")
    scaled = images.detach().to(torch.float32).clamp(0, 1).mul(255).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
