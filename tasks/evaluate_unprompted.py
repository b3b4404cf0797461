"""Evaluation of generators without prompts: what can be measured of pictures alone, and what cannot be said."""

import io
import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from dalle_model.config import EvaluateConfig
from dalle_model.distances import (
    corrected_distance,
    density_coverage,
    frechet,
    mean_distance,
    precision_recall,
    share_interval,
    sliced_wasserstein,
)
from dalle_model.features import RandomFeatures, ThumbnailFeatures
from dalle_model.images import encode_png, to_float, to_uint8
from dalle_model.metrics import nearest
from dalle_model.sheets import Section, sectioned_sheet
from tasks.artifacts import Manifest
from tasks.curves import curves_of
from tasks.figures import metrics_of
from tasks.fit_tokenizer import spread
from tasks.job import Job, Outcome, load_ancestor
from tasks.measures import CopyDetector, share
from tasks.pages import Ancestor, Headline, Neighbour, Picture, ReportData, Sample, Sheet, report_html
from tasks.pictures import PictureSet, curated_table, load_pictures
from tasks.unprompted import UnpromptedPainter, load_unprompted

UInt8 = npt.NDArray[np.uint8]

_RESAMPLES, _NEIGHBOURS = 100, 5  # as for models that read prompts
_NOT_APPLICABLE = {
    "recognisability": "the model reads no caption, so no drawing has a picture of its own",
    "scene figures": "the same",
    "losses per token": "the model has no tokens",
    "captions met, agreement with the text": "the model reads no caption",
}
_FAMILIES = {"vae": "Gaussian VAE", "gan": "DCGAN"}


def work(job: Job) -> Outcome:
    """Draw as many pictures as there are captions to compare with, and measure the two sets."""
    config: EvaluateConfig = job.config
    model = job.inputs["model"]
    curated = load_ancestor(job.store, model, "curated")
    painter = load_unprompted(job, model, config.seed)
    rows = curated_table(job, curated, ("train",)).sort_by([("caption", "ascending"), ("id", "ascending")])
    training = load_pictures(
        job, curated, rows.take(spread(rows.num_rows, config.max_reference)), painter.image_px, "train"
    )
    truth = np.asarray(training.images[spread(len(training.images), config.num_captions)])
    requests = [painter.request("", config.seed, index) for index in range(len(truth))]
    made = to_uint8(painter.pictures(painter.tokens(requests, config.batch_size)))
    job.progress(len(made), len(made), "pictures")
    copies = CopyDetector(np.asarray(training.images))
    metrics = _compare(made, truth) | share("copied", copies.copied(made)) | _of_the_model(model)
    metrics = {name: float(f"{value:.9g}") for name, value in metrics.items()}
    protocol = _protocol(config, painter, len(made), copies)
    report = report_html(_report(job, model, curated, metrics, protocol, made, truth, training, copies))
    document = json.dumps({"metrics": metrics, "protocol": protocol}, sort_keys=True, indent=1).encode()
    objects = (
        job.put(document, ext="json", role="metrics"),
        job.put(_sheet(made, truth), ext="png", role="sheet.samples"),
        job.put(report, ext="html", role="report"),
    )
    return Outcome(objects, len(made), metrics)


def _compare(made: UInt8, truth: UInt8) -> dict[str, float]:
    """Distances of the two sets, and variety: distance between drawings over that between true pictures."""
    if len(made) < 2:
        return {}
    features, thumbnails = RandomFeatures(), ThumbnailFeatures()
    a, b = features.of(to_float(truth)), features.of(to_float(made))
    out: dict[str, float] = {}
    for name, distance in (("frechet_random", frechet), ("sliced_wasserstein_random", sliced_wasserstein)):
        value, interval = corrected_distance(distance, a, b, paired=False, resamples=_RESAMPLES)
        out |= {name: value, f"{name}_low": interval[0], f"{name}_high": interval[1]}
    if len(a) > _NEIGHBOURS:
        parts = (*precision_recall(a, b, k=_NEIGHBOURS), *density_coverage(a, b, k=_NEIGHBOURS))
        for name, values in zip(("precision", "recall", "density", "coverage"), parts, strict=True):
            low, high = share_interval(values)
            out |= {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}
    spread_of_truth = mean_distance(thumbnails.of(to_float(truth)))
    if spread_of_truth > 0:
        out["variety_of_drawings"] = mean_distance(thumbnails.of(to_float(made))) / spread_of_truth
    return out


def _of_the_model(model: Manifest) -> dict[str, float]:
    """Figures that training measured: reconstruction and bound of a VAE."""
    names = ("psnr_train", "psnr_valid", "bits_per_pixel_train", "bits_per_pixel_valid")
    return {name: model.stats[name] for name in names if name in model.stats}


def _protocol(config: EvaluateConfig, painter: UnpromptedPainter, n: int, copies: CopyDetector) -> dict[str, Any]:
    features = RandomFeatures()
    return {
        "sets": "drawings from noise, and training pictures in the order of their captions, spread evenly",
        "n": n,
        "seed": config.seed,
        "picture_px": painter.image_px,
        "features": {features.name: features.digest},
        "neighbours": _NEIGHBOURS,
        "interval": f"95 % basic bootstrap of each set, {_RESAMPLES} resamples, Philox seed 0; the figure is less its bootstrap bias",
        "copies": copies.protocol,
        "bits_per_pixel": "bound: logit-Laplace density of 256 levels plus KL, one draw of the latent per picture",
        "not_applicable": _NOT_APPLICABLE,
    }


def _sheet(made: UInt8, truth: UInt8) -> bytes:
    sections = [
        Section("Drawn from noise", list(made), [""] * len(made)),
        Section("Training pictures", list(truth), [""] * len(truth)),
    ]
    return sectioned_sheet(sections, columns=16, tile_px=(64, 64), max_bytes=400_000)


def _report(
    job: Job,
    model: Manifest,
    curated: Manifest,
    metrics: dict[str, float],
    protocol: dict[str, Any],
    made: UInt8,
    truth: UInt8,
    training: PictureSet,
    copies: CopyDetector,
) -> ReportData:
    pairs = load_ancestor(job.store, curated, "pairs")
    family = _FAMILIES[model.stats["family"]]
    columns = pq.read_table(io.BytesIO(job.read(model.object_of("curve")))).to_pydict()
    left_out = "; ".join(f"{name}: {why}" for name, why in _NOT_APPLICABLE.items())
    return ReportData(
        title=f"Evaluation of model {model.fingerprint[:12]}",
        summary=(
            f"A {family}, trained on {model.stats['trained_on']:,} pictures. It reads no prompt: it draws pictures like those it was trained on. "
            f"{len(made)} drawings are compared with {len(truth)} training pictures."
        ),
        facts={
            "model": model.fingerprint[:12],
            "family": family,
            "parameters": f"{model.stats['parameters']:,}",
            "updates": f"{model.stats['steps']:,}",
        },
        headlines=_headlines(metrics),
        sheets=(
            Sheet(
                "Drawn from noise, beside training pictures",
                "The two pictures of a pair have nothing to do with each other: look at the kind, not at the likeness.",
                tuple(
                    Sample("", (Picture("real", encode_png(real)), Picture("drawn", encode_png(drawn))))
                    for real, drawn in zip(truth, made, strict=True)
                ),
            ),
        ),
        neighbours=_neighbours(made, training, copies),
        neighbours_note="Each drawing beside the training picture it is nearest to, the closest first.",
        curves=tuple(curves_of(columns, (), title=f"Loss of the {family}")),
        metrics=metrics_of(metrics, protocol=f"seed {protocol['seed']}, {protocol['n']} pictures"),
        lineage=tuple(Ancestor(m.step, m.kind, m.fingerprint, config=m.config) for m in (pairs, curated, model)),
        notes=(
            f"Not measured, because it has no meaning here: {left_out}.",
            "Variety and copied are this project's own measures, not published benchmarks. Frechet and Wasserstein distances stand on our own features: they compare with other runs of this project, never with a published FID.",
            f"Protocol: {json.dumps(protocol, sort_keys=True)}",
        ),
    )


def _headlines(metrics: dict[str, float]) -> tuple[Headline, ...]:
    said = (
        (
            "frechet_random",
            "Distance to true pictures",
            "Frechet distance on a fixed untrained network; lower is better.",
        ),
        ("coverage", "Coverage", "Share of true pictures with a drawing close by."),
        ("variety_of_drawings", "Variety", "How much drawings differ, over how much true pictures do; 1 is as much."),
    )
    return tuple(Headline(title, metrics[name], meaning) for name, title, meaning in said if name in metrics)


def _neighbours(made: UInt8, training: PictureSet, copies: CopyDetector) -> tuple[Neighbour, ...]:
    captions = training.rows["caption"].to_pylist()
    floats = to_float(made)
    found = nearest(floats, to_float(np.asarray(training.images))).numpy()
    near = np.asarray(training.images[found])
    distance = (floats - to_float(near)).square().flatten(1).mean(1).tolist()
    copied = copies.copied(made)
    return tuple(
        Neighbour("", encode_png(made[i]), encode_png(near[i]), captions[found[i]], float(distance[i]), bool(copied[i]))
        for i in np.argsort(distance)[:12]
    )
