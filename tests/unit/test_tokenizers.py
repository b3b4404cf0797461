"""Image tokenizers: the contract all share, and each value of the paper's dVAE (recipe: arXiv 2102.12092, appendix A)."""

import math
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

from dalle_model.config import TokenizerConfig
from dalle_model.errors import DataError
from dalle_model.metrics import code_usage
from dalle_model.picture_objectives import DvaeObjective, tokenizer_objective
from dalle_model.runtime import Runtime
from dalle_model.tokenizers import registry
from dalle_model.tokenizers.base import ImageTokenizer, to_bytes, to_unit
from dalle_model.tokenizers.dvae import (
    DvaeBlock,
    DvaeTokenizer,
    argmax_codes,
    dvae_loss,
    gumbel_noise,
    gumbel_softmax,
    kl_to_uniform,
    kl_weight,
    logit_laplace_nll,
    map_pixels,
    normal_dvae_loss,
    temperature,
    unmap_pixels,
)
from dalle_model.tokenizers.dvae_start import INFORMATION, start_from_pictures
from dalle_model.tokenizers.encoding import prepared
from dalle_model.tokenizers.fsq import FsqTokenizer
from dalle_model.tokenizers.vq import VqTokenizer
from dalle_model.training import fit

SMALL = {
    "fsq": TokenizerConfig(kind="fsq", image_px=16, downsampling=4, fsq_levels=(8, 5, 4), width=8, blocks_per_group=1),
    "vq": TokenizerConfig(kind="vq", image_px=16, downsampling=4, num_codes=256, width=8, blocks_per_group=1),
    "dvae": TokenizerConfig(kind="dvae", image_px=16, downsampling=4, num_codes=256, width=8, blocks_per_group=1),
}


def build(kind: str) -> ImageTokenizer:
    return registry.build_tokenizer(SMALL[kind], Runtime().generator(0)).eval()


@pytest.mark.parametrize("kind", SMALL)
def test_encode_and_decode_keep_the_contract(kind: str) -> None:
    tokenizer = build(kind)
    images = torch.rand(5, 3, 16, 16)
    ids = tokenizer.encode(images)
    assert ids.shape == (5, tokenizer.num_tokens) == (5, tokenizer.grid**2) and ids.dtype == torch.int64
    assert int(ids.min()) >= 0 and int(ids.max()) < tokenizer.vocab_size
    pictures = tokenizer.decode(ids)
    assert pictures.shape == images.shape and pictures.dtype == torch.float32
    assert float(pictures.min()) >= 0 and float(pictures.max()) <= 1
    assert torch.equal(tokenizer.decode(ids.to(torch.int32)), pictures)


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("downsampling", [2, 8, 16])
def test_every_downsampling_gives_its_grid(kind: str, downsampling: int) -> None:
    config = SMALL[kind].model_copy(update={"downsampling": downsampling})
    tokenizer = registry.build_tokenizer(config)
    ids = tokenizer.encode(torch.rand(1, 3, 16, 16))
    assert ids.shape == (1, (16 // downsampling) ** 2)
    assert tokenizer.decode(ids).shape == (1, 3, 16, 16)


@pytest.mark.parametrize("kind", SMALL)
def test_saved_tokenizer_is_the_same_tokenizer(kind: str, tmp_path: Path) -> None:
    tokenizer = build(kind)
    registry.save(tokenizer, tmp_path)
    again = registry.load(tmp_path)
    images = torch.rand(3, 3, 16, 16)
    assert torch.equal(again.encode(images), tokenizer.encode(images))
    assert torch.equal(again.decode(tokenizer.encode(images)), tokenizer.decode(tokenizer.encode(images)))
    assert again.config == tokenizer.config and again.pixel_transform == tokenizer.pixel_transform


@pytest.mark.parametrize("kind", SMALL)
def test_wrong_pictures_and_foreign_ids_are_refused(kind: str) -> None:
    tokenizer = build(kind)
    with pytest.raises(DataError, match="16, 16"):
        tokenizer.encode(torch.rand(1, 3, 32, 32))
    with pytest.raises(DataError, match="uint8"):
        tokenizer.encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(DataError, match="another tokenizer"):
        tokenizer.decode(torch.full((1, tokenizer.num_tokens), tokenizer.vocab_size))
    weights, _ = registry.tokenizer_to_bytes(tokenizer)
    wider = SMALL[kind].model_copy(update={"width": 16})
    with pytest.raises(DataError, match="one artifact"):
        registry.tokenizer_from_bytes(weights, wider.model_dump_json().encode())


def test_bytes_and_unit_floats_are_inverse() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(to_unit(values)), values)


# --- finite scalar quantisation ---


def test_fsq_ids_and_lattice_points_are_one_to_one() -> None:
    tokenizer = build("fsq")
    assert isinstance(tokenizer, FsqTokenizer)
    ids = torch.arange(160).view(10, 16)
    points = tokenizer.coordinates_of(ids)
    assert torch.equal(tokenizer.ids_of(points), ids)
    assert len(torch.unique(points.permute(0, 2, 3, 1).reshape(-1, 3), dim=0)) == 160
    assert points.amax((0, 2, 3)).tolist() == [7, 4, 3]


def test_fsq_rounding_passes_the_gradient_through() -> None:
    tokenizer = build("fsq")
    tokenizer.train()
    loss = (tokenizer(torch.rand(2, 3, 16, 16))[0] - 0.5).square().mean()
    loss.backward()
    stem = tokenizer.encoder[1]  # type: ignore[index,union-attr]
    assert float(stem.weight.grad.abs().sum()) > 0


# --- vector quantisation ---


def test_vq_takes_the_nearest_code_on_the_sphere() -> None:
    tokenizer = build("vq")
    assert isinstance(tokenizer, VqTokenizer)
    latents = tokenizer.latents(torch.rand(2, 3, 16, 16))
    torch.testing.assert_close(latents.norm(dim=-1), torch.ones(2, 4, 4))
    expected = torch.cdist(latents.reshape(-1, 8), tokenizer.codes()).argmin(1)
    assert torch.equal(tokenizer.nearest(latents).flatten(), expected)


def test_vq_trains_encoder_codebook_and_decoder() -> None:
    tokenizer = build("vq").train()
    made, penalty = tokenizer(torch.rand(2, 3, 16, 16))
    assert penalty.shape == (2,) and float(penalty.detach().min()) > 0
    ((made - 0.5).square().mean() + penalty.mean()).backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0
        for n, p in tokenizer.named_parameters()
        if "norm" not in n and "conv1" not in n
    )


# --- the paper's dVAE ---


def paper() -> DvaeTokenizer:
    with torch.device("meta"):
        return DvaeTokenizer(TokenizerConfig(kind="dvae", image_px=256, downsampling=8, num_codes=8192, width=256))


def test_paper_sizes_and_parameter_counts() -> None:
    tokenizer = paper()
    assert (tokenizer.grid, tokenizer.num_tokens, tokenizer.vocab_size) == (32, 1024, 8192)
    count = lambda m: sum(p.numel() for p in m.parameters()) / 1e6  # noqa: E731
    assert count(tokenizer.encoder) == pytest.approx(53.8, abs=0.05)
    assert count(tokenizer.decoder) == pytest.approx(43.8, abs=0.05)


def test_paper_blocks_kernels_widths_and_gain() -> None:
    tokenizer = paper()
    for half, kernels in ((tokenizer.encoder, (3, 3, 3, 1)), (tokenizer.decoder, (1, 3, 3, 3))):
        blocks = [m for m in half.modules() if isinstance(m, DvaeBlock)]
        assert len(blocks) == 8
        assert {b.gain for b in blocks} == {1 / 64}
        for block in blocks:
            convs = [m for m in block.body if isinstance(m, nn.Conv2d)]
            out = convs[-1].out_channels
            assert tuple(c.kernel_size[0] for c in convs) == kernels
            assert [c.out_channels for c in convs] == [out // 4, out // 4, out // 4, out]
            assert isinstance(block.identity, nn.Identity) == (convs[0].in_channels == out)
    widths = lambda half: [m.body[-1].out_channels for m in half.modules() if isinstance(m, DvaeBlock)]  # noqa: E731
    assert widths(tokenizer.encoder) == [256, 256, 512, 512, 1024, 1024, 2048, 2048]
    assert widths(tokenizer.decoder) == [2048, 2048, 1024, 1024, 512, 512, 256, 256]
    assert sum(isinstance(m, nn.MaxPool2d) for m in tokenizer.encoder.modules()) == 3
    assert [m.mode for m in tokenizer.decoder.modules() if isinstance(m, nn.Upsample)] == ["nearest"] * 3
    assert tokenizer.encoder.input.kernel_size == (7, 7) and tokenizer.decoder.input.out_channels == 128
    assert tokenizer.encoder.output.kernel_size == tokenizer.decoder.input.kernel_size == (1, 1)
    assert tokenizer.decoder.output.out_channels == 6


def test_gain_follows_the_real_block_count() -> None:
    block = next(m for m in build("dvae").modules() if isinstance(m, DvaeBlock))
    assert block.gain == 1 / 3**2  # three groups of one block


def test_initial_weights_have_the_papers_scale() -> None:
    torch.manual_seed(0)
    conv = DvaeBlock(64, 64, 1.0, (3, 3, 3, 1)).body.conv_2
    assert conv.weight.std().item() == pytest.approx(1 / math.sqrt(16 * 9), rel=0.05)
    assert not conv.bias.any()


def test_pixel_map_and_its_inverse() -> None:
    assert map_pixels(torch.tensor([0.0, 0.5, 1.0])).tolist() == pytest.approx([0.1, 0.5, 0.9])
    values = torch.linspace(0, 1, 11)
    torch.testing.assert_close(unmap_pixels(map_pixels(values)), values)
    assert unmap_pixels(torch.tensor([0.0, 1.0])).tolist() == [0.0, 1.0]


def test_logit_laplace_is_a_density_and_has_the_hand_computed_value() -> None:
    x = torch.linspace(1e-5, 1 - 1e-5, 200_001)
    mu, log_b = torch.tensor(0.4), torch.tensor(-0.7)
    density = torch.exp(-logit_laplace_nll(x, mu, log_b))
    assert torch.trapezoid(density, x).item() == pytest.approx(1.0, abs=1e-3)
    # x = 1/2, mu = 0, b = 1: the density is 1 / (2 * 1/4) = 2
    assert logit_laplace_nll(torch.tensor(0.5), torch.tensor(0.0), torch.tensor(0.0)).item() == pytest.approx(
        -math.log(2)
    )


def test_kl_to_the_uniform_prior() -> None:
    assert kl_to_uniform(torch.zeros(1, 8, 2, 2)).abs().max() < 1e-6
    certain = torch.zeros(1, 8, 1, 1)
    certain[0, 3] = 100
    assert kl_to_uniform(certain).item() == pytest.approx(math.log(8), rel=1e-5)


@pytest.mark.parametrize("batch", [1, 6])
def test_loss_has_the_hand_computed_value_at_two_batch_sizes(batch: int) -> None:
    """256 x 256 pictures, 32 x 32 positions, all codes certain: KL = ln K each; x = 1/2, mu = 0, b = 1: -ln 2 each.

    (196608 * -ln 2 + beta * 1024 * ln K) / 196608 = -ln 2 + beta / 192 * ln K, whatever the batch size.
    """
    mapped, maps = torch.full((batch, 3, 256, 256), 0.5), torch.zeros(batch, 6, 256, 256)
    logits = torch.zeros(batch, 4, 32, 32)
    logits[:, 1] = 200
    loss = dvae_loss(mapped, maps, logits, beta=6.6).item()
    assert loss == pytest.approx(-math.log(2) + 6.6 / 192 * math.log(4), rel=1e-5)


def test_objective_uses_the_papers_loss_whatever_the_micro_batch() -> None:
    tokenizer = build("dvae")
    assert isinstance(tokenizer, DvaeTokenizer)
    optim = SMALL["dvae"].optim.model_copy(update={"batch_size": 6, "steps": 1000})
    config = SMALL["dvae"].model_copy(update={"optim": optim})
    pictures = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8).numpy()
    objective = DvaeObjective(tokenizer, pictures, config, Runtime())
    batch = objective.batch(500)
    whole = objective.loss(tokenizer, batch, 500).total.item()
    parts = [
        objective.loss(tokenizer, {k: v[i : i + 2] for k, v in batch.items()}, 500).total.item() for i in (0, 2, 4)
    ]
    assert sum(parts) == pytest.approx(whole, rel=1e-5)


def test_normal_likelihood_by_hand_and_without_a_say_on_ln_b() -> None:
    """sigmoid(0) = 0.5 against 0.7 is two deviations: half of 4, plus beta / 192 * ln K for one certain code of 4."""
    mapped, maps = torch.full((2, 3, 16, 16), 0.7), torch.zeros(2, 6, 16, 16, requires_grad=True)
    logits = torch.zeros(2, 4, 2, 2)
    logits[:, 1] = 200
    loss = normal_dvae_loss(mapped, maps, logits, beta=6.6)
    assert loss.item() == pytest.approx(2 + 6.6 / 192 * math.log(4), rel=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert maps.grad is not None and maps.grad[:, 3:].eq(0).all() and maps.grad[:, :3].ne(0).all()


def test_constant_guess_on_a_mostly_white_pixel_is_the_median_of_one_density_and_the_mean_of_the_other() -> None:
    mapped = map_pixels(torch.tensor([1.0] * 7 + [0.0] * 3)).view(10, 1, 1, 1).expand(10, 3, 1, 1)
    guesses = torch.linspace(-2.2, 2.2, 89)
    found = []
    for of in (dvae_loss, normal_dvae_loss):
        maps = [torch.cat([torch.full((10, 3, 1, 1), float(g)), torch.zeros(10, 3, 1, 1)], 1) for g in guesses]
        losses = [float(of(mapped, m, torch.zeros(10, 2, 1, 1), 0.0)) for m in maps]
        found.append(float(unmap_pixels(torch.sigmoid(guesses[int(np.argmin(losses))]))))
    assert found == pytest.approx([1.0, 0.7], abs=0.02)


def test_switches_of_a_short_run_reach_the_objective() -> None:
    changes = {"likelihood": "normal", "temperature_share": 1.0, "kl_ramp_share": 0.5}
    config = SMALL["dvae"].model_copy(
        update={"optim": SMALL["dvae"].optim.model_copy(update={"steps": 100}), **changes}
    )
    pictures = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8).numpy()
    tokenizer = DvaeTokenizer(config)
    objective = DvaeObjective(tokenizer, pictures, config, Runtime())
    assert objective.schedule(50) == {"temperature": pytest.approx((1 + 1 / 16) / 2), "kl_weight": pytest.approx(6.6)}
    loss = objective.loss(tokenizer, objective.batch(0), 0)
    assert float(loss.total.detach()) == pytest.approx(50 * float(loss.terms["l2"]), rel=1e-4)  # no KL in update 0


def test_a_start_from_pictures_tells_them_apart_and_draws_their_mean() -> None:
    config = SMALL["dvae"]
    torch.manual_seed(0)
    tokenizer = DvaeTokenizer(config)
    images = torch.ones(48, 3, 16, 16)  # white grounds, a coloured square in each
    images[:, :, 4:12, 4:12] = torch.rand(48, 3, 1, 1)
    before = code_usage(tokenizer.encode(images), 256)[0]
    start_from_pictures(tokenizer, images)
    assert code_usage(tokenizer.encode(images), 256)[0] > max(40, 3 * before)
    logits = tokenizer.encoder(map_pixels(images)).detach()
    assert float(kl_to_uniform(logits).mean()) == pytest.approx(INFORMATION * math.log(256), rel=0.02)
    read = tokenizer.decoder.read_ids(logits.argmax(1))
    assert float(read.detach().std()) == pytest.approx(1, abs=0.1)
    assert float((tokenizer.decode(tokenizer.encode(images)).mean() - images.mean()).abs()) < 0.05


def test_codes_that_begin_alike_are_read_alike() -> None:
    """So that a relaxed code, a mixture of near ones, is near them, too."""
    torch.manual_seed(0)
    tokenizer = DvaeTokenizer(SMALL["dvae"])
    start_from_pictures(tokenizer, torch.rand(48, 3, 1, 1).expand(48, 3, 16, 16) * torch.rand(48, 1, 16, 16).round())
    centres, read = (t.detach()[:, :, 0, 0] for t in (tokenizer.encoder.output.weight, tokenizer.decoder.input.weight))
    apart = torch.stack([torch.pdist(centres), torch.pdist(read.t())])
    assert float(torch.corrcoef(apart)[0, 1]) > 0.7


@pytest.mark.parametrize("count", [1, 3])
def test_what_is_the_same_everywhere_is_not_scaled_up(count: int) -> None:
    """A single place of one picture has no deviation, and those of equal pictures only that of rounding."""
    config = SMALL["dvae"].model_copy(update={"image_px": 8, "downsampling": 8})
    tokenizer = registry.build_tokenizer(config, Runtime().generator(0))
    assert isinstance(tokenizer, DvaeTokenizer)
    before = tokenizer.encoder.output.weight.detach().clone()
    start_from_pictures(tokenizer, torch.rand(3, 8, 8, generator=Runtime().generator(1)).expand(count, 3, 8, 8))
    assert all(value.isfinite().all() for value in tokenizer.state_dict().values())
    torch.testing.assert_close(tokenizer.encoder.output.weight.detach(), before)


def test_gain_of_the_branches_is_the_paper_s_unless_set() -> None:
    """Three groups of one block at downsampling 4: one over 3 squared."""
    for value, want in ((0.0, 1 / 9), (0.5, 0.5)):
        tokenizer = DvaeTokenizer(SMALL["dvae"].model_copy(update={"blocks_per_group": 1, "block_gain": value}))
        assert [m.gain for m in tokenizer.modules() if isinstance(m, DvaeBlock)] == pytest.approx([want] * 6)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_slower_encoder_moves_less_by_the_share_that_is_set(optimizer: Literal["adamw", "muon"]) -> None:
    optim = SMALL["dvae"].optim.model_copy(
        update={"steps": 1, "batch_size": 2, "warmup_steps": 0, "weight_decay": 0.0, "optimizer": optimizer}
    )
    pictures = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=Runtime().generator(0)).numpy()
    moved = []
    for share in (1.0, 0.25):
        config = SMALL["dvae"].model_copy(update={"optim": optim, "encoder_lr_share": share})
        tokenizer = registry.build_tokenizer(config, Runtime().generator(0))
        before = {n: p.detach().clone() for n, p in tokenizer.named_parameters()}
        fit(tokenizer_objective(tokenizer, pictures, config, Runtime()), optim, Runtime())
        moved.append({n: float((p.detach() - before[n]).norm()) for n, p in tokenizer.named_parameters()})
    for name, far in moved[0].items():
        assert moved[1][name] == pytest.approx(far * (0.25 if name.startswith("encoder.") else 1), rel=1e-3, abs=1e-6)


def test_schedules_at_their_corners() -> None:
    assert (temperature(0), temperature(150_000), temperature(10**7)) == (1.0, 1 / 16, 1 / 16)
    assert temperature(75_000) == pytest.approx((1 + 1 / 16) / 2)
    assert (kl_weight(0), kl_weight(2_500), kl_weight(5_000), kl_weight(6_000)) == (0.0, pytest.approx(3.3), 6.6, 6.6)


def test_scaled_down_schedules_keep_their_share_of_the_run() -> None:
    config = SMALL["dvae"].model_copy(update={"optim": SMALL["dvae"].optim.model_copy(update={"steps": 1000})})
    pictures = torch.zeros(4, 3, 16, 16, dtype=torch.uint8).numpy()
    objective = DvaeObjective(DvaeTokenizer(config), pictures, config, Runtime())
    assert objective.schedule(0) == {"temperature": 1.0, "kl_weight": 0.0}
    assert objective.schedule(50)["temperature"] == pytest.approx(1 / 16)
    assert objective.schedule(49)["temperature"] > 1 / 16
    assert objective.schedule(2)["kl_weight"] == pytest.approx(6.6)


def test_relaxation_is_soft_and_sharpens_with_the_temperature() -> None:
    logits, noise = torch.randn(2, 16, 3, 3), gumbel_noise((2, 16, 3, 3), Runtime().generator(0), torch.device("cpu"))
    warm, cold = gumbel_softmax(logits, 1.0, noise), gumbel_softmax(logits, 1 / 16, noise)
    for soft in (warm, cold):
        torch.testing.assert_close(soft.sum(1), torch.ones(2, 3, 3))
    assert cold.amax(1).mean() > warm.amax(1).mean() + 0.2
    assert torch.equal(cold.argmax(1), (logits + noise).argmax(1))


def test_gumbel_noise_has_its_mean_and_variance() -> None:
    noise = gumbel_noise((200_000,), Runtime().generator(1), torch.device("cpu"))
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, rel=0.02)


def test_tokens_are_the_argmax_of_the_logits_without_noise() -> None:
    tokenizer = build("dvae")
    assert isinstance(tokenizer, DvaeTokenizer)
    images = torch.rand(3, 3, 16, 16)
    expected = tokenizer.encoder(map_pixels(images)).argmax(1).flatten(1)
    assert torch.equal(tokenizer.encode(images), expected)


@pytest.mark.parametrize("codes", [100, 256, 8192])
def test_tiled_argmax_equals_the_plain_one_and_breaks_ties_low(codes: int) -> None:
    torch.manual_seed(0)
    features = torch.randint(-2, 3, (300, 4)).float()  # few values: many ties
    weight, bias = torch.randint(-2, 3, (codes, 4)).float(), torch.zeros(codes)
    expected = torch.from_numpy((features @ weight.T).numpy().argmax(1))
    assert torch.equal(argmax_codes(features, weight, bias, rows_per_tile=128), expected)


@pytest.mark.parametrize("codes", [192, 1024])
def test_wide_low_precision_argmax_equals_the_one_in_float32(codes: int) -> None:
    """Rough products choose candidates only: 16 bits alone would get a tenth of these rows wrong."""
    torch.manual_seed(0)
    features = torch.randn(300, 512).bfloat16()
    weight, bias = torch.randn(codes, 512) / 22, torch.randn(codes) / 10
    exact = features.float() @ weight.T + bias
    assert torch.equal(argmax_codes(features, weight, bias), exact.argmax(1))
    rough = (features @ weight.bfloat16().T).float() + bias
    assert (rough.argmax(1) != exact.argmax(1)).float().mean() > 0.001


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokenizer_prepared_for_encoding_gives_the_same_ids(kind: str, dtype: torch.dtype) -> None:
    tokenizer, runtime = build(kind), Runtime(dtype=dtype)
    images = torch.rand(24, 3, 16, 16)
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    with torch.inference_mode(), runtime.autocast():
        expected, ids = tokenizer.encode(images), prepared(tokenizer, runtime).encode(images)
    assert (ids != expected).float().mean() <= (0.01 if dtype == torch.bfloat16 else 0)
    for name, value in tokenizer.state_dict().items():
        assert torch.equal(value, before[name]) and value.dtype == torch.float32
    tokenizer.decode(expected)  # the decoder is where it was


def test_decoding_ids_equals_decoding_one_hot_maps() -> None:
    tokenizer = build("dvae")
    assert isinstance(tokenizer, DvaeTokenizer)
    ids = torch.randint(0, 256, (2, 4, 4))
    one_hot = torch.nn.functional.one_hot(ids, 256).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(
        tokenizer.decoder.read_ids(ids), tokenizer.decoder.read_soft(one_hot), rtol=1e-5, atol=1e-5
    )


def test_reconstruction_ignores_the_scale_maps() -> None:
    tokenizer = build("dvae")
    assert isinstance(tokenizer, DvaeTokenizer)
    ids = torch.randint(0, 256, (1, 16))
    before = tokenizer.decode(ids)
    with torch.no_grad():
        tokenizer.decoder.output.weight[3:] += 1
    assert torch.equal(tokenizer.decode(ids), before)


def test_code_layers_stay_in_float32_under_mixed_precision() -> None:
    tokenizer = build("dvae")
    assert isinstance(tokenizer, DvaeTokenizer)
    with Runtime(dtype=torch.bfloat16).autocast():
        logits = tokenizer.encoder(map_pixels(torch.rand(1, 3, 16, 16)))
        read = tokenizer.decoder.read_soft(logits.softmax(1))
    assert logits.dtype == read.dtype == torch.float32
