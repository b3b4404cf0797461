"""A critic of patches for autoencoders (Isola et al. 2017; Esser et al. 2021, arXiv 2012.09841, section 3.1)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MOST_HALVINGS = 3


class PatchCritic(nn.Module):
    """Convolutions of stride 2, then one number per patch: above 0 reads as real, below as made.

    Group norm where the published network has batch norm: the verdict on a picture must not depend on its neighbours,
    or the size of the micro-batch and the number of ranks would change the training.
    """

    def __init__(self, image_px: int, width: int) -> None:
        super().__init__()
        halvings = max(1, min(_MOST_HALVINGS, int(math.log2(image_px)) - 2))
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, halvings):
            before, after = width * 2 ** (i - 1), width * 2**i
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), _norm(after), nn.LeakyReLU(0.2)]
        last = width * 2 ** (halvings - 1)
        layers += [nn.Conv2d(last, 2 * last, 3, padding=1), _norm(2 * last), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*layers, nn.Conv2d(2 * last, 1, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        """Float [B, 3, H, W] around [0, 1] -> float32 verdicts [B, patches]."""
        out: Tensor = self.body((images * 2 - 1).contiguous(memory_format=torch.channels_last))
        return out.float().flatten(1)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(channels, 8), channels)


def hinge_critic(real: Tensor, made: Tensor) -> Tensor:
    """What the critic lowers: half of relu(1 - real) + relu(1 + made), mean over patches, per picture [B]."""
    return 0.5 * (F.relu(1 - real).mean(1) + F.relu(1 + made).mean(1))


def hinge_maker(made: Tensor) -> Tensor:
    """What the maker lowers: -verdict, mean over patches, per picture [B]."""
    return -made.mean(1)


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor) -> Tensor:
    """VQGAN's lambda: ratio of the norms of two gradients with respect to the decoder's last layer (equation 7).

    reconstruction, adversarial: norms [B], one per picture -> weights [B] in [0, 10000]. Taken per picture and not over
    the batch, so that the gradient of a batch stays the sum over its parts.
    """
    return (reconstruction / (adversarial + 1e-4)).clamp(0, 1e4)


def last_layer_norms(inputs: Tensor, gradient: Tensor, kernel: int) -> Tensor:
    """Norm of the gradient with respect to a same-size convolution's kernel, for each picture alone, float32 [B].

    inputs [B, C, h, w] of the convolution, gradient [B, D, h, w] with respect to its output.
    """
    patches = F.unfold(inputs.detach().float(), kernel, padding=kernel // 2)  # [B, C k k, h w]
    kernels = torch.bmm(gradient.float().flatten(2), patches.transpose(1, 2))
    norms: Tensor = torch.linalg.vector_norm(kernels.flatten(1), dim=1)
    return norms
