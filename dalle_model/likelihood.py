"""How surprised the whole chain is by a picture: nats of its tokens under the transformer, and of its pixels given them.

p(x | caption) >= p(tokens | caption) p(x | tokens) for any tokens, so the sum of both is an upper bound on the nats of
the picture itself, whichever tokens were chosen. Pixels are 8-bit values and p(x | tokens) is a mass that sums to 1
over the 256 of them, so figures compare between tokenizers of any kind and with other models of 8-bit pictures.
"""

import math
from typing import TypeGuard

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from dalle_model.dalle import Dalle
from dalle_model.objectives import text_targets
from dalle_model.runtime import Runtime
from dalle_model.token_batches import TokenRows
from dalle_model.tokenizers.base import ImageTokenizer
from dalle_model.tokenizers.dvae import PIXEL_EPS, DvaeTokenizer

UInt8 = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float64]

SCALES = (0.5, 2.0, 6.0, 18.0, 54.0)
"""Laplace scales of the residual mixture, in levels of 255: from exact to lost. A uniform part is the last."""
UNIFORM_SHARE = 1e-4
"""Of every mass; an impossible value would cost infinitely many bits."""

_LOGIT_BYTES = 200_000_000
_EM_STEPS = 60
_BATCH = 64


@torch.inference_mode()
def sequence_nats(model: Dalle, rows: TokenRows, runtime: Runtime) -> tuple[FloatArray, FloatArray]:
    """(nats of the text with its end, nats of the image tokens) of each row -> two float64 [R]."""
    model = model.to(runtime.device).eval()
    shape = model.shape
    batch = max(1, min(_BATCH, _LOGIT_BYTES // (4 * shape.num_image_tokens * shape.image_vocab)))
    text_nats, image_nats = np.empty(len(rows.image)), np.empty(len(rows.image))
    for start in range(0, len(rows.image), batch):
        chosen = np.arange(start, min(start + batch, len(rows.image)))
        # Filled up to one size: the shape of a matrix product may move its last bits.
        text, image = (t.to(runtime.device) for t in rows.gather(np.resize(chosen, batch)))
        with runtime.autocast():
            hidden = model(text, image)
            text_logits, image_logits = model.text_logits(hidden), model.image_logits(hidden)
        each_text = F.cross_entropy(text_logits.transpose(1, 2), text, reduction="none") * text_targets(text)
        each_image = F.cross_entropy(image_logits.transpose(1, 2), image, reduction="none")
        text_nats[chosen] = each_text.cpu().double().sum(1).numpy()[: len(chosen)]
        image_nats[chosen] = each_image.cpu().double().sum(1).numpy()[: len(chosen)]
    return text_nats, image_nats


def _has_density(tokenizer: ImageTokenizer) -> TypeGuard[DvaeTokenizer]:
    """Whether the decoder's own density was trained."""
    return isinstance(tokenizer, DvaeTokenizer) and tokenizer.config.likelihood == "logit_laplace"


class PixelLikelihood:
    """Mass of each 8-bit value given a picture's tokens.

    dVAE: the logit-Laplace of its decoder (paper, equation 2), integrated over each value's bin, where that was trained. Every other tokenizer
    decodes to one picture: residuals to it follow a mixture of Laplace distributions of fixed scales around the decoded
    value, integrated over each bin, and of the uniform one; its weights, per colour channel, are fitted to training
    pictures by EM.
    """

    def __init__(
        self, tokenizer: ImageTokenizer, training: UInt8, ids: npt.NDArray[np.uint16], runtime: Runtime
    ) -> None:
        """``training`` uint8 [m, H, W, 3] with their ids [m, N]: what the mixture is fitted to."""
        self._tokenizer = tokenizer
        self._runtime = runtime
        self._dvae = tokenizer if _has_density(tokenizer) else None
        self.name = "logit-Laplace of the decoder" if self._dvae is not None else "fitted Laplace mixture"
        self.weights: FloatArray = np.full((3, len(SCALES) + 1), 1 / (len(SCALES) + 1))  # [channel, part]
        if self._dvae is None:
            made = self._decoded(ids)
            self.weights = np.stack([_fit_mixture(training[..., c], made[..., c]) for c in range(3)])

    def nats(self, pictures: UInt8, ids: npt.NDArray[np.uint16]) -> FloatArray:
        """-ln p of whole pictures uint8 [n, H, W, 3] given their ids [n, N] -> float64 [n]."""
        if self._dvae is not None:
            return self._dvae_nats(self._dvae, pictures, ids)
        made = self._decoded(ids)
        out = np.zeros(len(pictures))
        for number, (picture, decoded) in enumerate(zip(pictures, made, strict=True)):
            for channel in range(3):
                masses = _bin_masses(picture[..., channel].ravel(), decoded[..., channel].ravel())
                out[number] -= np.log(_floored(masses @ self.weights[channel])).sum()
        return out

    @torch.inference_mode()
    def _decoded(self, ids: npt.NDArray[np.uint16]) -> FloatArray:
        """Decoded pictures in levels, float64 [n, H, W, 3]."""
        parts = []
        for start in range(0, len(ids), _BATCH):
            batch = torch.from_numpy(ids[start : start + _BATCH].astype(np.int64)).to(self._runtime.device)
            parts.append(self._tokenizer.decode(batch).float().cpu().permute(0, 2, 3, 1).double().numpy() * 255)
        return np.concatenate(parts)

    @torch.inference_mode()
    def _dvae_nats(self, tokenizer: DvaeTokenizer, pictures: UInt8, ids: npt.NDArray[np.uint16]) -> FloatArray:
        out = np.empty(len(pictures))
        for start in range(0, len(ids), _BATCH):
            part = slice(start, start + _BATCH)
            batch = torch.from_numpy(ids[part].astype(np.int64)).to(self._runtime.device)
            read = tokenizer.decoder.read_ids(batch.view(-1, tokenizer.grid, tokenizer.grid))
            mu, log_b = tokenizer.decoder(read).cpu().double().permute(0, 2, 3, 1).chunk(2, dim=3)
            masses = logit_laplace_masses(torch.from_numpy(pictures[part]).double(), mu, log_b.exp())
            out[part] = -np.log(_floored(masses.numpy())).reshape(len(batch), -1).sum(1)
        return out


def logit_laplace_masses(values: Tensor, mu: Tensor, b: Tensor) -> Tensor:
    """Mass of 8-bit values under the logit-Laplace of mapped pixels, all float64 of one shape; 256 of them sum to 1."""

    def edge(level: Tensor) -> Tensor:
        inside = torch.logit((1 - 2 * PIXEL_EPS) * level.clamp(0, 255) / 255 + PIXEL_EPS)
        return inside.masked_fill(level < 0, -math.inf).masked_fill(level > 255, math.inf)

    return _laplace_between((edge(values - 0.5) - mu) / b, (edge(values + 0.5) - mu) / b)


def _laplace_between(low: Tensor, high: Tensor) -> Tensor:
    """Mass of the standard Laplace distribution between two places, exact in both tails."""
    # Mirrored to the left where all lies on the right: there the distribution function loses its digits.
    flip = low > 0
    left, right = torch.where(flip, -high, low), torch.where(flip, -low, high)

    def cumulative(x: Tensor) -> Tensor:
        return torch.where(x < 0, 0.5 * torch.exp(x.clamp(max=0)), 1 - 0.5 * torch.exp(-x.clamp(min=0)))

    return (cumulative(right) - cumulative(left)).clamp(min=0)


def _bin_masses(values: UInt8, decoded: FloatArray) -> FloatArray:
    """Mass of values uint8 [n] around decoded levels [n] under each part of the mixture -> [n, scales + 1]."""
    v, centre = torch.from_numpy(values.astype(np.float64)), torch.from_numpy(decoded)
    low = (v - 0.5 - centre).masked_fill(v == 0, -math.inf)
    high = (v + 0.5 - centre).masked_fill(v == 255, math.inf)
    parts = [_laplace_between(low / s, high / s) for s in SCALES]
    return torch.stack([*parts, torch.full_like(v, 1 / 256)], dim=1).numpy()


def _fit_mixture(values: UInt8, decoded: FloatArray) -> FloatArray:
    """Weights of the parts that make values [m, H, W] most likely (expectation-maximisation) -> [scales + 1]."""
    flat, centre = values.ravel(), decoded.ravel()
    chosen = np.linspace(0, len(flat) - 1, min(len(flat), 100_000)).astype(np.int64)
    masses = _bin_masses(flat[chosen], centre[chosen]) + 1e-30
    weights = np.full(len(SCALES) + 1, 1 / (len(SCALES) + 1))
    for _ in range(_EM_STEPS):
        share = masses * weights
        weights = (share / share.sum(1, keepdims=True)).mean(0)
    return np.asarray(weights)


def _floored(masses: FloatArray) -> FloatArray:
    return (1 - UNIFORM_SHARE) * masses + UNIFORM_SHARE / 256


def bits(nats: npt.ArrayLike, image_px: int) -> FloatArray:
    """Nats of whole pictures [n] -> bits per pixel (all three channels of it together)."""
    return np.asarray(nats, np.float64) / math.log(2) / image_px**2
