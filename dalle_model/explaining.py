"""Why a picture looks as it does: where each word was looked at, and which image tokens surprised the model.

Both come from one pass over the finished sequence. Attention shows what was read, not what was needed.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dalle_model.captions import CaptionTokenizer
from dalle_model.dalle import Dalle
from dalle_model.runtime import Runtime
from dalle_model.token_batches import pad_text


@dataclass(frozen=True)
class Explanation:
    """words: of the prompt as far as the model reads it. attention: float32 [words, grid, grid], the share of each image
    token's attention that goes to the word, mean over layers and heads. surprise: float32 [grid, grid], -ln p of each
    token given all before it, nats.
    """

    words: list[str]
    attention: NDArray[np.float32]
    surprise: NDArray[np.float32]


@torch.inference_mode()
def explain(
    model: Dalle, words: CaptionTokenizer, prompt: str, tokens: NDArray[np.uint16], runtime: Runtime
) -> Explanation:
    """The explanation of one picture, given its prompt and its image tokens uint16 [N]."""
    model.to(runtime.device).eval()
    limit, grid = model.shape.max_text_tokens, model.shape.grid
    text = torch.from_numpy(pad_text([words.encode(prompt)[:limit]], limit).astype(np.int64)).to(runtime.device)
    image = torch.from_numpy(tokens[None].astype(np.int64)).to(runtime.device)
    logits = model.image_logits(model(text, image))
    surprise = F.cross_entropy(logits.transpose(1, 2), image, reduction="none")[0].view(grid, grid)
    looked = _attention_to_text(model, text, image)  # [N, L]
    names, maps, start = [], [], 0
    parts = prompt.split()
    for count, word in enumerate(parts, 1):
        end = min(len(words.encode(" ".join(parts[:count]))), limit)
        if end > start:
            names.append(word)
            maps.append(looked[:, start:end].sum(1).view(grid, grid))
        start = end
    attention = torch.stack(maps) if maps else torch.zeros(0, grid, grid)
    return Explanation(names, attention.float().cpu().numpy(), surprise.float().cpu().numpy())


def _attention_to_text(model: Dalle, text: Tensor, image: Tensor) -> Tensor:
    """Mean share of attention from the position that predicts each image token to each text position, [N, L]."""
    length = model.shape.max_text_tokens
    x, rotary = model.inputs(text, image)
    total = torch.zeros(model.shape.num_image_tokens, length, device=x.device)
    causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
    layers = model.decoder_layers()
    for block, seen in layers:
        q, k, _ = block.attention.project(block.norm_attention(x), rotary)
        scores = torch.matmul(q[:, :, length:], k.transpose(2, 3)) / math.sqrt(q.shape[-1])
        mask = causal if seen is None else seen[:-1, :-1]
        share = scores.masked_fill(~mask[length:], -math.inf).softmax(-1)
        total += share[0, :, :, 1 : length + 1].mean(0)  # position 0 is the start
        x = block(x, rotary, None if seen is None else seen[:-1, :-1])
    return total / len(layers)


def heat(picture: NDArray[np.uint8], values: NDArray[np.float32], px: int = 192) -> NDArray[np.uint8]:
    """A map [grid, grid] over its picture: uint8 [px, px, 3], grey where low, full colour and red where high."""
    low, high = float(values.min()), float(values.max())
    level = (values - low) / (high - low) if high > low else np.zeros_like(values)
    shown = Image.fromarray((level * 255).astype(np.uint8)).resize((px, px), Image.Resampling.BICUBIC)
    strength = (np.asarray(shown, dtype=np.float32) / 255)[..., None]
    large = np.asarray(Image.fromarray(picture).resize((px, px), Image.Resampling.NEAREST), dtype=np.float32)
    grey = large.mean(-1, keepdims=True) * 0.6 + 90
    mixed = grey * (1 - strength) + (0.55 * large + 0.45 * np.array([230, 40, 20], np.float32)) * strength
    hot: NDArray[np.uint8] = mixed.clip(0, 255).astype(np.uint8)
    return hot
