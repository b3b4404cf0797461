"""Two networks in one training loop: the critic of patches, VQGAN's adaptive weight, the Gaussian VAE and the DCGAN."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dalle_model.checkpoint import TrainState
from dalle_model.config import GeneratorConfig, OptimConfig, TokenizerConfig
from dalle_model.dcgan import DcganCritic, DcganGenerator, gan_critic_loss, gan_maker_loss, shifted
from dalle_model.gaussian_vae import GaussianVae, kl_to_standard
from dalle_model.objectives import Objective
from dalle_model.perceptual import fixed_distance
from dalle_model.picture_objectives import AutoencoderObjective, generator_objective, tokenizer_objective
from dalle_model.runtime import Runtime
from dalle_model.tokenizers.autoencoder import pictures_of
from dalle_model.tokenizers.critic import adaptive_weight, hinge_critic, hinge_maker, last_layer_norms
from dalle_model.tokenizers.registry import build_tokenizer
from dalle_model.training import fit
from dalle_model.unprompted import bits_per_pixel_bound, collapse

KINDS = ("critic", "likelihood", "vae", "gan", "steady gan")
STEADY = {"upsampling": "resize", "critic_norm": "spectral", "critic_loss": "hinge", "critic_shift": 0.125}


def pictures() -> np.ndarray:  # type: ignore[type-arg]
    values = np.zeros((12, 3, 16, 16), np.uint8)
    values[:, :, 4:12, 4:12] = np.random.default_rng(0).integers(0, 255, (12, 3, 1, 1))
    return values


def optim_of(**changes: object) -> OptimConfig:
    values: dict[str, object] = {"steps": 6, "batch_size": 8, "warmup_steps": 2, "ema": 0.9, "log_every": 1}
    return OptimConfig.model_validate(values | {"checkpoint_every": 1} | changes)


def objective_of(kind: str, optim: OptimConfig, runtime: Runtime) -> Objective:
    torch.manual_seed(1)
    small = {"image_px": 16, "width": 8, "blocks_per_group": 1, "optim": optim}
    if kind in ("vae", "gan", "steady gan"):
        switches = STEADY if kind == "steady gan" else {}
        generator = GeneratorConfig.model_validate(small | {"kind": kind.split()[-1], "latent_dim": 8} | switches)
        network = GaussianVae(generator) if kind == "vae" else DcganGenerator(generator)
        return generator_objective(network, pictures(), generator, runtime)
    config = TokenizerConfig.model_validate(
        small
        | {"kind": "fsq", "downsampling": 4, "fsq_levels": (8, 5, 4), "critic_width": 8, "adversarial_weight": 0.8}
        | {"adversarial_start": 0.3, "perceptual_weight": 0.5}
        | {"loss": "logit_laplace" if kind == "likelihood" else "l1_l2"}
    )
    return tokenizer_objective(build_tokenizer(config), pictures(), config, runtime, fixed_distance())


def hex_curve(curve: list[dict[str, float]]) -> list[dict[str, str]]:
    return [{k: v.hex() for k, v in point.items()} for point in curve]


def state_bytes(objective: Objective) -> list[bytes]:
    networks = [n for n in (objective.network, objective.critic) if n is not None]
    return [v.numpy().tobytes() for n in networks for v in n.state_dict().values()]


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_run_of_two_networks_equals_the_undisturbed_one(kind: str) -> None:
    """Stopped before the critic begins (2), and while both learn (4)."""
    runtime, optim = Runtime(seed=3), optim_of()
    straight = objective_of(kind, optim, runtime)
    expected = fit(straight, optim, runtime, data="d")
    saved: dict[int, bytes] = {}
    fit(
        objective_of(kind, optim, runtime),
        optim,
        runtime,
        data="d",
        save=lambda s: saved.update({s.step: s.to_bytes()}),
    )
    for step in (2, 4):
        torch.rand(7)
        again = objective_of(kind, optim, runtime)
        result = fit(again, optim, runtime, data="d", resume=TrainState.from_bytes(saved[step]))
        assert hex_curve(result.curve) == hex_curve(expected.curve)
        assert state_bytes(again) == state_bytes(straight)
    if kind != "vae":
        assert [("critic_loss" in point) for point in expected.curve][-1]
        assert straight.critic is not None and all(p.requires_grad for p in straight.critic.parameters())


def test_products_are_counted_where_the_critic_judges_from_the_first_update_on() -> None:
    late, early = (objective_of("critic", optim_of(), Runtime()) for _ in range(2))
    early.critic_from = 0
    assert early.flops_per_row() == late.flops_per_row() > 0


@pytest.mark.parametrize("kind", ["critic", "likelihood", "vae"])
def test_parts_of_a_batch_add_up_with_a_critic_too(kind: str) -> None:
    curves = []
    for micro in (0, 3):
        optim = optim_of(micro_batch_size=micro, steps=4, ema=0, lr=1e-4)
        curves.append(fit(objective_of(kind, optim, Runtime()), optim, Runtime()).curve)
    for whole, parts in zip(*curves, strict=True):
        assert whole["loss"] == pytest.approx(parts["loss"], rel=1e-4)
        assert whole["grad_norm"] == pytest.approx(parts["grad_norm"], rel=1e-3)
        for name in ("critic_loss", "critic_grad_norm"):
            assert (name in whole) == (name in parts)
            assert whole.get(name, 0.0) == pytest.approx(parts.get(name, 0.0), rel=1e-3)


def test_the_networks_gradient_is_that_of_the_weighted_sum_of_losses() -> None:
    """Against a plain computation: losses summed with the weights and differentiated through both networks."""
    runtime, optim = Runtime(), optim_of(batch_size=4)
    objective = objective_of("likelihood", optim, runtime)
    assert isinstance(objective, AutoencoderObjective) and objective.critic is not None
    network, batch = objective.network.train(), objective.batch(5)
    # gradients straight through rounding are those of the soft codes: the rounded forward is the same in both
    loss = objective.loss(network, batch, 5)
    loss.total.backward()
    got = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    network.zero_grad()
    images = batch["images"] / 255
    maps, _ = network(images)
    made = pictures_of(maps, "logit_laplace")
    mu, log_b = maps.chunk(2, dim=1)
    mapped = 0.8 * images + 0.1
    nll = (torch.logit(mapped) - mu).abs() * torch.exp(-log_b) + log_b + math.log(2) + torch.log(mapped * (1 - mapped))
    rebuilt = nll.flatten(1).mean(1) + 0.5 * fixed_distance()(made, images)
    verdict = -objective.critic(made).mean(1)
    last = network.decoder[-2].weight  # type: ignore[union-attr,index]
    weights = []
    for i in range(4):  # VQGAN, equation 7, picture by picture through the real last layer
        norms = [float(torch.autograd.grad(x[i], last, retain_graph=True)[0].norm()) for x in (rebuilt, verdict)]
        weights.append(0.8 * norms[0] / (norms[1] + 1e-4))
    ((rebuilt + torch.tensor(weights) * verdict).sum() / 4).backward()
    for a, p in zip(got, [p for p in network.parameters() if p.grad is not None], strict=True):
        torch.testing.assert_close(a, p.grad, rtol=1e-3, atol=1e-6)
    assert float(loss.terms["adversarial_weight"]) == pytest.approx(float(np.mean(weights)), rel=1e-3)


def test_hinge_losses_and_adaptive_weight_by_hand() -> None:
    real, made = torch.tensor([[2.0, 0.0]]), torch.tensor([[-3.0, 1.0]])
    assert hinge_critic(real, made).tolist() == [0.5 * (0.5 + 1.0)]
    assert hinge_maker(made).tolist() == [1.0]
    assert adaptive_weight(torch.tensor([2.0, 5.0]), torch.tensor([0.5, 0.0])).tolist() == pytest.approx([3.9992, 1e4])
    conv = torch.nn.Conv2d(3, 5, 3, padding=1)
    x, g = torch.randn(2, 3, 6, 6), torch.randn(2, 5, 6, 6)
    for i in range(2):
        (expected,) = torch.autograd.grad((conv(x[i : i + 1]) * g[i]).sum(), conv.weight)
        assert float(last_layer_norms(x, g, 3)[i]) == pytest.approx(float(expected.norm()), rel=1e-5)


def test_vae_bound_and_dcgan_losses_by_hand() -> None:
    mean, log_var = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, math.log(4.0)]])
    assert float(kl_to_standard(mean, log_var)) == pytest.approx(0.5 * 1 + 0.5 * (4 - 1 - math.log(4)))
    reference = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (0.5 * log_var).exp()), torch.distributions.Normal(0.0, 1.0)
    ).sum()
    assert float(kl_to_standard(mean, log_var)) == pytest.approx(float(reference))
    verdicts = torch.tensor([0.3, -1.2])
    ones, zeros = torch.ones(2), torch.zeros(2)
    bce = F.binary_cross_entropy_with_logits
    torch.testing.assert_close(gan_maker_loss(verdicts).mean(), bce(verdicts, ones))
    torch.testing.assert_close(gan_critic_loss(verdicts, -verdicts).mean(), bce(verdicts, ones) + bce(-verdicts, zeros))


def running_statistics(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: b.clone() for n, b in network.named_buffers() if "running" in n}


@torch.no_grad()
def statistics_of(network: torch.nn.Module, rows: int = 2048) -> dict[str, torch.Tensor]:
    """What batch norm meets as it is used, each behind those before it with their running statistics."""
    found: dict[str, torch.Tensor] = {}
    hooks = []
    for name, norm in network.named_modules():
        if isinstance(norm, torch.nn.BatchNorm2d):

            def keep(_: object, inputs: tuple[torch.Tensor, ...], name: str = name) -> None:
                found[f"{name}.running_mean"] = inputs[0].mean((0, 2, 3))
                found[f"{name}.running_var"] = inputs[0].var((0, 2, 3))

            hooks.append(norm.register_forward_pre_hook(keep))
    network.eval()(torch.randn(rows, 8, generator=torch.Generator().manual_seed(9)))
    for hook in hooks:
        hook.remove()
    return found


def test_averaged_weights_are_published_with_running_statistics_of_their_own() -> None:
    optim = optim_of(steps=60, ema=0.99, lr=1e-2, warmup_steps=0, schedule="constant", sample_every=60, batch_size=4)
    objective = objective_of("gan", optim, Runtime(seed=3))
    seen: list[dict[str, torch.Tensor]] = []
    fit(objective, optim, Runtime(seed=3), observe=lambda step, network: seen.append(running_statistics(network)))
    ours, true = running_statistics(objective.network), statistics_of(objective.network)
    for name, value in true.items():
        if name.endswith("var"):  # those of the trained weights were off by up to 44 %
            torch.testing.assert_close(ours[name], value, rtol=0.1, atol=1e-6)
        torch.testing.assert_close(seen[0][name], ours[name])  # what a run shows on its way is what it publishes
    assert all(norm.momentum == 0.1 for norm in objective.network.modules() if isinstance(norm, torch.nn.BatchNorm2d))


@pytest.mark.parametrize("px", [16, 64])
def test_dcgan_has_the_published_layers(px: int) -> None:
    config = GeneratorConfig(kind="gan", image_px=px, latent_dim=100, width=64)
    generator, critic = DcganGenerator(config), DcganCritic(config)
    widths = [m.out_channels for m in generator.modules() if isinstance(m, torch.nn.ConvTranspose2d)]
    assert widths == ([512, 256, 128, 64, 3] if px == 64 else [128, 64, 3])
    assert [m.in_channels for m in critic.modules() if isinstance(m, torch.nn.Conv2d)] == [3, *widths[-2::-1]]
    made = generator.eval().draw(torch.randn(3, 100))
    assert made.shape == (3, 3, px, px) and 0 <= float(made.min()) <= float(made.max()) <= 1
    assert critic.eval()(made).shape == (3,)
    # published pictures do not depend on their neighbours: batch norm uses its running figures
    noise = torch.randn(3, 100)
    torch.testing.assert_close(generator.draw(noise)[1:2], generator.draw(noise[1:2]), rtol=1e-4, atol=1e-5)


def steady_config(**changes: object) -> GeneratorConfig:
    values = {"kind": "gan", "image_px": 32, "latent_dim": 8, "width": 8} | STEADY | changes
    return GeneratorConfig.model_validate(values)


def test_resizing_generator_gives_every_pixel_the_same_number_of_weights() -> None:
    """A constant map stays without a checkerboard, where a transposed convolution of fresh weights makes one."""

    def checkerboard(upsampling: str) -> float:
        torch.manual_seed(0)
        generator = DcganGenerator(steady_config(upsampling=upsampling))
        with torch.no_grad():
            last = generator.body[-2:] if upsampling == "resize" else generator.body[-1:]
            inner = last(torch.rand(1, 8, 1, 1).expand(1, 8, 16, 16))[..., 4:-4, 4:-4]
        return float(inner.std(dim=(2, 3)).max())

    assert checkerboard("resize") < 1e-6 < 1e-3 < checkerboard("transposed")
    made = DcganGenerator(steady_config()).eval().draw(torch.randn(3, 8))
    assert made.shape == (3, 3, 32, 32) and 0 <= float(made.min()) <= float(made.max()) <= 1


def test_spectral_critic_judges_each_picture_alone_and_with_bounded_weights() -> None:
    torch.manual_seed(0)
    critic = DcganCritic(steady_config())
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in critic.modules())
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        for conv in (m for m in critic.body if isinstance(m, torch.nn.Conv2d)):
            conv.parametrizations.weight.original.mul_(7)  # type: ignore[union-attr]
        for _ in range(30):  # each training pass turns the estimate of the largest singular value once
            critic(images)
        for conv in (m for m in critic.eval().body if isinstance(m, torch.nn.Conv2d)):
            assert float(torch.linalg.matrix_norm(conv.weight.flatten(1), ord=2)) == pytest.approx(1, rel=0.02)
        torch.testing.assert_close(critic(images)[:1], critic(images[:1]), rtol=1e-4, atol=1e-6)


def test_shifts_move_pictures_whole_and_let_gradients_through() -> None:
    images = torch.arange(2 * 1 * 4 * 4).view(2, 1, 4, 4).float().requires_grad_()
    moved = shifted(images, torch.tensor([[1, -2], [0, 0]]))
    assert moved[1].equal(images[1])
    assert moved[0, 0].tolist() == [[2, 3, 3, 3], [2, 3, 3, 3], [6, 7, 7, 7], [10, 11, 11, 11]]
    moved.sum().backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None and images.grad[0, 0, 0].tolist() == [0, 0, 2, 6]
    assert images.grad[0, 0, 3].sum() == 0 and images.grad[1].eq(1).all()


def test_critic_sees_other_shifts_of_the_same_pictures_at_each_update() -> None:
    objective = objective_of("steady gan", optim_of(batch_size=4), Runtime(seed=1))
    assert objective.critic is not None
    batch, seen = objective.batch(0), []
    objective.critic.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    for step in (0, 1, 0):
        objective.critic_loss(objective.critic, batch, step)
    first, other, again = seen[::2]  # each update shows the real pictures, then the made ones
    plain = batch["images"] / 255
    assert torch.equal(first, again) and not torch.equal(first, other) and not torch.equal(first, plain)
    assert torch.equal(first.sort().values.unique(), plain.unique())


def test_hinge_losses_of_the_generator_by_hand() -> None:
    objective = objective_of("steady gan", optim_of(batch_size=4), Runtime(seed=1))
    assert objective.critic is not None
    batch, verdicts = objective.batch(0), []
    objective.critic.register_forward_hook(lambda _, __, out: verdicts.append(out.detach()))
    theirs = float(objective.critic_loss(objective.critic, batch, 0).total.detach())
    real, made = verdicts
    assert theirs == pytest.approx(float(0.5 * (F.relu(1 - real) + F.relu(1 + made)).mean()))
    mine = float(objective.loss(objective.network, batch, 0).total.detach())
    assert mine == pytest.approx(-float(verdicts[-1].mean()))


def test_vae_learns_and_its_loss_is_a_bound_per_value() -> None:
    optim, runtime = optim_of(steps=30, lr=3e-3, ema=0), Runtime()
    objective = objective_of("vae", optim, runtime)
    curve = fit(objective, optim, runtime).curve
    assert curve[-1]["loss"] < curve[0]["loss"] - 0.2
    assert curve[-1]["loss"] == pytest.approx(curve[-1]["nll_per_value"] + curve[-1]["penalty"], rel=1e-5)
    vae = objective.network.eval()
    assert isinstance(vae, GaussianVae)
    images = torch.from_numpy(pictures()).float() / 255
    mean, _ = vae.encode(images)
    assert vae.decode(mean).shape == images.shape and vae.draw(torch.randn(2, 8)).shape == (2, 3, 16, 16)


def test_bound_of_the_likelihood_has_the_whole_kl_whatever_its_weight_in_training() -> None:
    bounds = []
    for weight in (1.0, 0.0, 0.1):
        torch.manual_seed(0)
        config = GeneratorConfig(kind="vae", image_px=16, width=8, latent_dim=8, kl_weight=weight)
        bounds.append(bits_per_pixel_bound(GaussianVae(config), pictures().transpose(0, 2, 3, 1), Runtime()))
    assert bounds == pytest.approx([bounds[0]] * 3)
    torch.manual_seed(0)
    network = GaussianVae(config)  # a posterior far from the prior: its KL is 0.5 x 8 x 5² nats of 16² pixels
    with torch.no_grad():
        network.to_latent.weight.zero_()
        network.to_latent.bias.copy_(torch.tensor([5.0] * 8 + [0.0] * 8))
        network.from_latent.weight.zero_()
    far = bits_per_pixel_bound(network, pictures().transpose(0, 2, 3, 1), Runtime())
    with torch.no_grad():
        network.to_latent.bias.zero_()
    near = bits_per_pixel_bound(network, pictures().transpose(0, 2, 3, 1), Runtime())
    assert far - near == pytest.approx(0.5 * 8 * 25 / math.log(2) / 256, rel=1e-4)


def test_vae_no_better_than_the_mean_picture_is_told_with_value_limit_and_remedy() -> None:
    truth = torch.tensor([0.0, 0.5]).view(2, 1, 1, 1).expand(2, 3, 8, 8)  # their mean is 0.25 away from each: 12.04 dB
    likelihood = GeneratorConfig(kind="vae", image_px=8, downsampling=2, loss="logit_laplace", kl_weight=1)
    said = collapse(likelihood, 9.4, truth)
    assert "9.4 dB" in said and "12.0 dB" in said and "generator.loss=l1_l2" in said
    assert collapse(likelihood, 12.1, truth) == ""
    errors = likelihood.model_copy(update={"loss": "l1_l2", "kl_weight": 5.0})
    assert "lower generator.kl_weight 5" in collapse(errors, 12.0, truth)
