"""Distance between pictures in the features of a fixed network (Johnson et al. 2016; LPIPS: Zhang et al. 2018).

Two networks: a VGG-16 whose weights the user gives, and untrained convolutions that need no file. Both are frozen, and
neither is part of what is trained or saved.
"""

import hashlib
from collections.abc import Mapping, Sequence

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from dalle_model.errors import DataError

# VGG-16 (Simonyan and Zisserman 2014): widths of its convolutions by stage; LPIPS compares the ends of the stages.
_VGG_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_VGG_PLACES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))  # numbers of the convolutions in ``features``
_VGG_MEAN, _VGG_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of its training pictures
_FIXED_WIDTHS = (32, 64, 96)
_FIXED_SEED = 20210224


class PerceptualDistance(nn.Module):
    """Stages of convolutions; the squared distance of channel-normalised maps, mean over places, summed over stages.

    With heads (LPIPS) the channels are weighted by them, without they are summed, each stage dividing by their number.
    """

    def __init__(self, stages: Sequence[nn.Module], heads: Sequence[Tensor], scale: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        for i, head in enumerate(heads):
            self.register_buffer(f"head_{i}", head)
        self.register_buffer("mean", scale[0].view(1, 3, 1, 1))
        self.register_buffer("std", scale[1].view(1, 3, 1, 1))
        self.mean: Tensor
        self.std: Tensor
        self.requires_grad_(False)
        self.eval()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Float [B, 3, H, W] around [0, 1] each -> distances float32 [B]; differentiable in both."""
        x = torch.cat([a, b])
        x = ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        total = torch.zeros(len(a), device=a.device)
        for i, stage in enumerate(self.stages):
            x = stage(x)
            unit = x.float() / (x.float().square().sum(1, keepdim=True).sqrt() + 1e-10)
            first, second = unit.chunk(2)
            head: Tensor = getattr(self, f"head_{i}")
            total = total + ((first - second).square() * head.view(1, -1, 1, 1)).sum(1).flatten(1).mean(1)
        return total


def vgg_distance(data: bytes, sha256: str = "") -> PerceptualDistance:
    """LPIPS on a VGG-16 in a safetensors file: ``features.<n>.weight|bias``, and ``lin<k>.model.1.weight`` where it has heads.

    Without heads the normalised maps count equally. Raises DataError when the bytes are not those of ``sha256``, or do
    not hold that network.
    """
    found = hashlib.sha256(data).hexdigest()
    if sha256 and found != sha256:
        raise DataError(f"the perceptual weights have SHA-256 {found}, not {sha256}; give the file that was declared")
    try:
        tensors = load_tensors(data)
    except SafetensorError as error:
        raise DataError(f"the perceptual weights are no safetensors file: {error}; convert the state dict") from error
    stages, heads, before = [], [], 3
    for k, (widths, places) in enumerate(zip(_VGG_STAGES, _VGG_PLACES, strict=True)):
        layers: list[nn.Module] = [nn.MaxPool2d(2)] if k else []
        for width, place in zip(widths, places, strict=True):
            conv = nn.Conv2d(before, width, 3, padding=1)
            _copy(conv.weight, tensors, f"features.{place}.weight")
            _copy(conv.bias, tensors, f"features.{place}.bias")
            layers += [conv, nn.ReLU()]
            before = width
        stages.append(nn.Sequential(*layers))
        head = torch.full((before,), 1 / before)
        name = f"lin{k}.model.1.weight"
        if name in tensors:
            head = tensors[name].flatten().float()
        heads.append(head)
    return PerceptualDistance(stages, heads, (torch.tensor(_VGG_MEAN), torch.tensor(_VGG_STD)))


def _copy(parameter: Tensor | None, tensors: Mapping[str, Tensor], name: str) -> None:
    given = tensors.get(name)
    if parameter is None or given is None or given.shape != parameter.shape:
        shape = "absent" if given is None else tuple(given.shape)
        raise DataError(f"the perceptual weights are not those of a VGG-16: {name} is {shape}; see perceptual_file")
    with torch.no_grad():
        parameter.copy_(given)


def fixed_distance() -> PerceptualDistance:
    """The same on untrained convolutions: the deep structure, not the training, does much of the work (LPIPS, table 5).

    Weights are a fixed draw, zero-mean over each kernel by half, so that edges count beside plain colour.
    """
    generator = torch.Generator().manual_seed(_FIXED_SEED)
    stages, heads, before = [], [], 3
    for width in _FIXED_WIDTHS:
        conv = nn.Conv2d(before, width, 3, stride=2, padding=1, padding_mode="replicate")
        with torch.no_grad():
            kernel = torch.randn(conv.weight.shape, generator=generator)
            kernel -= 0.5 * kernel.mean(dim=(2, 3), keepdim=True)
            conv.weight.copy_(kernel * (2 / (before * 9)) ** 0.5)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        stages.append(nn.Sequential(conv, nn.LeakyReLU(0.2)))
        heads.append(torch.full((width,), 1 / width))
        before = width
    half = torch.full((3,), 0.5)
    return PerceptualDistance(stages, heads, (half, half))
