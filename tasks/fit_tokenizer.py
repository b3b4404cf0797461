"""Stage fit-tokenizer: train the image tokenizer on curated pictures and measure its health."""

import time
from typing import cast

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from dalle_model.augmentation import source_px
from dalle_model.code_pictures import code_usage_picture
from dalle_model.config import TokenizerConfig
from dalle_model.distances import frechet
from dalle_model.errors import CodebookCollapsed, DataError
from dalle_model.features import RandomFeatures
from dalle_model.images import to_float, to_uint8
from dalle_model.metrics import code_usage, psnr, ssim
from dalle_model.perceptual import PerceptualDistance, fixed_distance, vgg_distance
from dalle_model.picture_objectives import tokenizer_objective
from dalle_model.runtime import Runtime
from dalle_model.sheets import contact_sheet
from dalle_model.tokenizers.base import ImageTokenizer
from dalle_model.tokenizers.dvae import DvaeTokenizer
from dalle_model.tokenizers.dvae_start import start_from_pictures
from dalle_model.tokenizers.registry import build_tokenizer, tokenizer_to_bytes
from tasks.job import Job, Outcome
from tasks.pictures import PictureSet, curated_table, load_pictures, spread
from tasks.prompts import read_uri
from tasks.training import curve_object, train, training_runtime

_INIT = 1  # stream of the initial weights under the training seed
_SHOWN = 32
_DRAWN = 8  # pictures reconstructed at each look
_MEASURED = 512
_SCALED_ON = 128


def work(job: Job) -> Outcome:
    """Train, then report reconstruction and code use on held-out pictures (training ones where none are held out)."""
    config: TokenizerConfig = job.config
    curated = job.inputs["curated"]
    rows = curated_table(job, curated, ("train",))
    px = source_px(config.image_px) if config.augment == "paper" else config.image_px
    pictures = load_pictures(job, curated, rows, px, "train")
    if not len(pictures.images):
        raise DataError("the split `train` of the curated pairs is empty; lower valid_share, test_share or the holdout")
    with training_runtime(job, config.optim.seed) as runtime:
        # where the perceptual weights lie is not part of what is made
        tokenizer = build_tokenizer(config.model_copy(update={"perceptual_file": ""}), runtime.generator(_INIT))
        if isinstance(tokenizer, DvaeTokenizer) and config.start == "data":
            few = rows.take(pa.array(spread(rows.num_rows, _SCALED_ON)))
            start_from_pictures(
                tokenizer, to_float(np.asarray(load_pictures(job, curated, few, config.image_px, "start").images))
            )
        objective = tokenizer_objective(tokenizer, pictures.chw(), config, runtime, _perceptual(job, config))
        shown = load_pictures(
            job, curated, rows.take(pa.array(spread(rows.num_rows, _DRAWN))), config.image_px, "shown"
        )

        def draw(network: nn.Module) -> bytes:
            return _sheet(cast(ImageTokenizer, network), shown, runtime)

        result, seen = train(
            job,
            objective,
            config.optim,
            runtime,
            data=curated.fingerprint,
            title="Original and reconstruction",
            draw=draw,
        )
        if runtime.rank != 0:
            return Outcome((), 0, {})
    held = load_pictures(job, curated, curated_table(job, curated, ("valid", "test")), config.image_px, "held")
    measured = rows.take(pa.array(spread(rows.num_rows, _MEASURED)))
    stats, sheets, speeds = _examine(
        tokenizer, load_pictures(job, curated, measured, config.image_px, "measured"), held, runtime
    )
    _refuse_collapse(config, stats)
    weights, described = tokenizer_to_bytes(tokenizer)
    objects = (
        job.put(weights, ext="safetensors", role="weights"),
        job.put(described, ext="json", role="config"),
        curve_object(job, result.curve),
        *seen,
        *(job.put(picture, ext="png", role=role) for role, picture in sheets.items()),
    )
    parameters = sum(p.numel() for p in tokenizer.parameters())
    stats |= {
        "parameters": parameters,
        "steps": result.steps,
        "final_loss": result.curve[-1]["loss"],
        "trained_on": len(pictures.images),
    }
    facts = {
        "rows_per_s": result.rows_per_s,
        "train_seconds": result.seconds,
        "micro_batch_size": result.micro_batch_size,
        **speeds,
    }
    return Outcome(objects, len(pictures.images), stats, facts)


def _perceptual(job: Job, config: TokenizerConfig) -> PerceptualDistance | None:
    """The network in whose features pictures are compared while training, if any."""
    if not config.perceptual_weight:
        return None
    if config.perceptual_file:
        return vgg_distance(read_uri(config.perceptual_file, job.settings), config.perceptual_sha256)
    if config.perceptual_sha256:
        raise DataError("perceptual_sha256 is given without perceptual_file; name the file, or clear the hash")
    return fixed_distance()


def reconstruct(
    tokenizer: ImageTokenizer,
    images: np.ndarray,  # type: ignore[type-arg]
    runtime: Runtime,
    batch_size: int = 64,
) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 [R, H, W, 3] -> (ids int64 [R, N], reconstructions float32 [R, 3, H, W] on the CPU)."""
    ids = encode_ids(tokenizer, images, runtime, batch_size)
    return ids, decode_ids(tokenizer, ids, runtime, batch_size)


@torch.inference_mode()
def encode_ids(
    tokenizer: ImageTokenizer,
    images: np.ndarray,  # type: ignore[type-arg]
    runtime: Runtime,
    batch_size: int = 64,
) -> torch.Tensor:
    """uint8 [R, H, W, 3] -> ids int64 [R, N] on the CPU."""
    ids = []
    with runtime.autocast():
        for start in range(0, len(images), batch_size):
            batch = to_float(np.ascontiguousarray(images[start : start + batch_size])).to(runtime.device)
            ids.append(tokenizer.encode(batch).cpu())
    return torch.cat(ids)


@torch.inference_mode()
def decode_ids(tokenizer: ImageTokenizer, ids: torch.Tensor, runtime: Runtime, batch_size: int = 64) -> torch.Tensor:
    """Ids [R, N] -> float32 [R, 3, H, W] in [0, 1] on the CPU."""
    with runtime.autocast():
        batches = [ids[start : start + batch_size] for start in range(0, len(ids), batch_size)]
        return torch.cat([tokenizer.decode(batch.to(runtime.device)).float().cpu() for batch in batches])


def _examine(
    tokenizer: ImageTokenizer, trained: PictureSet, held: PictureSet, runtime: Runtime
) -> tuple[dict[str, float], dict[str, bytes], dict[str, float]]:
    """(figures of reconstruction and code use, pictures by role, speeds)."""
    tokenizer = tokenizer.to(runtime.device).eval()
    stats: dict[str, float] = {}
    speeds: dict[str, float] = {}
    usage = b""
    for name, pictures in (("train", trained), ("heldout", held)):
        if not len(pictures.images):
            continue
        images = np.asarray(pictures.images[spread(len(pictures.images), _MEASURED)])
        ids, made = reconstruct(tokenizer, images, runtime)
        truth = to_float(images)
        perplexity, dead = code_usage(ids, tokenizer.vocab_size)
        stats |= {f"psnr_{name}": float(psnr(made, truth).mean()), f"ssim_{name}": float(ssim(made, truth).mean())}
        if len(images) > 1:
            features = RandomFeatures()
            stats[f"reconstruction_frechet_{name}"] = frechet(features.of(truth), features.of(made))
        if name == "train":
            stats |= {
                "code_perplexity": perplexity,
                "dead_codes": dead,
                "vocab_size": tokenizer.vocab_size,
                "measured": len(images),
            }
            usage = code_usage_picture(ids.numpy(), tokenizer.vocab_size)
            speeds = _speeds(tokenizer, images, ids, runtime)
    shown = held if len(held.images) >= _SHOWN // 2 else trained
    sheets = {"sheet.reconstructions": _sheet(tokenizer, shown, runtime), "sheet.code_usage": usage}
    # sums of floats depend on the number of threads beyond nine digits
    return {name: float(f"{value:.9g}") for name, value in stats.items()}, sheets, speeds


@torch.inference_mode()
def _speeds(
    tokenizer: ImageTokenizer,
    images: np.ndarray,  # type: ignore[type-arg]
    ids: torch.Tensor,
    runtime: Runtime,
) -> dict[str, float]:
    """Pictures per second of either direction, in batches of 64 on this machine as it was."""
    rates: dict[str, float] = {}
    started = time.perf_counter()
    encode_ids(tokenizer, images, runtime)
    rates["encode_images_per_s"] = len(images) / (time.perf_counter() - started)
    started = time.perf_counter()
    decode_ids(tokenizer, ids, runtime)
    rates["decode_images_per_s"] = len(images) / (time.perf_counter() - started)
    return rates


def _sheet(tokenizer: ImageTokenizer, pictures: PictureSet, runtime: Runtime) -> bytes:
    """Truth and reconstruction side by side."""
    chosen = spread(len(pictures.images), _SHOWN)
    truth = np.asarray(pictures.images[chosen])
    _, made = reconstruct(tokenizer, truth, runtime)
    pairs = [np.concatenate([a, b], axis=1) for a, b in zip(truth, to_uint8(made), strict=True)]
    captions = pictures.rows["caption"].take(pa.array(chosen)).to_pylist()
    return contact_sheet(pairs, captions, columns=4, px=160)


def _refuse_collapse(config: TokenizerConfig, stats: dict[str, float]) -> None:
    """A tokenizer that says everything with a handful of codes would let every later stage fail quietly."""
    floor = config.min_perplexity_share * min(config.vocab_size, config.num_tokens * stats["measured"])
    if stats["code_perplexity"] < floor:
        short = "take --preset dvae for a run of some hundred updates, " if config.kind == "dvae" else ""
        raise CodebookCollapsed(
            f"the code perplexity is {stats['code_perplexity']:.1f}, below {floor:.1f} "
            f"(tokenizer.min_perplexity_share {config.min_perplexity_share}); train longer, lower tokenizer.kl_weight or the step size, {short}or use kind=fsq"
        )
