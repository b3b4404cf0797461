"""Generators that read no prompt, behind one door: build, save, load, draw, and the bound of the Gaussian VAE."""

import hashlib
import json
import math

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from dalle_model.config import GeneratorConfig
from dalle_model.dcgan import DcganGenerator
from dalle_model.errors import DataError
from dalle_model.gaussian_vae import GaussianVae
from dalle_model.images import to_float
from dalle_model.metrics import psnr
from dalle_model.runtime import Runtime
from dalle_model.tokenizers.dvae import PIXEL_EPS, logit_laplace_nll, map_pixels

Generator = GaussianVae | DcganGenerator
_BOUND = 0xB0D  # stream number under Runtime.seed


def build_generator(config: GeneratorConfig, generator: torch.Generator) -> Generator:
    """A network with fresh weights, a pure function of ``generator``'s seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
        return GaussianVae(config) if config.kind == "vae" else DcganGenerator(config)


def generator_to_bytes(network: Generator) -> tuple[bytes, bytes]:
    """(weights as safetensors, config as JSON)."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in network.state_dict().items()}
    return save_tensors(tensors), network.config.model_dump_json().encode()


def generator_from_bytes(weights: bytes, config: bytes) -> Generator:
    """The inverse of ``generator_to_bytes``, in eval mode. DataError when weights and config do not fit each other."""
    network = build_generator(GeneratorConfig(**json.loads(config)), torch.Generator())
    try:
        network.load_state_dict(load_tensors(weights))
    except RuntimeError as error:
        raise DataError(
            f"generator weights do not fit their config: {str(error).splitlines()[0]}; take both from one artifact"
        ) from error
    return network.eval()


def noise_of(keys: list[str], latent_dim: int) -> Tensor:
    """Standard normal noise float32 [n, latent_dim]; each row is a pure function of its key."""
    rows = []
    for key in keys:
        bits = np.random.Philox(key=int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little"))
        raw = bits.random_raw(2 * latent_dim).reshape(2, latent_dim) >> np.uint64(11)
        first, second = (raw + 0.5) * 2.0**-53  # in (0, 1): the logarithm below is finite
        rows.append(np.sqrt(-2 * np.log(first)) * np.cos(2 * np.pi * second))  # Box and Muller
    return torch.from_numpy(np.array(rows, np.float32).reshape(len(keys), latent_dim))


@torch.inference_mode()
def draw_pictures(network: Generator, noise: Tensor, runtime: Runtime, group: int = 16) -> Tensor:
    """Noise [n, latent_dim] -> float32 [n, 3, H, W] in [0, 1] on the CPU.

    In float32 and in groups of a fixed size, filled up where they are short: a picture does not depend on the others.
    """
    network.to(runtime.device).eval()
    side = network.config.image_px
    made = []
    for start in range(0, len(noise), group):
        rows = noise[start : start + group]
        filled = torch.cat([rows, rows[:1].expand(group - len(rows), -1)]).to(runtime.device)
        made.append(network.draw(filled).float().cpu()[: len(rows)])
    return torch.cat(made) if made else torch.empty(0, 3, side, side)


@torch.inference_mode()
def bits_per_pixel_bound(
    network: GaussianVae, images: NDArray[np.uint8], runtime: Runtime, batch_size: int = 64
) -> float:
    """Bits per pixel at most of uint8 pictures [n, H, W, 3] under a VAE trained with the logit-Laplace likelihood.

    The evidence bound with one draw of the latent per picture: density of the mapped values, plus KL. A density becomes
    the probability of one of 256 levels by the width of a level on the mapped scale, 0.8 / 255.
    """
    if network.config.loss != "logit_laplace":
        raise DataError(f"loss {network.config.loss} is no likelihood; train with loss logit_laplace for a bound")
    network.to(runtime.device).eval()
    nats, values = 0.0, images[0].size
    for start in range(0, len(images), batch_size):
        batch = to_float(np.ascontiguousarray(images[start : start + batch_size])).to(runtime.device)
        noise = torch.stack(
            [
                torch.randn(network.config.latent_dim, generator=runtime.generator(_BOUND, start + i))
                for i in range(len(batch))
            ]
        )
        maps, kl = network.through(batch, noise.to(runtime.device))
        mu, log_b = maps.chunk(2, dim=1)
        nll = logit_laplace_nll(map_pixels(batch), mu, log_b).flatten(1).sum(1)
        nats += float((nll + kl).cpu().double().sum())  # whatever weight the KL had in training
    level = (1 - 2 * PIXEL_EPS) / 255
    per_value = nats / (len(images) * int(values)) - math.log(level)
    return 3 * per_value / math.log(2)


def collapse(config: GeneratorConfig, reached: float, truth: Tensor) -> str:
    """What to say of a VAE whose reconstructions are no closer to the pictures than their mean is; empty if they are.

    ``reached``: mean PSNR in dB of the reconstructions of ``truth`` [n, 3, H, W] in [0, 1]. On grounds of one exact
    value, as drawings have, the logit-Laplace density has no upper bound: the scale b shrinks there, its gradients
    drown all others, and the latent is ignored.
    """
    floor = float(psnr(truth.mean(0, keepdim=True).expand_as(truth), truth).mean())
    if reached > floor:
        return ""
    remedy = "train longer"
    if config.loss == "logit_laplace":
        remedy += ", or set generator.loss=l1_l2 and generator.kl_weight=0.1: on exactly white grounds logit_laplace has no bound"
    elif config.kl_weight:
        remedy += f", or lower generator.kl_weight {config.kl_weight:g}"
    return f"the VAE reconstructs at {reached:.1f} dB, no better than the mean picture ({floor:.1f} dB): it has collapsed or hardly begun; {remedy}"
