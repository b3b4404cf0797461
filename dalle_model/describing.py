"""The second direction of the same weights: words for a picture, and how well words fit a picture.

Needs a model trained with ``image_first_share`` above 0.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle_model.dalle import PAD, Dalle
from dalle_model.objectives import text_targets
from dalle_model.runtime import Runtime


@torch.inference_mode()
def describe(model: Dalle, image: Tensor, runtime: Runtime) -> Tensor:
    """The most probable caption, token by token: image ids int64 [B, N] -> text ids int64 [B, L], padded with 0.

    Captions are short, so the prefix is computed anew for every token instead of kept in a cache.
    """
    image = image.to(runtime.device)
    text = torch.zeros(len(image), model.shape.max_text_tokens, dtype=torch.long, device=runtime.device)
    going = torch.ones(len(image), dtype=torch.bool, device=runtime.device)
    for place in range(text.shape[1]):
        with runtime.autocast():
            logits = model.text_logits(model(text, image, image_first=True), image_first=True)
        text[:, place] = torch.where(going, logits[:, place].argmax(-1), PAD)
        going &= text[:, place] != PAD
        if not bool(going.any()):
            break
    return text


@torch.inference_mode()
def score_captions(model: Dalle, text: Tensor, image: Tensor, runtime: Runtime) -> Tensor:
    """ln p(caption | picture), nats: text ids int64 [B, L] (0 = padding), image ids int64 [B, N] -> float32 [B]."""
    text, image = text.to(runtime.device), image.to(runtime.device)
    with runtime.autocast():
        logits = model.text_logits(model(text, image, image_first=True), image_first=True)
    each = -F.cross_entropy(logits.transpose(1, 2), text, reduction="none")
    return (each * text_targets(text)).sum(1)
