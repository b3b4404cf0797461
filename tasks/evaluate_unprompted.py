"""Evaluation of generators without prompts: what can be measured of pictures alone, and what cannot be said."""

import io
import json

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from dalle_model.config import EvaluateConfig
from dalle_model.distances import squared_distances
from dalle_model.features import Features, ThumbnailFeatures
from dalle_model.images import encode_png, to_float, to_uint8
from dalle_model.packaged_features import ABSENT, packaged_features
from dalle_model.sheets import Section, sectioned_sheet
from tasks import measures
from tasks.artifacts import Manifest
from tasks.copies import CopyDetector, Nearest
from tasks.curves import curves_of
from tasks.examples import ROLE, examples_table
from tasks.figures import metrics_of
from tasks.findings import Findings, Record
from tasks.job import Job, Outcome, load_ancestor
from tasks.pages import Ancestor, Headline, Neighbour, Picture, ReportData, Sample, Sheet, report_html
from tasks.pictures import PictureSet, curated_table, load_pictures, spread
from tasks.unprompted import UnpromptedPainter, load_unprompted

UInt8 = npt.NDArray[np.uint8]

_TRAINING = "training pictures in the order of their captions, spread evenly"
_NOT_APPLICABLE = {
    "recognisability": "the model reads no caption, so no drawing has a picture of its own",
    "scene figures": "the same",
    "losses per token": "the model has no tokens",
    "captions met, agreement with the text": "the model reads no caption",
}
_OF_THE_MODEL = ("psnr_train", "psnr_valid", "bits_per_pixel_train", "bits_per_pixel_valid")  # of a VAE
_MEASURED_ON = {
    "train": "training pictures, spread evenly",
    "valid": "pictures of the splits valid and test, spread evenly",
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
    detector = CopyDetector(np.asarray(training.images), np.zeros((len(training.images), 0), np.uint16))
    copies = detector.look(made, np.zeros((len(made), 0), np.uint16))
    found = _findings(config, painter, detector)
    network = packaged_features(job.runtime) if config.packaged else None
    if config.packaged and network is None:
        found.leave_out(ABSENT)
    _measure(found, made, truth, copies, detector, network)
    for name in _OF_THE_MODEL:
        if name in model.stats:
            split = name.rsplit("_", 1)[1]
            n = int(model.stats.get(f"measured_{split}", model.stats["trained_on"]))
            found.add(name, model.stats[name], None, "as training measured it", n=n, reference=_MEASURED_ON[split])
    data = _report(job, model, curated, found, made, truth, training, copies)
    objects = (
        job.put(json.dumps(found.document(), sort_keys=True, indent=1).encode(), ext="json", role="metrics"),
        job.put(found.table(), ext="parquet", role="values"),
        job.put(_sheet(made, truth), ext="png", role="sheet.samples"),
        job.put(report_html(data), ext="html", role="report"),
        job.put(examples_table(data), ext="parquet", role=ROLE),
    )
    return Outcome(objects, len(made), found.figures)


def _findings(config: EvaluateConfig, painter: UnpromptedPainter, detector: CopyDetector) -> Findings:
    px = painter.image_px
    protocol = {
        "sets": f"drawings from noise, and {_TRAINING}",
        "seed": config.seed,
        "picture_px": px,
        "copies": detector.protocol,
        "bits_per_pixel": "bound: logit-Laplace density of 256 levels plus KL, one draw of the latent per picture",
        "not_applicable": _NOT_APPLICABLE,
    }
    return Findings(Record("", 0, _TRAINING, seed=config.seed, resize=f"averaged to {px} px"), protocol=protocol)


def _measure(
    found: Findings, made: UInt8, truth: UInt8, copies: Nearest, detector: CopyDetector, network: Features | None
) -> None:
    """Distances of the two sets, variety (distance between drawings over that between true pictures), and copies."""
    units = [f"{number:06d}" for number in range(len(made))]
    about = {"features": detector.features.name, "features_sha256": detector.features.digest}
    found.mean("copied", units, copies.copied, "own: share within a threshold of a training picture", **about)
    measures.distributions(found, made, truth, None, [], reference=_TRAINING)
    if network is not None:
        measures.packaged(found, made, truth, network, _TRAINING)
    if len(made) < 2:
        return
    rows, other = (ThumbnailFeatures().of(to_float(x)) for x in (made, truth))
    across = _mean_to_others(other).mean()
    if across > 0:
        measure = "own: mean distance of a drawing to the others over that of a true picture to the others"
        found.mean("variety_of_drawings", units, _mean_to_others(rows) / across, measure, **about)


def _mean_to_others(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean Euclidean distance of each row [n, d] to the others -> [n]."""
    total: npt.NDArray[np.float64] = np.sqrt(squared_distances(rows, rows)).sum(1)
    return total / (len(rows) - 1)


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
    found: Findings,
    made: UInt8,
    truth: UInt8,
    training: PictureSet,
    copies: Nearest,
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
        headlines=_headlines(found.figures),
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
        metrics=metrics_of(found.figures, records=found.records),
        lineage=tuple(Ancestor(m.step, m.kind, m.fingerprint, config=m.config) for m in (pairs, curated, model)),
        notes=(
            f"Not measured, because it has no meaning here: {left_out}.",
            "Variety and copied are this project's own measures, not published benchmarks. Frechet and Wasserstein distances stand on our own features: they compare with other runs of this project, never with a published FID.",
            f"Protocol: {json.dumps(found.protocol, sort_keys=True)}",
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


def _neighbours(made: UInt8, training: PictureSet, copies: Nearest) -> tuple[Neighbour, ...]:
    captions = training.rows["caption"].to_pylist()
    return tuple(
        Neighbour(
            "",
            encode_png(made[i]),
            encode_png(np.asarray(training.images[copies.by_features[i]])),
            captions[copies.by_features[i]],
            float(copies.feature_distance[i]),
            bool(copies.copied[i]),
        )
        for i in np.argsort(copies.feature_distance)[:12]
    )
