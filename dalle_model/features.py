"""Features of pictures that need no download. Each kind has a name and a hash for the record of what was measured."""

import hashlib
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from dalle_model.dalle import Dalle
from dalle_model.runtime import Runtime
from dalle_model.tokenizers.base import ImageTokenizer
from dalle_model.tokenizers.dvae import DvaeTokenizer, map_pixels
from dalle_model.tokenizers.fsq import FsqTokenizer
from dalle_model.tokenizers.vq import VqTokenizer

FloatArray = npt.NDArray[np.float64]

_BATCH = 64


class Features(Protocol):
    """Pictures to rows of numbers."""

    name: str
    digest: str  # changes whenever a number could

    def of(self, images: Tensor) -> FloatArray:
        """Float [n, 3, H, W] in [0, 1], on the CPU -> float64 [n, d]."""
        ...


class RandomFeatures:
    """A fixed untrained convolutional network: three layers of stride 2, then mean and spread of each channel's map.

    Untrained networks see colour, texture and rough shape, and serve where pictures are no photographs (Naeem et al.
    2020, arXiv 2002.09797, section 4). The mean is taken over each quarter of the picture, the spread over the whole;
    a fixed projection to ``width`` numbers follows. In float64, so that it hardly depends on the machine.
    """

    _CHANNELS = (3, 24, 48, 64)

    def __init__(self, width: int = 32) -> None:
        bits = np.random.Philox(key=20210224)  # the raw stream is the same in every version of NumPy
        digest = hashlib.sha256(b"conv3x3 stride 2, orthant means and deviations, projection; version 1")
        self._kernels = []
        for fan_in, fan_out in zip(self._CHANNELS, self._CHANNELS[1:], strict=False):
            kernel = _uniform(bits, (fan_out, fan_in, 3, 3))
            kernel -= kernel.mean(axis=(2, 3), keepdims=True) * 0.5  # edges count beside plain colour
            kernel *= np.sqrt(2.0 / (fan_in * 9 / 3))
            self._kernels.append(torch.from_numpy(kernel))
            digest.update(kernel.tobytes())
        pooled = 5 * self._CHANNELS[-1]
        projection = _uniform(bits, (pooled, width)) * np.sqrt(3.0 / pooled)
        digest.update(projection.tobytes())
        self._projection = torch.from_numpy(projection)
        self.name = f"random_convolutions_{width}"
        self.digest = digest.hexdigest()

    @torch.inference_mode()
    def of(self, images: Tensor) -> FloatArray:
        """Float [n, 3, H, W] in [0, 1] -> float64 [n, width]."""
        return _stack([self._rows(batch) for batch in _batches(images)], self._projection.shape[1])

    def _rows(self, images: Tensor) -> Tensor:
        x = images.double() * 2 - 1
        for kernel in self._kernels:
            x = F.leaky_relu(F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, stride=2), 0.2)
        quarters = F.adaptive_avg_pool2d(x, 2).flatten(1)
        spread = x.flatten(2).std(dim=2, correction=0)
        return torch.cat([quarters, spread], 1) @ self._projection


class ThumbnailFeatures:
    """The picture itself, averaged down to ``side`` x ``side``: distances are root mean squared errors of colour."""

    def __init__(self, side: int = 16) -> None:
        self._side = side
        self.name = f"thumbnail_{side}px"
        self.digest = hashlib.sha256(
            f"adaptive average pooling to {side} px, divided by root of size".encode()
        ).hexdigest()

    @torch.inference_mode()
    def of(self, images: Tensor) -> FloatArray:
        """Float [n, 3, H, W] in [0, 1] -> float64 [n, 3 side²]; the distance of two rows is the error per number."""
        width = 3 * self._side**2
        rows = [F.adaptive_avg_pool2d(batch.double(), self._side).flatten(1) / width**0.5 for batch in _batches(images)]
        return _stack(rows, width)


class TokenizerFeatures:
    """What an image tokenizer's own encoder sees before it quantises, as mean and spread over the grid of tokens.

    FSQ: coordinates on the lattice, in [0, 1]. VQ: unit vectors. dVAE: the input of the last convolution.
    """

    def __init__(self, tokenizer: ImageTokenizer, digest: str) -> None:
        """``digest``: hash of the weights, or the fingerprint of the tokenizer's artifact."""
        if not isinstance(tokenizer, FsqTokenizer | VqTokenizer | DvaeTokenizer):
            raise TypeError(
                f"{type(tokenizer).__name__} offers no features; FsqTokenizer, VqTokenizer and DvaeTokenizer do"
            )
        self._tokenizer = tokenizer
        self.name = f"tokenizer_{tokenizer.config.kind}"
        self.digest = digest

    @torch.inference_mode()
    def of(self, images: Tensor) -> FloatArray:
        """Float [n, 3, px, px] in [0, 1] at the tokenizer's size -> float64 [n, 2 channels], computed where it lives."""
        device = next(self._tokenizer.parameters()).device
        rows = []
        for batch in _batches(images):
            self._tokenizer.check_images(batch)
            grid = self._grid(batch.float().to(device)).cpu().double().flatten(2)
            rows.append(torch.cat([grid.mean(2), grid.std(2, correction=0)], 1))
        return _stack(rows, 0)

    def _grid(self, images: Tensor) -> Tensor:
        if isinstance(self._tokenizer, FsqTokenizer):
            return self._tokenizer.latents(images) / self._tokenizer.steps.view(1, -1, 1, 1)
        if isinstance(self._tokenizer, VqTokenizer):
            return self._tokenizer.latents(images).permute(0, 3, 1, 2)
        return self._tokenizer.encoder.features(map_pixels(images))


class ModelFeatures:
    """What the transformer itself sees in a picture: its last hidden states over the image tokens, averaged.

    The picture is read without a caption, as tokens of the model's own tokenizer.
    """

    def __init__(self, model: Dalle, tokenizer: ImageTokenizer, runtime: Runtime, digest: str) -> None:
        """``digest``: hash of the transformer's weights."""
        self._model, self._tokenizer, self._runtime = model.to(runtime.device).eval(), tokenizer, runtime
        self.name = "transformer"
        self.digest = digest

    @torch.inference_mode()
    def of(self, images: Tensor) -> FloatArray:
        """Float [n, 3, px, px] in [0, 1] at the tokenizer's size -> float64 [n, dim]."""
        rows = []
        for batch in _batches(images):
            ids = self._tokenizer.encode(batch.float().to(self._runtime.device))
            text = torch.zeros(len(ids), self._model.shape.max_text_tokens, dtype=torch.long, device=ids.device)
            with self._runtime.autocast():
                hidden = self._model.split(self._model(text, ids))[1]
            rows.append(hidden.float().mean(1).cpu().double())
        return _stack(rows, self._model.config.dim)


def _uniform(bits: np.random.Philox, shape: tuple[int, ...]) -> FloatArray:
    """Uniform in [-1, 1) from the raw stream."""
    raw = bits.random_raw(int(np.prod(shape)))
    return ((raw >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1).reshape(shape)


def _batches(images: Tensor) -> Iterator[Tensor]:
    for start in range(0, len(images), _BATCH):
        yield images[start : start + _BATCH]


def _stack(rows: list[Tensor], width: int) -> FloatArray:
    return torch.cat(rows).numpy() if rows else np.empty((0, width))
