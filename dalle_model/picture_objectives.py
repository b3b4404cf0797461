"""What the networks on pictures minimise: tokenizers, the Gaussian VAE, and the DCGAN. See ``objectives``."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dalle_model.augmentation import augmented
from dalle_model.config import GeneratorConfig, OptimConfig, TokenizerConfig
from dalle_model.dcgan import DcganCritic, DcganGenerator, gan_critic_loss, gan_maker_loss, shifted
from dalle_model.errors import DataError
from dalle_model.gaussian_vae import GaussianVae
from dalle_model.objectives import Batch, Loss, Objective
from dalle_model.perceptual import PerceptualDistance
from dalle_model.runtime import Runtime
from dalle_model.token_batches import RowOrder
from dalle_model.tokenizers.autoencoder import Likelihood, pictures_of
from dalle_model.tokenizers.base import ImageTokenizer, to_unit
from dalle_model.tokenizers.critic import (
    PatchCritic,
    adaptive_weight,
    hinge_critic,
    hinge_maker,
    last_layer_norms,
)
from dalle_model.tokenizers.dvae import (
    DvaeTokenizer,
    dvae_loss,
    gumbel_noise,
    kl_weight,
    logit_laplace_nll,
    map_pixels,
    normal_dvae_loss,
    temperature,
)
from dalle_model.tokenizers.fsq import FsqTokenizer
from dalle_model.tokenizers.vq import VqTokenizer

_NOISE, _LATENT, _CRITIC, _AUGMENT, _SHIFT, _SETTLE = (
    0x6015E,
    0x1A7E,
    0xC217,
    0xA063,
    0x5417,
    0x5E77,
)  # stream numbers under Runtime.seed
_SETTLED_ON, _SETTLE_ROWS = 32, 64  # batches and their rows that running statistics are taken from


class _PictureObjective(Objective):
    """Pictures as uint8 [R, 3, H, W] in memory (or a memory map), in the order of ``RowOrder``.

    ``crop_px``: augment and crop to this size, 0 = pictures as they are.
    """

    def __init__(self, pictures: NDArray[np.uint8], optim: OptimConfig, runtime: Runtime, crop_px: int = 0) -> None:
        self._pictures = pictures
        self._runtime = runtime
        self._batch_size = optim.batch_size
        self._order = RowOrder(len(pictures), optim.batch_size, runtime)
        self._crop_px = crop_px

    def batch(self, step: int) -> Batch:
        """images uint8 [b, 3, H, W], and each row's place in the whole batch."""
        mine = self._order.rows(step)[self._order.part()]
        part = self._order.part()
        place = torch.arange(part.start, part.stop)
        images = torch.from_numpy(self._pictures[mine])
        if self._crop_px:
            draws = [self._runtime.generator(_AUGMENT, step, int(p)) for p in place]
            images = torch.stack([augmented(i, self._crop_px, g) for i, g in zip(images, draws, strict=True)])
        return {"images": images, "place": place}

    def _normal(self, batch: Batch, step: int, width: int, stream: int = _LATENT) -> Tensor:
        """Standard normal noise [b, width] of the rows in ``batch``, each by its place in the whole batch."""
        rows = [torch.randn(width, generator=self._runtime.generator(stream, step, int(p))) for p in batch["place"]]
        return torch.stack(rows).to(batch["images"].device)


class AutoencoderObjective(_PictureObjective):
    """Reconstruction and the bottleneck's penalty; with ``adversarial_weight`` also a critic of patches.

    Reconstruction per value: absolute and squared error mixed by ``l1_share``, or the logit-Laplace likelihood, plus
    the distance in features. The critic's gradient is scaled by VQGAN's adaptive weight (see ``tokenizers.critic``).
    """

    def __init__(
        self,
        network: FsqTokenizer | VqTokenizer | GaussianVae,
        pictures: NDArray[np.uint8],
        config: TokenizerConfig | GeneratorConfig,
        runtime: Runtime,
        perceptual: PerceptualDistance | None = None,
    ) -> None:
        crop = config.image_px if isinstance(config, TokenizerConfig) and config.augment == "paper" else 0
        super().__init__(pictures, config.optim, runtime, crop)
        self.network: nn.Module = network
        self._likelihood: Likelihood = config.loss
        self._latent_dim = config.latent_dim if isinstance(config, GeneratorConfig) else 0
        self._l1_share = 0.5
        if isinstance(config, TokenizerConfig):
            self._l1_share = config.l1_share
            self._set_up_critic(network.decoder, config, runtime)
            self._perceptual_weight = config.perceptual_weight
        self._perceptual = perceptual.to(runtime.device) if perceptual is not None else None

    def _set_up_critic(self, decoder: nn.Sequential, config: TokenizerConfig, runtime: Runtime) -> None:
        if not config.adversarial_weight:
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(runtime.generator(_CRITIC).initial_seed())
            self.critic = PatchCritic(config.image_px, config.critic_width)
        self.critic_optim = config.optim.model_copy(
            update={"optimizer": "adamw", "lr": config.critic_lr, "betas": (0.5, 0.9), "weight_decay": 0.0}
        )
        self.critic_from = math.ceil(config.adversarial_start * config.optim.steps)
        self._adversarial_weight = config.adversarial_weight
        self._shuffle = decoder[-1]
        self._last_inputs: list[Tensor] = []
        decoder[-2].register_forward_pre_hook(self._keep_inputs)

    def _keep_inputs(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._last_inputs = [inputs[0].detach()]

    def _run(self, network: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """(pictures as floats, the decoder's maps, penalties [b])."""
        images = to_unit(batch["images"])
        if self._latent_dim:
            maps, penalties = network(images, self._normal(batch, step, self._latent_dim))
        else:
            maps, penalties = network(images)
        return images, maps, penalties

    def loss(self, network: nn.Module, batch: Batch, step: int) -> Loss:
        """Per value, averaged over the whole batch."""
        images, maps, penalties = self._run(network, batch, step)
        made = pictures_of(maps, self._likelihood)
        error = (made - images).flatten(1)
        terms = {"l1": error.abs().mean(1), "l2": error.square().mean(1)}
        if self._likelihood == "logit_laplace":
            mu, log_b = maps.chunk(2, dim=1)
            rebuilt = terms["nll_per_value"] = logit_laplace_nll(map_pixels(images), mu, log_b).flatten(1).mean(1)
        else:
            rebuilt = self._l1_share * terms["l1"] + (1 - self._l1_share) * terms["l2"]
        if self._perceptual is not None:
            terms["perceptual"] = self._perceptual(made, images)
            rebuilt = rebuilt + self._perceptual_weight * terms["perceptual"]
        per_picture = rebuilt + penalties
        terms |= {"loss": per_picture, "penalty": penalties}
        total = per_picture
        # without gradients, as where products are counted, there is nothing to weigh them by
        if self.critic is not None and step >= self.critic_from and torch.is_grad_enabled():
            gradient, weight, verdict = self._with_critic(maps, made, rebuilt)
            # the network's gradient is what matters here: it is the same as that of the weighted sum of losses
            total = (maps * gradient).flatten(1).sum(1) + penalties
            terms |= {"adversarial": verdict, "adversarial_weight": weight}
        share = 1 / self._batch_size
        return Loss(total.sum() * share, {name: value.detach().sum() * share for name, value in terms.items()})

    def _with_critic(self, maps: Tensor, made: Tensor, rebuilt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient with respect to the maps of both losses [b, 3 or 6, H, W], the critic's weight [b], its loss [b]."""
        assert self.critic is not None
        verdict = hinge_maker(self.critic(made))
        (of_rebuilt,) = torch.autograd.grad(rebuilt.sum(), maps, retain_graph=True)
        (of_critic,) = torch.autograd.grad(verdict.sum(), maps)
        with torch.no_grad():
            norms = [
                last_layer_norms(self._last_inputs[0], F.pixel_unshuffle(g, self._shuffle.upscale_factor), 3)  # type: ignore[arg-type]
                for g in (of_rebuilt, of_critic)
            ]
            weight = self._adversarial_weight * adaptive_weight(*norms)
            gradient = of_rebuilt + weight.view(-1, 1, 1, 1) * of_critic
        return gradient, weight, verdict

    def critic_loss(self, critic: nn.Module, batch: Batch, step: int) -> Loss:
        """Hinge loss between pictures and what the network makes of them now."""
        with torch.no_grad():
            images, maps, _ = self._run(self.network, batch, step)
            made = pictures_of(maps, self._likelihood)
        real, fake = critic(torch.cat([images, made])).chunk(2)
        return _critic_terms(hinge_critic(real, fake), real.mean(1), fake.mean(1), self._batch_size)


def _critic_terms(losses: Tensor, real: Tensor, made: Tensor, batch_size: int) -> Loss:
    """Means over the whole batch of per-picture values [b]."""
    terms = {"loss": losses, "real": real, "made": made}
    return Loss(losses.sum() / batch_size, {name: v.detach().sum() / batch_size for name, v in terms.items()})


class DvaeObjective(_PictureObjective):
    """The paper's loss. Its schedules, given in updates for 3 million, keep their share of the run (recipe 1D)."""

    def __init__(
        self, tokenizer: DvaeTokenizer, pictures: NDArray[np.uint8], config: TokenizerConfig, runtime: Runtime
    ) -> None:
        super().__init__(pictures, config.optim, runtime, config.image_px if config.augment == "paper" else 0)
        self.network: nn.Module = tokenizer
        if config.encoder_lr_share != 1:
            self.lr_shares = {"encoder.": config.encoder_lr_share}
        self._config = config

    def schedule(self, step: int) -> dict[str, float]:
        """In the paper the temperature falls over 5 % (150,000 of 3,000,000), the KL weight rises over 0.2 %."""
        config, steps = self._config, self._config.optim.steps
        return {
            "temperature": temperature(step, config.final_temperature, math.ceil(steps * config.temperature_share)),
            "kl_weight": kl_weight(step, config.kl_weight, math.ceil(steps * config.kl_ramp_share)),
        }

    def loss(self, network: nn.Module, batch: Batch, step: int) -> Loss:
        """``dvae_loss`` over the whole batch; noise depends on a row's place in it, not on how it was split."""
        now = self.schedule(step)
        mapped = map_pixels(to_unit(batch["images"]))
        grid, codes = self._config.grid, self._config.num_codes
        noise = torch.stack(
            [
                gumbel_noise((codes, grid, grid), self._runtime.generator(_NOISE, step, int(p)), mapped.device)
                for p in batch["place"]
            ]
        )
        maps, logits = network(mapped, now["temperature"], noise)
        share = len(mapped) / self._batch_size
        of = normal_dvae_loss if self._config.likelihood == "normal" else dvae_loss
        total = of(mapped, maps, logits, now["kl_weight"]) * share
        likelihood = of(mapped, maps.detach(), logits.detach(), 0.0) * share
        mse = F.mse_loss(torch.sigmoid(maps.detach()[:, :3]), mapped) * share
        return Loss(total, {"loss": total.detach(), "nll_per_value": likelihood, "l2": mse})


class DcganObjective(_PictureObjective):
    """Generator against critic. Batch norm makes both depend on the micro-batch, as published."""

    def __init__(
        self, generator: DcganGenerator, pictures: NDArray[np.uint8], config: GeneratorConfig, runtime: Runtime
    ) -> None:
        super().__init__(pictures, config.optim, runtime)
        self.network: nn.Module = generator
        self._latent_dim = config.latent_dim
        self._hinge = config.critic_loss == "hinge"
        self._shift_px = round(config.critic_shift * config.image_px)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(runtime.generator(_CRITIC).initial_seed())
            self.critic = DcganCritic(config)
        self.critic_optim = config.optim.model_copy(update={"lr": config.critic_lr})

    def _seen(self, images: Tensor, batch: Batch, step: int, turn: int) -> Tensor:
        """What the critic sees of pictures [b, 3, H, W]; ``turn`` tells the passes of one update apart."""
        if not self._shift_px:
            return images
        draws = [self._runtime.generator(_SHIFT, step, int(p), turn) for p in batch["place"]]
        limit = self._shift_px
        offsets = torch.stack([torch.randint(-limit, limit + 1, (2,), generator=g) for g in draws])
        return shifted(images, offsets.to(images.device))

    def loss(self, network: nn.Module, batch: Batch, step: int) -> Loss:
        """Mean over the whole batch."""
        assert self.critic is not None
        made = network(self._normal(batch, step, self._latent_dim))
        verdicts = self.critic(self._seen(made, batch, step, 0))
        losses = -verdicts if self._hinge else gan_maker_loss(verdicts)
        total = losses.sum() / self._batch_size
        return Loss(total, {"loss": total.detach()})

    def critic_loss(self, critic: nn.Module, batch: Batch, step: int) -> Loss:
        """On pictures and as many fresh ones of the generator; real and made go through batch norm apart."""
        with torch.no_grad():
            made = self.network(self._normal(batch, step, self._latent_dim, _NOISE))
        real = critic(self._seen(to_unit(batch["images"]), batch, step, 1))
        fake = critic(self._seen(made, batch, step, 2))
        losses = hinge_critic(real[:, None], fake[:, None]) if self._hinge else gan_critic_loss(real, fake)
        return _critic_terms(losses, real, fake, self._batch_size)

    def settle(self, network: nn.Module) -> None:
        """Running statistics of batch norm, anew from noise: those at hand are of the weights that were trained, and
        averaged weights have others (as for averaged weights in Izmailov et al. 2018, arXiv 1803.05407, section 3.2).
        """
        norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        momenta, training = [norm.momentum for norm in norms], network.training
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean of all batches
        network.train()
        device = next(network.parameters()).device
        with torch.no_grad():
            for number in range(_SETTLED_ON):
                rows = torch.randn(_SETTLE_ROWS, self._latent_dim, generator=self._runtime.generator(_SETTLE, number))
                network(rows.to(device))
        network.train(training)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def tokenizer_objective(
    tokenizer: ImageTokenizer,
    pictures: NDArray[np.uint8],
    config: TokenizerConfig,
    runtime: Runtime,
    perceptual: PerceptualDistance | None = None,
) -> Objective:
    """The objective that fits the kind of the tokenizer. ``pictures`` uint8 [R, 3, H, W]. DataError for an unknown kind.

    With ``augment`` the pictures may be larger than the tokenizer's size, else they must have it. ``perceptual`` is
    needed where ``perceptual_weight`` is above 0.
    """
    if isinstance(tokenizer, FsqTokenizer | VqTokenizer):
        if config.perceptual_weight and perceptual is None:
            raise DataError(
                f"perceptual_weight {config.perceptual_weight} needs a network to compare in; pass perceptual.fixed_distance()"
            )
        return AutoencoderObjective(
            tokenizer, pictures, config, runtime, perceptual if config.perceptual_weight else None
        )
    if isinstance(tokenizer, DvaeTokenizer):
        return DvaeObjective(tokenizer, pictures, config, runtime)
    raise DataError(f"no training objective for a {type(tokenizer).__name__}; there is one for fsq, vq and dvae")


def generator_objective(
    network: nn.Module, pictures: NDArray[np.uint8], config: GeneratorConfig, runtime: Runtime
) -> Objective:
    """The objective that fits a generator without prompts. DataError for another network."""
    if isinstance(network, GaussianVae):
        return AutoencoderObjective(network, pictures, config, runtime)
    if isinstance(network, DcganGenerator):
        return DcganObjective(network, pictures, config, runtime)
    raise DataError(
        f"no training objective for a {type(network).__name__}; there is one for GaussianVae and DcganGenerator"
    )
