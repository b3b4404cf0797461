"""The other directions of the same weights: words for a picture, how well words fit a picture, and text alone.

The first two need a model trained with ``image_first_share`` above 0; text alone needs ``text_loss_share`` above 0 or
the objective ``text``. Rows are always computed in groups of the same size, so that a result does not depend on what
else was asked for.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dalle_model.config import SamplerConfig
from dalle_model.dalle import PAD, Dalle, KVCache
from dalle_model.errors import DataError, UsageError
from dalle_model.filters import pick
from dalle_model.objectives import text_targets
from dalle_model.runtime import Runtime
from dalle_model.sampling import picture_noise

GREEDY = SamplerConfig(temperature=0.0)
_ROWS = 8  # rows computed together, filled up where there are fewer


@torch.inference_mode()
def describe(
    model: Dalle, image: Tensor, runtime: Runtime, sampler: SamplerConfig = GREEDY, keys: Sequence[str] = ()
) -> Tensor:
    """Captions of pictures: image ids int64 [B, N] -> text ids int64 [B, L] on the runtime's device, padded with 0.

    The most probable token each time, or drawn by ``sampler`` with the noise of ``keys``, one per row.
    UsageError when the sampler draws and keys are missing.
    """
    model.require("image_to_text")
    _check_keys(len(image), sampler, keys)
    model.to(runtime.device).eval()
    made = []
    for start in range(0, len(image), _ROWS):
        rows = _filled(image[start : start + _ROWS]).to(runtime.device)
        cache = model.new_cache(_ROWS, runtime.dtype, runtime.device)
        with runtime.autocast():
            logits = model.prefill_image(rows, cache)
            given = torch.empty(_ROWS, 0, dtype=torch.long, device=runtime.device)
            lengths = torch.zeros(_ROWS, dtype=torch.long, device=runtime.device)
            text = _write(model, logits, given, lengths, cache, sampler, keys[start : start + _ROWS])
        made.append(text[: len(image) - start])
    return torch.cat(made) if made else torch.zeros(0, model.shape.max_text_tokens, dtype=torch.long)


@torch.inference_mode()
def continue_captions(
    model: Dalle,
    prompts: Sequence[Sequence[int]],
    runtime: Runtime,
    sampler: SamplerConfig = GREEDY,
    keys: Sequence[str] = (),
) -> Tensor:
    """Text alone, as a GPT: beginnings as token ids -> whole texts, int64 [B, L], padded with 0.

    An empty beginning is allowed. DataError when one leaves no place to go on, UsageError as ``describe``.
    """
    model.require("text")
    length = model.shape.max_text_tokens
    longest = max((len(p) for p in prompts), default=0)
    if longest >= length:
        raise DataError(f"a beginning has {longest} tokens, the model's text has {length}; shorten it to {length - 1}")
    _check_keys(len(prompts), sampler, keys)
    model.to(runtime.device).eval()
    made = []
    for start in range(0, len(prompts), _ROWS):
        part = [*prompts[start : start + _ROWS]]
        part += [part[0]] * (_ROWS - len(part))
        given = torch.zeros(_ROWS, length, dtype=torch.long)
        for row, prompt in zip(given, part, strict=True):
            row[: len(prompt)] = torch.tensor(list(prompt), dtype=torch.long)
        given = given.to(runtime.device)
        lengths = torch.tensor([len(p) for p in part], device=runtime.device)
        cache = model.new_cache(_ROWS, runtime.dtype, runtime.device)
        with runtime.autocast():
            logits = model.prefill_text(given[:, :0], cache)  # beginnings differ in length: they are fed token by token
            text = _write(model, logits, given, lengths, cache, sampler, keys[start : start + _ROWS])
        made.append(text[: len(prompts) - start])
    return torch.cat(made) if made else torch.zeros(0, length, dtype=torch.long)


def _write(
    model: Dalle,
    logits: Tensor,
    given: Tensor,
    lengths: Tensor,
    cache: KVCache,
    sampler: SamplerConfig,
    keys: Sequence[str],
) -> Tensor:
    """Token by token to the end of each row: logits [B, V] of place 0, given ids [B, n] of which ``lengths`` count."""
    length = model.shape.max_text_tokens
    text = torch.zeros(len(logits), length, dtype=torch.long, device=logits.device)
    going = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    for place in range(length):
        noise = None
        if sampler.temperature > 0:
            block = np.concatenate([picture_noise(key, logits.shape[1], 1, place) for key in keys])
            block = np.concatenate([block, np.repeat(block[:1], len(logits) - len(block), axis=0)])
            noise = torch.from_numpy(block).to(logits.device)
        chosen = pick(logits, noise, sampler)
        if place < given.shape[1]:
            chosen = torch.where(place < lengths, given[:, place], chosen)
        text[:, place] = torch.where(going, chosen, PAD)
        going &= text[:, place] != PAD
        if place + 1 == length or not bool(going.any()):
            break
        logits = model.step_text(text[:, place], place, cache)
    return text


@torch.inference_mode()
def score_captions(model: Dalle, text: Tensor, image: Tensor | None, runtime: Runtime) -> Tensor:
    """ln p(caption | picture), nats: text ids int64 [B, L] (0 = padding), image ids int64 [B, N] -> float32 [B].

    Without an image: ln p(caption) of the text alone. The end of the caption counts as one of its tokens.
    """
    model.require("text" if image is None else "image_to_text")
    model.to(runtime.device).eval()
    made = []
    for start in range(0, len(text), _ROWS):
        rows = _filled(text[start : start + _ROWS]).to(runtime.device)
        picture = None if image is None else _filled(image[start : start + _ROWS]).to(runtime.device)
        with runtime.autocast():
            first = picture is not None
            logits = model.text_logits(model(rows, picture, image_first=first), image_first=first)
        each = -F.cross_entropy(logits.transpose(1, 2), rows, reduction="none")
        made.append((each * text_targets(rows)).sum(1)[: len(text) - start])
    return torch.cat(made) if made else torch.zeros(0)


def _filled(rows: Tensor) -> Tensor:
    """At most ``_ROWS`` rows -> exactly that many, the first one repeated."""
    return torch.cat([rows, rows[:1].expand(_ROWS - len(rows), -1)])


def _check_keys(rows: int, sampler: SamplerConfig, keys: Sequence[str]) -> None:
    if sampler.temperature > 0 and len(keys) != rows:
        raise UsageError(
            f"{len(keys)} keys for {rows} rows; at temperature {sampler.temperature:g} each row needs one for its noise"
        )
