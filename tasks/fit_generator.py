"""Stage fit-generator: train a generator that reads no prompt, a Gaussian VAE or a DCGAN, on curated pictures."""

from typing import Any, cast

import numpy as np
import torch

from dalle_model.config import GeneratorConfig
from dalle_model.errors import DataError
from dalle_model.gaussian_vae import GaussianVae
from dalle_model.images import to_float, to_uint8
from dalle_model.metrics import psnr
from dalle_model.picture_objectives import generator_objective
from dalle_model.runtime import Runtime
from dalle_model.sheets import Section, sectioned_sheet
from dalle_model.unprompted import (
    Generator,
    bits_per_pixel_bound,
    build_generator,
    collapse,
    draw_pictures,
    generator_to_bytes,
    noise_of,
)
from tasks.job import Job, Outcome
from tasks.pictures import PictureSet, curated_table, load_pictures, spread
from tasks.training import curve_object, train, training_runtime

_INIT = 3  # stream of the initial weights under the training seed
_SHOWN = 32
_MEASURED = 512


def work(job: Job) -> Outcome:
    """Train; a VAE is also measured on pictures: reconstruction, and the bound of its likelihood."""
    config: GeneratorConfig = job.config
    curated = job.inputs["curated"]
    pictures = load_pictures(job, curated, curated_table(job, curated, ("train",)), config.image_px, "train")
    if not len(pictures.images):
        raise DataError("the split `train` of the curated pairs is empty; lower valid_share, test_share or the holdout")
    with training_runtime(job, config.optim.seed) as runtime:
        network = build_generator(config, runtime.generator(_INIT))
        objective = generator_objective(network, pictures.chw(), config, runtime)
        result, seen = train(
            job,
            objective,
            config.optim,
            runtime,
            data=curated.fingerprint,
            draw=lambda trained: _sheet(cast(Any, trained), pictures, runtime),
        )
        if runtime.rank != 0:
            return Outcome((), 0, {})
    held = load_pictures(job, curated, curated_table(job, curated, ("valid", "test")), config.image_px, "held")
    weights, described = generator_to_bytes(network)
    objects = (
        job.put(weights, ext="safetensors", role="weights"),
        job.put(described, ext="json", role="config"),
        curve_object(job, result.curve),
        *seen,
        job.put(_sheet(network, pictures, runtime), ext="png", role="sheet.samples"),
    )
    stats: dict[str, Any] = {
        "family": config.kind,
        "parameters": sum(p.numel() for p in network.parameters()),
        "steps": result.steps,
        "trained_on": len(pictures.images),
        "final_loss": result.curve[-1]["loss"],
        **(
            _measured(job, network, {"train": pictures, "valid": held}, runtime)
            if isinstance(network, GaussianVae)
            else {}
        ),
    }
    facts = {
        "rows_per_s": result.rows_per_s,
        "train_seconds": result.seconds,
        "micro_batch_size": result.micro_batch_size,
    }
    return Outcome(objects, len(pictures.images), stats, facts)


@torch.inference_mode()
def _measured(job: Job, network: GaussianVae, splits: dict[str, PictureSet], runtime: Runtime) -> dict[str, float]:
    out: dict[str, float] = {}
    for split, pictures in splits.items():
        if not len(pictures.images):
            continue
        images = np.asarray(pictures.images[spread(len(pictures.images), _MEASURED)])
        out[f"measured_{split}"] = len(images)
        truth = to_float(images)
        mean, _ = network.to(runtime.device).eval().encode(truth.to(runtime.device))
        out[f"psnr_{split}"] = float(psnr(network.decode(mean).float().cpu(), truth).mean())
        if split == "train" and (said := collapse(network.config, out["psnr_train"], truth)):
            job.log(said)
        if network.config.loss == "logit_laplace":
            out[f"bits_per_pixel_{split}"] = bits_per_pixel_bound(network, images, runtime)
    return {name: float(f"{value:.9g}") for name, value in out.items()}  # sums depend on the threads beyond that


def _sheet(network: Generator, pictures: PictureSet, runtime: Runtime) -> bytes:
    noise = noise_of([f"sheet {i}" for i in range(_SHOWN)], network.config.latent_dim)
    made = list(to_uint8(draw_pictures(network, noise, runtime)))
    real = list(np.asarray(pictures.images[spread(len(pictures.images), _SHOWN // 2)]))
    sections = [
        Section("Made from noise", made, [""] * len(made)),
        Section("Training pictures", real, [""] * len(real)),
    ]
    return sectioned_sheet(sections, columns=8, tile_px=(96, 96))
