"""From logits to one token: temperature, top-k, top-p, min-p and guidance, in float32, without a softmax over the
vocabulary where none is needed. Axes: B rows, K tokens."""

import math

import numpy as np
import torch
from torch import Tensor

from dalle_model.config import SamplerConfig

_LEADING = 512  # tokens sorted for top-p; all are sorted when these do not reach the probability


def filter_logits(logits: Tensor, sampler: SamplerConfig) -> Tensor:
    """Temperature, top-k, top-p, min-p, in this order: float32 [B, K] -> the same, -inf where a token may not be drawn.

    Of tokens that tie at the border of top-k or top-p all are kept. ``temperature`` must be above 0 here.
    """
    if sampler.temperature != 1.0:
        logits = logits / sampler.temperature
    ordered = None
    if 0 < sampler.top_k < logits.shape[-1]:
        if sampler.top_p == 1.0 and logits.device.type == "cpu":
            logits = _from(logits, _kth(logits, sampler.top_k))
        else:
            ordered = logits.topk(sampler.top_k, dim=-1).values
            logits = _from(logits, ordered[:, -1:])
    if sampler.top_p < 1.0:
        logits = _from(logits, _least_of_top_p(logits, ordered, sampler.top_p))
    if sampler.min_p > 0.0:  # p >= min_p * p_best is logit >= best + ln(min_p): no softmax
        logits = _from(logits, logits.amax(-1, keepdim=True) + math.log(sampler.min_p))
    return logits


def _from(logits: Tensor, least: Tensor) -> Tensor:
    """Logits [B, K] that are not below ``least`` [B, 1], the others -inf. numpy takes half of torch's time on a CPU."""
    if logits.device.type == "cpu":
        known = logits.numpy()
        return torch.from_numpy(np.where(known < least.numpy(), np.float32(-math.inf), known))
    return logits.masked_fill(logits < least, -math.inf)


def _kth(logits: Tensor, k: int) -> Tensor:
    """The k-th largest of each row of [B, K] on a CPU, [B, 1]; a partition takes a third of the time of torch's search."""
    at = logits.shape[-1] - k
    return torch.from_numpy(np.partition(logits.numpy(), at, axis=-1)[:, at : at + 1])


def _least_of_top_p(logits: Tensor, ordered: Tensor | None, top_p: float) -> Tensor:
    """The smallest logit [B, 1] among the most probable tokens that together reach ``top_p``.

    ordered: the leading logits in falling order, or None. Probabilities are of all logits that are not -inf.
    """
    total = logits.logsumexp(-1, keepdim=True)
    if ordered is None:
        ordered = logits.topk(min(_LEADING, logits.shape[-1]), dim=-1).values
        if ordered.shape[-1] < logits.shape[-1] and bool(((ordered - total).exp().sum(-1) < top_p).any()):
            ordered = logits.sort(dim=-1, descending=True).values
    chances = (ordered - total).exp()
    before = chances.cumsum(-1) - chances
    before[:, 0] = 0.0  # the best token is always kept
    return ordered.masked_fill(before >= top_p, math.inf).amin(-1, keepdim=True)


def pick(logits: Tensor, noise: Tensor | None, sampler: SamplerConfig) -> Tensor:
    """One token per row: logits float32 [B, K], Gumbel noise of the same shape -> int64 [B].

    argmax(logits + Gumbel) is a draw from softmax(logits), without the softmax. Temperature 0 takes the most
    probable token and needs no noise.
    """
    if sampler.temperature == 0.0 or noise is None:
        return best(logits)
    return best(filter_logits(logits, sampler) + noise)


def best(scores: Tensor) -> Tensor:
    """The first of the largest: float32 [B, K] -> int64 [B]. numpy's search is 20 times faster than torch's on a CPU."""
    if scores.device.type == "cpu":
        return torch.from_numpy(scores.numpy().argmax(-1))
    return scores.argmax(-1)


def guide(logits: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance: the first half of the rows [2B, K] has the caption, the second has none -> [B, K]."""
    with_caption, without = logits.chunk(2)
    return without + guidance * (with_caption - without)
