"""What the convolutional autoencoders share: how the decoder's maps become pictures."""

from typing import Literal

import torch
from torch import Tensor

from dalle_model.tokenizers.dvae import PIXEL_EPS

Likelihood = Literal["l1_l2", "logit_laplace"]


def num_maps(loss: Likelihood) -> int:
    """Maps that the decoder gives: colours, or location and log-scale of each colour's logit-Laplace."""
    return 6 if loss == "logit_laplace" else 3


def pictures_of(maps: Tensor, loss: Likelihood) -> Tensor:
    """Decoder maps [B, 3 or 6, H, W] -> float32 [B, 3, H, W], in [0, 1] or a little beyond (not clamped).

    ``logit_laplace``: the log-scales are not used, as in the paper's appendix A.3.
    """
    if loss == "logit_laplace":
        return (torch.sigmoid(maps[:, :3].float()) - PIXEL_EPS) / (1 - 2 * PIXEL_EPS)
    return maps.float() * 0.5 + 0.5
