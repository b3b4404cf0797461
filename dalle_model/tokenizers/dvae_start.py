"""Initial weights of a dVAE scaled on pictures, for runs too short to find their scale by themselves.

With the paper's initial weights and its scale of 1/64 per block, logits of 256 codes differed by 0.15 between places
and by 0.55 between codes, beside Gumbel noise of 1.28: all places take the same few codes, and the decoder, which reads
one weight in K, learns to do without them. Idea: layer-sequential unit variance (Mishkin and Matas 2015, arXiv
1511.06422), on the convolutions outside of the residual branches.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dalle_model.tokenizers.dvae import DvaeBlock, DvaeTokenizer, map_pixels

LOGIT_DEVIATION = 2.0
"""Nats between places: argmax codes are then of many kinds, and the noise (1.28) does not hide them."""

_LEAST_SPREAD = 1e-4  # of a channel's largest value; what sums in float32 round off lies below
_FIRST_MAPS = 0.3  # of the last convolution's initial weights: the first pictures are grey, no saturated colours


@torch.no_grad()
def scale_to_pictures(tokenizer: DvaeTokenizer, images: Tensor) -> None:
    """Give the stem, the widening and the last convolution of the encoder outputs of mean 0 and deviation 1 per channel
    (logits: ``LOGIT_DEVIATION``), and the decoder's first and widening ones likewise on the encoder's own codes.

    images: float [n, 3, H, W] in [0, 1], some hundred training pictures. In place; a pure function of both.
    """
    encoder, decoder = tokenizer.encoder, tokenizer.decoder
    mapped = map_pixels(images)
    for conv in [encoder.input, *_widening(encoder)]:
        _scale(conv, lambda: encoder.features(mapped), 1.0)
    _scale(encoder.output, lambda: encoder(mapped), LOGIT_DEVIATION)
    ids = encoder(mapped).argmax(1)
    one_hot = nn.functional.one_hot(ids, encoder.output.out_channels).permute(0, 3, 1, 2).float()
    for conv in [decoder.input, *_widening(decoder)]:
        _scale(conv, lambda: decoder(decoder.read_soft(one_hot)), 1.0)
    decoder.output.weight.mul_(_FIRST_MAPS)


def _widening(half: nn.Module) -> list[nn.Conv2d]:
    """Projections on the identity path, in the order of the forward pass."""
    blocks = [m for m in half.modules() if isinstance(m, DvaeBlock)]
    return [b.identity for b in blocks if isinstance(b.identity, nn.Conv2d)]


def _scale(conv: nn.Conv2d, forward: Callable[[], Tensor], deviation: float) -> None:
    """Scale and shift a convolution so that its output in ``forward`` has this deviation and mean 0 per channel."""
    seen: list[Tensor] = []
    hook = conv.register_forward_hook(lambda _, __, out: seen.append(out))
    forward()
    hook.remove()
    out = seen[0].float()
    if out.numel() == out.shape[1]:  # one place of one picture
        return
    spread, mean = torch.std_mean(out, dim=(0, 2, 3))
    # a channel that is the same everywhere has no scale: its rounding errors are not to be made large
    told = spread > _LEAST_SPREAD * out.abs().amax((0, 2, 3)).clamp(min=_LEAST_SPREAD)
    factor = torch.where(told, deviation / spread, torch.ones_like(spread))
    conv.weight.mul_(factor.view(-1, 1, 1, 1))
    assert conv.bias is not None
    conv.bias.copy_((conv.bias - mean) * factor)
