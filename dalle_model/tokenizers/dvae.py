"""The discrete VAE of the DALL-E paper (Ramesh et al. 2021, arXiv 2102.12092, section 2.1 and appendix A).

Structure, constants and schedules follow the paper and its published encoder; ``config.width`` and
``config.downsampling`` scale it (the paper: 256 and 8, with 8192 codes).
"""

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle_model.config import TokenizerConfig
from dalle_model.tokenizers.base import ImageTokenizer

PIXEL_EPS = 0.1

_BLOCK = 128  # codes of which the maximum is taken at once
_WIDE = 512  # features from which a rough product pays: narrower ones are limited by the logits, not by the product
_BEST_BLOCKS, _BEST_CODES = 4, 2  # blocks, and codes of each, that are compared exactly


def map_pixels(images: Tensor) -> Tensor:
    """[0, 1] -> [0.1, 0.9]: keeps the logit-Laplace density finite (appendix A.3)."""
    return (1 - 2 * PIXEL_EPS) * images + PIXEL_EPS


def unmap_pixels(mapped: Tensor) -> Tensor:
    """The inverse of ``map_pixels``, clamped to [0, 1]."""
    return ((mapped - PIXEL_EPS) / (1 - 2 * PIXEL_EPS)).clamp(0, 1)


def temperature(step: int, final: float = 1 / 16, num_steps: int = 150_000) -> float:
    """Gumbel-softmax temperature of update ``step``: 1 -> ``final`` by cosine over ``num_steps``, then constant."""
    return _cosine(step, 1.0, final, num_steps)


def kl_weight(step: int, final: float = 6.6, num_steps: int = 5_000) -> float:
    """Weight of the KL term: 0 -> ``final`` by cosine over ``num_steps``, then constant (openai/DALL-E issue 8)."""
    return _cosine(step, 0.0, final, num_steps)


def _cosine(step: int, start: float, final: float, num_steps: int) -> float:
    progress = min(1.0, step / num_steps)
    return final + (start - final) * 0.5 * (1 + math.cos(math.pi * progress))


def _conv(n_in: int, n_out: int, kernel: int) -> nn.Conv2d:
    """Same-size convolution with the paper's initial values: normal with std 1/sqrt(fan-in), zero bias."""
    conv = nn.Conv2d(n_in, n_out, kernel, padding=(kernel - 1) // 2)
    nn.init.normal_(conv.weight, std=1 / math.sqrt(n_in * kernel**2))
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


class DvaeBlock(nn.Module):
    """identity(x) + gain * body(x); body = four relu-then-conv stages of widths out/4, out/4, out/4, out."""

    def __init__(self, n_in: int, n_out: int, gain: float, kernels: tuple[int, int, int, int]) -> None:
        super().__init__()
        hidden = max(1, n_out // 4)
        self.gain = gain
        self.identity = nn.Identity() if n_in == n_out else _conv(n_in, n_out, 1)
        stages: list[tuple[str, nn.Module]] = []
        sizes = [(n_in, hidden), (hidden, hidden), (hidden, hidden), (hidden, n_out)]
        for i, ((a, b), kernel) in enumerate(zip(sizes, kernels, strict=True), start=1):
            stages += [(f"relu_{i}", nn.ReLU()), (f"conv_{i}", _conv(a, b, kernel))]
        self.body = nn.Sequential(OrderedDict(stages))

    def forward(self, x: Tensor) -> Tensor:
        """[B, n_in, H, W] -> [B, n_out, H, W]."""
        out: Tensor = torch.add(self.identity(x), self.body(x), alpha=self.gain)
        return out


class DvaeEncoder(nn.Module):
    """7x7 stem, groups of blocks with 2x2 max-pooling between them, relu, 1x1 convolution to the logits."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        num_groups = int(math.log2(config.downsampling)) + 1
        gain = config.block_gain or 1 / (num_groups * config.blocks_per_group) ** 2
        self.input = _conv(3, config.width, 7)
        groups: list[nn.Module] = []
        width = config.width
        for i in range(num_groups):
            out = config.width * 2**i
            blocks: list[nn.Module] = []
            for _ in range(config.blocks_per_group):
                blocks.append(DvaeBlock(width, out, gain, (3, 3, 3, 1)))
                width = out
            if i < num_groups - 1:
                blocks.append(nn.MaxPool2d(2))  # better ELBO than average pooling (appendix A.1)
            groups.append(nn.Sequential(*blocks))
        self.groups = nn.Sequential(*groups)
        self.output = _conv(width, config.num_codes, 1)

    def features(self, mapped: Tensor) -> Tensor:
        """Mapped pixels [B, 3, H, W] -> the input of the last convolution, [B, C, g, g]."""
        return F.relu(self.groups(self.input(mapped.contiguous(memory_format=torch.channels_last))))

    def forward(self, mapped: Tensor) -> Tensor:
        """Mapped pixels [B, 3, H, W] -> float32 logits [B, K, g, g]; the last convolution is never in low precision."""
        features = self.features(mapped)
        with torch.autocast(features.device.type, enabled=False):
            logits: Tensor = self.output(features.float())
        return logits


class DvaeDecoder(nn.Module):
    """1x1 convolution that reads the codes, groups of blocks with nearest upsampling between them, six output maps."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        num_groups = int(math.log2(config.downsampling)) + 1
        gain = config.block_gain or 1 / (num_groups * config.blocks_per_group) ** 2
        width = max(4, config.width // 2)  # the paper: 128 for a width of 256
        self.input = _conv(config.num_codes, width, 1)
        groups: list[nn.Module] = []
        for i in reversed(range(num_groups)):
            out = config.width * 2**i
            blocks: list[nn.Module] = []
            for _ in range(config.blocks_per_group):
                blocks.append(DvaeBlock(width, out, gain, (1, 3, 3, 3)))
                width = out
            if i:
                blocks.append(nn.Upsample(scale_factor=2, mode="nearest"))
            groups.append(nn.Sequential(*blocks))
        self.groups = nn.Sequential(*groups)
        self.output = _conv(width, 6, 1)

    def read_ids(self, ids: Tensor) -> Tensor:
        """Ids [B, g, g] -> what the first convolution makes of their one-hot maps, by look-up."""
        table = self.input.weight[:, :, 0, 0].t()
        out = F.embedding(ids, table)
        if self.input.bias is not None:
            out = out + self.input.bias
        return out.permute(0, 3, 1, 2)

    def read_soft(self, weights: Tensor) -> Tensor:
        """Weights over the codes, float32 [B, K, g, g] -> [B, C, g, g]; never in low precision."""
        with torch.autocast(weights.device.type, enabled=False):
            out: Tensor = self.input(weights.float())
        return out

    def forward(self, read: Tensor) -> Tensor:
        """[B, C, g, g] of ``read_ids`` or ``read_soft`` -> float32 [B, 6, H, W]: mu and ln b of the logit-Laplace."""
        out: Tensor = self.output(F.relu(self.groups(read.contiguous(memory_format=torch.channels_last))))
        return out.float()


def logit_laplace_nll(mapped: Tensor, mu: Tensor, log_b: Tensor) -> Tensor:
    """-ln of 1 / (2 b x (1 - x)) * exp(-|logit x - mu| / b), per value (equation 2 of the paper)."""
    distance = (torch.logit(mapped) - mu).abs()
    return distance * torch.exp(-log_b) + log_b + math.log(2.0) + torch.log(mapped * (1 - mapped))


def kl_to_uniform(logits: Tensor) -> Tensor:
    """KL from the categorical of ``logits`` [B, K, g, g] to the uniform prior, nats, [B, g, g]."""
    log_q = F.log_softmax(logits, dim=1)
    return (log_q.exp() * log_q).sum(1) + math.log(logits.shape[1])


def dvae_loss(mapped: Tensor, maps: Tensor, logits: Tensor, beta: float) -> Tensor:
    """The paper's loss: (sum of -ln likelihood over values + beta * sum of KL over positions) / values, batch mean.

    mapped [B, 3, H, W] in (0.1, 0.9), maps [B, 6, H, W], logits [B, K, g, g] -> scalar. Dividing both terms by
    3 * H * W makes the weight of the KL per picture beta / 192 of the per-position mean at 256 px; replicas that
    average pixels but sum the KL over the batch weight it 30,000 times the batch size too much (recipe 1A).
    """
    mu, log_b = maps.chunk(2, dim=1)
    values = mapped[0].numel()
    per_image = logit_laplace_nll(mapped, mu, log_b).flatten(1).sum(1) + beta * kl_to_uniform(logits).flatten(1).sum(1)
    return per_image.mean() / values


def normal_dvae_loss(mapped: Tensor, maps: Tensor, logits: Tensor, beta: float) -> Tensor:
    """``dvae_loss`` with a normal density of deviation 0.1 around sigmoid(mu) in place of the logit-Laplace, but for a
    constant: half of the squared error over 0.01. ln b has no gradient.

    The best guess of a Laplace density that knows nothing of its pixel is the median, of a normal one the mean. On
    grounds of which more than half is white the median is white, and codes gain little by telling what is not.
    """
    values = mapped[0].numel()
    error = 0.5 * ((torch.sigmoid(maps[:, :3]) - mapped) / PIXEL_EPS).square()
    per_image = error.flatten(1).sum(1) + beta * kl_to_uniform(logits).flatten(1).sum(1)
    return per_image.mean() / values


def gumbel_softmax(logits: Tensor, tau: float, noise: Tensor) -> Tensor:
    """Soft sample over dim 1, ``noise`` being standard Gumbel. Soft in both passes, no straight-through."""
    return F.softmax((logits + noise) / tau, dim=1)


def gumbel_noise(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """Standard Gumbel noise, float32; drawn on the generator's device so that it is the same everywhere."""
    uniform = torch.rand(shape, generator=generator).clamp_(min=1e-20)
    return uniform.log_().neg_().clamp_(min=1e-20).log_().neg_().to(device)


def argmax_codes(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    rows_per_tile: int = 256,
    rounded: Tensor | None = None,
) -> Tensor:
    """argmax over codes of features @ weight.T + bias without ever holding all logits.

    features [R, C], weight [K, C], bias [K], the last two float32 -> int64 [R]. Rows go in tiles that stay in the
    cache, and a tile's argmax is taken in two levels (block maximum, then within the block), which vectorises where a
    plain argmax does not: 4 times faster at K = 8192 on a CPU. Ties go to the lowest code, as torch.argmax.

    Wide features in low precision are compared in that precision first; the best of several blocks are then compared
    in float32, as a layer that stays in float32 would have them. ``rounded``: ``weight`` in that precision, where it is
    at hand.
    """
    if features.dtype != torch.float32 and features.shape[1] >= _WIDE and weight.shape[0] > _BLOCK:
        table = weight.to(features.dtype) if rounded is None else rounded
        offsets = weight.new_zeros(len(weight)) if bias is None else bias
        return _argmax_of_candidates(features, weight, offsets, table.t(), rows_per_tile)
    features = features.float()
    num_codes = weight.shape[0]
    block = _BLOCK if num_codes % _BLOCK == 0 else num_codes
    out = torch.empty(features.shape[0], dtype=torch.long, device=features.device)
    table = weight.t().contiguous()
    for start in range(0, features.shape[0], rows_per_tile):
        rows = features[start : start + rows_per_tile]
        logits = torch.mm(rows, table) if bias is None else torch.addmm(bias, rows, table)
        blocks = logits.view(logits.shape[0], -1, block)
        best_block = blocks.amax(-1).argmax(-1)
        inside = blocks[torch.arange(len(blocks), device=blocks.device), best_block].argmax(-1)
        out[start : start + rows_per_tile] = best_block * block + inside
    return out


def _argmax_of_candidates(features: Tensor, weight: Tensor, bias: Tensor, table: Tensor, rows_per_tile: int) -> Tensor:
    """The same by rough logits in the type of ``features``, then exact ones of the best codes of the best blocks."""
    num_codes = weight.shape[0]
    block = _BLOCK if num_codes % _BLOCK == 0 else num_codes
    out = torch.empty(features.shape[0], dtype=torch.long, device=features.device)
    for start in range(0, features.shape[0], rows_per_tile):
        rows = features[start : start + rows_per_tile]
        blocks = (torch.mm(rows, table).float() + bias).view(len(rows), -1, block)
        best = blocks.amax(-1).topk(min(_BEST_BLOCKS, blocks.shape[1])).indices
        inside = blocks.gather(1, best[:, :, None].expand(-1, -1, block)).topk(min(_BEST_CODES, block)).indices
        codes = (best[:, :, None] * block + inside).flatten(1).sort().values  # ascending: ties go to the lowest
        exact = torch.bmm(weight[codes], rows.float().unsqueeze(2)).squeeze(2) + bias[codes]
        out[start : start + rows_per_tile] = codes.gather(1, exact.argmax(1, keepdim=True)).squeeze(1)
    return out


class DvaeTokenizer(ImageTokenizer):
    """Encoder, codes and decoder of the paper."""

    pixel_transform = "logit-laplace-0.1"

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config)
        self.encoder = DvaeEncoder(config)
        self.decoder = DvaeDecoder(config)
        self.rounded_head: Tensor | None = None  # see ``encoding.prepared``

    def forward(self, mapped: Tensor, tau: float, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Mapped pixels [B, 3, H, W] -> (maps [B, 6, H, W], logits [B, K, g, g]) through the relaxation."""
        logits = self.encoder(mapped)
        soft = gumbel_softmax(logits, tau, noise)
        return self.decoder(self.decoder.read_soft(soft)), logits

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Float [B, 3, H, W] in [0, 1] -> int64 ids [B, N]: argmax of the logits, no noise."""
        self.check_images(images)
        features = self.encoder.features(map_pixels(images))
        batch, channels = features.shape[:2]
        rows = features.permute(0, 2, 3, 1).reshape(-1, channels)
        head = self.encoder.output
        with torch.autocast(rows.device.type, enabled=False):
            bias = head.bias.float() if head.bias is not None else None
            ids = argmax_codes(rows, head.weight.flatten(1).float(), bias, rounded=self.rounded_head)
        return ids.view(batch, -1)

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """Integer ids [B, N] -> float32 [B, 3, H, W] in [0, 1]; ln b is not used (appendix A.3)."""
        self.check_ids(ids)
        maps = self.decoder(self.decoder.read_ids(ids.long().view(-1, self.grid, self.grid)))
        return unmap_pixels(torch.sigmoid(maps[:, :3]))
