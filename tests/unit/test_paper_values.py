"""Values of the paper's dVAE training (appendix A.2) beside its network: optimiser, averages, augmentation; and the gate."""

import hashlib
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import nn

from dalle_model.augmentation import augmented, source_px
from dalle_model.config import TokenizerConfig
from dalle_model.errors import CodebookCollapsed, DataError
from dalle_model.optim import average_decay, build_optimizers, lr_share, update_average
from dalle_model.perceptual import fixed_distance, vgg_distance
from flows.presets import PRESETS
from tasks.fit_tokenizer import _refuse_collapse


def test_optimiser_of_the_papers_dvae() -> None:
    optim = PRESETS["dalle-12b"]().tokenizer.optim
    assert (optim.lr, optim.betas, optim.weight_decay, optim.ema) == (1e-4, (0.9, 0.999), 1e-4, 0.999)
    assert (optim.batch_size, optim.steps, optim.optimizer) == (512, 3_000_000, "adamw")
    (adamw,) = build_optimizers(nn.Linear(2, 2), optim)
    assert isinstance(adamw, torch.optim.AdamW) and adamw.defaults["eps"] == 1e-8
    # 1e-4 -> 1.25e-6 by cosine over 1,200,000 updates, then constant
    middle = (1e-4 + 1.25e-6) / 2
    for step, expected in ((0, 1e-4), (600_000, middle), (1_200_000, 1.25e-6), (2_999_999, 1.25e-6)):
        assert lr_share(optim, step) * optim.lr == pytest.approx(expected, rel=1e-4)


def test_average_moves_by_a_thousandth() -> None:
    network = nn.Linear(1, 1, bias=False)
    average = {"weight": torch.zeros(1, 1)}
    nn.init.ones_(network.weight)
    update_average(average, network, 0.999)
    assert float(average["weight"]) == pytest.approx(0.001)
    update_average(average, network, 0.999)
    assert float(average["weight"]) == pytest.approx(1 - 0.999**2)


def test_average_forgets_the_initial_weights_in_a_short_run_and_is_the_papers_in_a_long_one() -> None:
    left = math.prod(average_decay(0.999, step) for step in range(150))
    assert left < 1e-9 < 0.8 < 0.999**150
    assert [average_decay(0.999, step) for step in (0, 90)] == [0.1, 0.91]
    assert average_decay(0.999, 8_000) < average_decay(0.999, 9_000) == average_decay(0.999, 2_999_999) == 0.999
    assert average_decay(0.5, 100) == 0.5


def test_augmentation_draws_size_place_and_side_as_the_paper_does() -> None:
    assert source_px(256) == 384
    ramp = torch.arange(400, dtype=torch.float32)
    image = torch.stack([(ramp / 2).expand(500, 400)] * 3).round().to(torch.uint8)  # 400 wide, 500 high: s = 400
    steps, flips = [], 0
    for seed in range(60):
        made = augmented(image, 256, torch.Generator().manual_seed(seed))
        assert made.shape == (3, 256, 256) and made.dtype == torch.uint8
        row = made[0, 0].float()
        flips += int(row[0] > row[-1])
        steps.append(float((row[-1] - row[0]).abs()) / 255)
        assert torch.equal(made, augmented(image, 256, torch.Generator().manual_seed(seed)))
    sides = [0.5 * 400 / step for step in steps]  # of the whole square, from the slope of the ramp
    assert 282 < min(sides) < 300 and 370 < max(sides) < 390
    assert 15 < flips < 45
    small = image[:, :256, :256]
    assert sorted(augmented(small, 256, torch.Generator())[0, 0].tolist()) == sorted(small[0, 0].tolist())
    with pytest.raises(DataError, match="cannot be cropped to 256"):
        augmented(image[:, :255], 256, torch.Generator())


@pytest.mark.parametrize("heads", [False, True])
def test_perceptual_distance_on_vgg_equals_a_plain_computation(heads: bool) -> None:
    torch.manual_seed(0)
    widths, places = (
        [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512],
        [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28],
    )
    tensors, before = {}, 3
    for width, place in zip(widths, places, strict=True):
        tensors[f"features.{place}.weight"] = torch.randn(width, before, 3, 3) * (2 / (9 * before)) ** 0.5
        tensors[f"features.{place}.bias"] = torch.randn(width) * 0.1
        before = width
    if heads:
        for k, width in enumerate((64, 128, 256, 512, 512)):
            tensors[f"lin{k}.model.1.weight"] = torch.rand(1, width, 1, 1)
    data = save(tensors)
    a, b = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    x, y, expected, stage = (a - mean) / std, (b - mean) / std, torch.zeros(2), 0
    for place in places:
        if place in (5, 10, 17, 24):
            x, y = F.max_pool2d(x, 2), F.max_pool2d(y, 2)
        weight, bias = tensors[f"features.{place}.weight"], tensors[f"features.{place}.bias"]
        x, y = (F.relu(F.conv2d(z, weight, bias, padding=1)) for z in (x, y))
        if place in (2, 7, 14, 21, 28):
            gap = (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square()
            scale = tensors[f"lin{stage}.model.1.weight"][0] if heads else 1 / x.shape[1]
            expected, stage = expected + (gap * scale).sum(1).mean((1, 2)), stage + 1
    distance = vgg_distance(data, hashlib.sha256(data).hexdigest())
    torch.testing.assert_close(distance(a, b), expected, rtol=1e-4, atol=1e-5)
    assert not any(p.requires_grad for p in distance.parameters())
    with pytest.raises(DataError, match="SHA-256"):
        vgg_distance(data, "0" * 64)
    del tensors["features.28.weight"]
    with pytest.raises(DataError, match="VGG-16"):
        vgg_distance(save(tensors))


def test_fixed_features_see_blur_and_are_the_same_everywhere() -> None:
    torch.manual_seed(0)
    images = torch.rand(4, 3, 32, 32).round()
    blurred = [F.avg_pool2d(images, k, 1, k // 2, count_include_pad=False) for k in (1, 3, 7)]
    distances = [float(fixed_distance()(images, b).mean()) for b in blurred]
    assert distances[0] == pytest.approx(0, abs=1e-6) and distances[0] < distances[1] < distances[2]
    assert torch.equal(fixed_distance()(images, blurred[1]), fixed_distance()(images, blurred[1]))


@pytest.mark.parametrize("kind", ["fsq", "vq", "dvae"])
def test_collapsed_codebook_fails_with_the_remedy_for_every_kind(kind: str) -> None:
    config = TokenizerConfig.model_validate({"kind": kind, "num_codes": 4096, "min_perplexity_share": 0.02})
    _refuse_collapse(config, {"code_perplexity": 82.0, "measured": 512})
    with pytest.raises(CodebookCollapsed, match=r"below 81\.9.*train longer"):
        _refuse_collapse(config, {"code_perplexity": 81.0, "measured": 512})
    with pytest.raises(CodebookCollapsed, match="--preset dvae" if kind == "dvae" else "step size, or use"):
        _refuse_collapse(config, {"code_perplexity": 81.0, "measured": 512})


def test_presets_for_laptops_have_what_a_dvae_needs_there_and_the_paper_s_preset_has_not() -> None:
    """So that `--set tokenizer.kind=dvae` alone does not end in a few codes."""
    names = ("start", "likelihood", "block_gain", "encoder_lr_share", "temperature_share", "kl_ramp_share", "kl_weight")
    short = {tuple(getattr(PRESETS[p]().tokenizer, n) for n in names) for p in ("tiny", "quickstart", "dvae")}
    assert short == {("data", "normal", 1.0, 0.1, 1.0, 0.5, 1.0)}
    paper = PRESETS["dalle-12b"]().tokenizer
    assert tuple(getattr(paper, n) for n in names) == ("paper", "logit_laplace", 0.0, 1.0, 0.05, 0.002, 6.6)
