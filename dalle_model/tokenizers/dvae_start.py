"""Initial weights of a dVAE from pictures, for runs too short to find codes by themselves.

With the paper's initial weights and its scale of 1/64 per block, logits of 256 codes differed by 0.15 between places
and by 0.55 between codes, beside Gumbel noise of 1.28: all places take the same few codes, and the decoder, which reads
one weight in K, learns to do without them. Here the convolutions outside of the residual branches get outputs of unit
variance (layer-sequential unit variance, Mishkin and Matas 2015, arXiv 1511.06422), the codes begin as centres of the
encoder's own features on training pictures (k-means as for the codebooks of Dhariwal et al. 2020, arXiv 2005.00341),
and the decoder as one that draws the mean picture and reads near centres as near vectors, so that a relaxed code means
something from the first update on.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dalle_model.tokenizers.dvae import DvaeBlock, DvaeTokenizer, argmax_codes, kl_to_uniform, map_pixels

INFORMATION = 0.75
"""KL of the first codes from the uniform prior as a share of ln K: noise then swaps a code for near ones only."""

_LEAST_SPREAD = 1e-4  # of a channel's largest value; what sums in float32 round off lies below
_FIRST_MAPS = 0.3  # of the last convolution's initial weights: the first pictures are grey, no saturated colours
_ROUNDS, _LLOYD = 16, 3  # of drawing first centres, and of moving them to the mean of their places
_SHARPEST = 300.0  # of logits, per variance of the features
_BISECTED_ON = 1024  # places


@torch.no_grad()
def start_from_pictures(tokenizer: DvaeTokenizer, images: Tensor) -> None:
    """Scale the convolutions outside of the branches, and set those beside the codes, by what pictures look like.

    images: float [n, 3, H, W] in [0, 1], some hundred training pictures. In place; a pure function of both. Pictures
    that are the same everywhere leave the convolutions beside the codes as they are.
    """
    encoder, decoder = tokenizer.encoder, tokenizer.decoder
    mapped = map_pixels(images)
    for conv in [encoder.input, *_widening(encoder)]:
        _scale(conv, lambda: encoder.features(mapped))
    features = encoder.features(mapped).float()
    places = features.permute(0, 2, 3, 1).flatten(0, 2)
    if not bool(_told(places).any()):
        return
    centres = _centres(places, encoder.output.out_channels)
    weight, bias = _nearest(places, centres)
    encoder.output.weight.copy_(weight[:, :, None, None])
    assert encoder.output.bias is not None and decoder.output.bias is not None
    encoder.output.bias.copy_(bias)
    _read_as(decoder.input, places, centres)
    ids = argmax_codes(places, weight, bias).view(len(images), *features.shape[2:])
    for conv in _widening(decoder):
        _scale(conv, lambda: decoder(decoder.read_ids(ids)))
    decoder.output.weight.mul_(_FIRST_MAPS)
    decoder.output.bias[:3] = torch.logit(mapped.mean((0, 2, 3)))


def _centres(places: Tensor, count: int) -> Tensor:
    """k-means of [R, C] -> [count, C]. First centres are drawn by squared distance to the nearest of those before, many
    at a time (Bahmani et al. 2012, arXiv 1203.6402): grounds of one colour, most of the places, then take one centre.
    """
    draw = torch.Generator().manual_seed(0)
    squares = places.square().sum(1)
    centres = places.mean(0, keepdim=True)
    nearest = (places - centres).square().sum(1)
    chosen: list[Tensor] = []
    for part in torch.arange(count).chunk(_ROUNDS):
        weights = nearest.clamp(min=1e-6 * float(squares.mean()))
        new = places[torch.multinomial(weights.cpu(), len(part), replacement=True, generator=draw).to(places.device)]
        chosen.append(new)
        distances = squares[:, None] - 2 * places @ new.t() + new.square().sum(1)
        nearest = torch.minimum(nearest, distances.amin(1))
    centres = torch.cat(chosen)
    for _ in range(_LLOYD):
        ids = argmax_codes(places, centres, -0.5 * centres.square().sum(1))
        held = torch.zeros(count, device=places.device).index_add_(0, ids, torch.ones_like(squares))
        sums = torch.zeros_like(centres).index_add_(0, ids, places)
        centres = torch.where(held[:, None] > 0, sums / held[:, None].clamp(min=1), centres)
    return centres


def _nearest(places: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Weight [K, C] and bias [K] of logits that fall with the squared distance to a code's centre, as sharp as gives
    ``INFORMATION``.
    """
    bias = -0.5 * centres.square().sum(1)
    logits = places[:: max(1, len(places) // _BISECTED_ON)] @ centres.t() + bias
    variance = float((places - places.mean(0)).square().sum(1).mean())
    wanted = INFORMATION * math.log(len(centres))
    low, high = 0.01 / variance, _SHARPEST / variance
    for _ in range(24):
        middle = math.sqrt(low * high)
        if float(kl_to_uniform(middle * logits[:, :, None, None]).mean()) < wanted:
            low = middle
        else:
            high = middle
    return low * centres, low * bias


def _read_as(conv: nn.Conv2d, places: Tensor, centres: Tensor) -> None:
    """Let the decoder read a code as its centre's place along the main directions of the features, deviation 1 in all.

    Directions are scaled by the root of their deviation: a compromise between their own lengths and equal ones.
    """
    mean = places.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((places - mean).t()))
    kept = min(conv.out_channels, len(values))
    values, vectors = values[-kept:].clamp(min=1e-6 * float(values[-1])), vectors[:, -kept:]
    directions = vectors * values.pow(-0.25)
    directions = directions / ((places - mean) @ directions).std()
    conv.weight[:kept] = ((centres - mean) @ directions).t()[:, :, None, None]
    assert conv.bias is not None
    conv.bias[:kept] = 0


def _widening(half: nn.Module) -> list[nn.Conv2d]:
    """Projections on the identity path, in the order of the forward pass."""
    blocks = [m for m in half.modules() if isinstance(m, DvaeBlock)]
    return [b.identity for b in blocks if isinstance(b.identity, nn.Conv2d)]


def _told(rows: Tensor) -> Tensor:
    """Which channels of [R, C] differ between rows: of others the rounding errors are not to be made large. [C]."""
    if len(rows) < 2:  # one place of one picture
        return torch.zeros(rows.shape[1], dtype=torch.bool, device=rows.device)
    return rows.std(0) > _LEAST_SPREAD * rows.abs().amax(0).clamp(min=_LEAST_SPREAD)


def _scale(conv: nn.Conv2d, forward: Callable[[], Tensor]) -> None:
    """Scale and shift a convolution so that its output in ``forward`` has deviation 1 and mean 0 per channel."""
    seen: list[Tensor] = []
    hook = conv.register_forward_hook(lambda _, __, out: seen.append(out))
    forward()
    hook.remove()
    rows = seen[0].float().permute(0, 2, 3, 1).flatten(0, 2)
    if len(rows) < 2:
        return
    spread, mean = torch.std_mean(rows, dim=0)
    factor = torch.where(_told(rows), 1 / spread, torch.ones_like(spread))
    conv.weight.mul_(factor.view(-1, 1, 1, 1))
    assert conv.bias is not None
    conv.bias.copy_((conv.bias - mean) * factor)
