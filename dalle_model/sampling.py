"""Drawing image tokens: one prefill per prompt, a preallocated cache, and noise that belongs to the picture.

A picture is a pure function of (weights, prompt, key, sampler): batches always have the same shape, and the noise
comes from a counter generator keyed by the picture, so neither its neighbours, nor the order, nor a restart matter.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dalle_model.config import SamplerConfig
from dalle_model.dalle import Dalle, KVCache
from dalle_model.errors import DataError
from dalle_model.runtime import Runtime
from dalle_model.token_batches import pad_text

_PREFILL_ROWS = 8  # prompts per prefill: fixed, since the shape of a matrix product may move its last bits
_NOISE_BLOCK = 8  # image positions whose noise is made at once


@dataclass(frozen=True)
class Request:
    """One picture to draw. prompt_ids: caption tokens, not padded. key: names its noise; see ``picture_key``."""

    prompt_ids: tuple[int, ...]
    key: str


def picture_key(model_fingerprint: str, prompt: str, seed: int, index: int) -> str:
    """The identity of one picture: the same four values draw the same picture anywhere."""
    return hashlib.sha256(f"{model_fingerprint}\0{prompt}\0{seed}\0{index}".encode()).hexdigest()


class _Noise:
    """Standard Gumbel noise of one picture, a pure function of its key and the position (Philox counter generator)."""

    def __init__(self, key: str) -> None:
        self._bits = np.random.Philox(key=int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little"))

    def block(self, positions: int, vocab: int) -> NDArray[np.float32]:
        """The next ``positions`` rows, float32 [positions, vocab]. Raw bits are used: their stream never changes."""
        count = positions * vocab
        raw = self._bits.random_raw((count + 1) // 2).view(np.uint32)[:count]
        # 23 bits and a half: with 24 the largest value would round to 1, whose noise is infinite
        uniform = ((raw >> np.uint32(9)).astype(np.float32) + np.float32(0.5)) * np.float32(2**-23)
        gumbel: NDArray[np.float32] = -np.log(-np.log(uniform))
        return gumbel.reshape(positions, vocab)


def filter_logits(logits: Tensor, sampler: SamplerConfig) -> Tensor:
    """Temperature, then top-k, then top-p: float32 [B, K] -> the same, -inf where a token may not be drawn.

    Of tokens that tie at the border of top-k or top-p all are kept. ``temperature`` must be above 0 here.
    """
    logits = logits / sampler.temperature
    if 0 < sampler.top_k < logits.shape[-1]:
        least = logits.topk(sampler.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    if sampler.top_p < 1.0:
        ordered = logits.sort(dim=-1, descending=True).values
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        least = ordered.masked_fill(before >= sampler.top_p, math.inf).amin(-1, keepdim=True)
        logits = logits.masked_fill(logits < least, -math.inf)
    return logits


def pick(logits: Tensor, noise: Tensor | None, sampler: SamplerConfig) -> Tensor:
    """One token per row: logits float32 [B, K], Gumbel noise of the same shape -> int64 [B].

    argmax(logits + Gumbel) is a draw from softmax(logits), without the softmax. Temperature 0 takes the most
    probable token and needs no noise.
    """
    if sampler.temperature == 0.0 or noise is None:
        return logits.argmax(-1)
    return (filter_logits(logits, sampler) + noise).argmax(-1)


def guide(logits: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance: the first half of the rows [2B, K] has the caption, the second has none -> [B, K]."""
    with_caption, without = logits.chunk(2)
    return without + guidance * (with_caption - without)


@torch.inference_mode()
def draw(
    model: Dalle,
    requests: Sequence[Request],
    sampler: SamplerConfig,
    runtime: Runtime,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.uint16]:
    """Image tokens of all requests, uint16 [n, N], in their order.

    batch_size: pictures per forward pass; short batches are filled up. progress: called with (done, total).
    Raises DataError when a prompt is longer than the model's text.
    """
    model.require("text_to_image")
    longest = max((len(r.prompt_ids) for r in requests), default=0)
    limit = model.shape.max_text_tokens
    if longest > limit:
        raise DataError(f"a prompt has {longest} tokens, the model reads {limit}; shorten it or cut its tokens")
    out = np.zeros((len(requests), model.shape.num_image_tokens), dtype=np.uint16)
    was_training = model.training
    model.to(runtime.device).eval()
    for start in range(0, len(requests), batch_size):
        part = list(requests[start : start + batch_size])
        filled = part + [part[0]] * (batch_size - len(part))
        with runtime.autocast():
            out[start : start + len(part)] = _draw_batch(model, filled, sampler, runtime)[: len(part)]
        if progress:
            progress(start + len(part), len(requests))
    model.train(was_training)
    return out


def _draw_batch(model: Dalle, requests: list[Request], sampler: SamplerConfig, runtime: Runtime) -> NDArray[np.uint16]:
    guided = sampler.guidance != 1.0
    prompts = [r.prompt_ids for r in requests] + [()] * (len(requests) if guided else 0)
    cache, logits = _prefill(model, prompts, runtime)
    noises = [_Noise(r.key) for r in requests] if sampler.temperature > 0 else []
    num_tokens, vocab = model.shape.num_image_tokens, model.shape.image_vocab
    tokens = torch.empty(len(requests), num_tokens, dtype=torch.long, device=runtime.device)
    block = torch.empty(0)
    for place in range(num_tokens):
        if noises and place % _NOISE_BLOCK == 0:
            size = min(_NOISE_BLOCK, num_tokens - place)
            block = torch.from_numpy(np.stack([n.block(size, vocab) for n in noises])).to(runtime.device)
        noise = block[:, place % _NOISE_BLOCK] if noises else None
        tokens[:, place] = pick(guide(logits, sampler.guidance) if guided else logits, noise, sampler)
        if place + 1 < num_tokens:
            fed = tokens[:, place].repeat(2) if guided else tokens[:, place]
            logits = model.step(fed, place, cache)
    drawn: NDArray[np.uint16] = tokens.cpu().numpy().astype(np.uint16)
    return drawn


def _prefill(model: Dalle, prompts: list[tuple[int, ...]], runtime: Runtime) -> tuple[KVCache, Tensor]:
    """Read each different prompt once; a cache row and first logits per entry of ``prompts``."""
    dtype = runtime.dtype
    different = sorted(set(prompts))
    row_of = {prompt: i for i, prompt in enumerate(different)}
    wanted = torch.tensor([row_of[p] for p in prompts], device=runtime.device)
    cache = model.new_cache(len(prompts), dtype, runtime.device)
    logits = torch.empty(len(prompts), model.shape.image_vocab, device=runtime.device)
    for start in range(0, len(different), _PREFILL_ROWS):
        part = [list(p) for p in different[start : start + _PREFILL_ROWS]]
        part += [[]] * (_PREFILL_ROWS - len(part))
        text = torch.from_numpy(pad_text(part, model.shape.max_text_tokens).astype(np.int64)).to(runtime.device)
        small = model.new_cache(_PREFILL_ROWS, dtype, runtime.device)
        first = model.prefill(text, small)
        rows = ((wanted >= start) & (wanted < start + _PREFILL_ROWS)).nonzero().flatten()
        source = wanted[rows] - start
        logits[rows] = first[source]
        for layer, read in zip(cache.layers, small.layers, strict=True):
            layer.keys[rows, :, : small.length] = read.keys[source, :, : small.length]
            layer.values[rows, :, : small.length] = read.values[source, :, : small.length]
        cache.length = small.length
    return cache, logits
