"""Embeddings that tell kin from strangers where perceptual hashes do not: they see colour and small shifts.

They need no download. Each has a name and a hash, under which its numbers are stored once per pairs artifact.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from dalle_model.images import decode_rgb, square, stack_squares

MODEL_UNIT = 1 / 16384  # of the unit vectors of a given model


class Embedding(Protocol):
    """Encoded pictures to rows of small integers, whose Euclidean distance times ``unit`` is the distance in words."""

    name: str
    digest: str  # changes whenever a number could
    width: int
    dtype: type[np.generic]
    unit: float

    def of(self, pictures: Sequence[bytes]) -> npt.NDArray[Any]:
        """[n, width] of ``dtype``. DataError when a picture does not decode."""
        ...


class Thumbnails:
    """The centre square averaged down to 8 x 8 in colour; a distance is the root mean square error, 1 = full range.

    Integers all the way, so that the numbers are the same on every machine.
    """

    name = "thumbnail"
    digest = hashlib.sha256(b"centre square, box filter to 8 x 8 RGB; version 1").hexdigest()
    _SIDE = 8
    width = 3 * _SIDE**2
    dtype: type[np.generic] = np.uint8
    unit = 1 / (255 * width**0.5)

    def of(self, pictures: Sequence[bytes]) -> npt.NDArray[Any]:
        """uint8 [n, 192]."""
        rows = [self._row(picture) for picture in pictures]
        return np.stack(rows) if rows else np.zeros((0, self.width), np.uint8)

    def _row(self, picture: bytes) -> npt.NDArray[np.uint8]:
        image = decode_rgb(picture)
        side = min(image.shape[:2])
        crop = Image.fromarray(square(image, side))
        return np.asarray(crop.resize((self._SIDE, self._SIDE), Image.Resampling.BOX)).reshape(-1)


class RandomConvolutions:
    """``features.RandomFeatures`` at 64 px, in steps of 1/4096: texture and rough shape, less their exact place."""

    name = "random"
    width = 32
    dtype: type[np.generic] = np.int16
    unit = 1 / 4096

    def __init__(self) -> None:
        from dalle_model.features import RandomFeatures  # torch takes a second to load

        self._features = RandomFeatures(self.width)
        self.digest = hashlib.sha256(f"{self._features.digest} of 64 px squares, steps of 1/4096".encode()).hexdigest()

    def of(self, pictures: Sequence[bytes]) -> npt.NDArray[Any]:
        """int16 [n, 32]."""
        from dalle_model.images import to_float

        rows = self._features.of(to_float(stack_squares(pictures, 64)))
        # Rounded, so that the last digits, which depend on the machine, do not decide who is kin.
        return np.clip(np.round(rows / self.unit), -(2**15), 2**15 - 1).astype(np.int16)


EMBEDDINGS: dict[str, type[Embedding]] = {"thumbnail": Thumbnails, "random": RandomConvolutions}
