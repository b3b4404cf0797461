"""Stage evaluate: draw training and held-out captions, measure, and write the report."""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dalle_model.config import EvaluateConfig
from dalle_model.features import TokenizerFeatures
from dalle_model.images import encode_png, to_float, to_uint8
from dalle_model.metrics import bits_per_pixel, nearest, psnr, recognised
from dalle_model.sheets import Section, sectioned_sheet
from tasks import evaluate_unprompted, unprompted
from tasks.artifacts import Manifest
from tasks.curves import curves_of
from tasks.drawing import Painter, load_painter
from tasks.figures import metrics_of
from tasks.fit_tokenizer import reconstruct, spread
from tasks.job import Job, Outcome, load_ancestor
from tasks.measures import CopyDetector, Measured, distributions, scenes, share, variety
from tasks.pages import Ancestor, Funnel, Headline, Neighbour, Picture, ReportData, Sample, Sheet, report_html
from tasks.pictures import PictureSet, curated_table, load_pictures

UInt8 = npt.NDArray[np.uint8]
_REPEATED_CAPTIONS = 8
_REPEATS = 4  # drawings of each of them, for the variety among drawings of one caption


@dataclass(frozen=True)
class Drawn:
    """One group of captions with what was drawn for them.

    truth, made, rebuilt: uint8 [n, H, W, 3]; found: int64 [n], row of the nearest reference picture; hit: bool [n].
    distance: float [n], mean squared error to the caption's own picture at full resolution.
    """

    captions: list[str]
    truth: UInt8
    made: UInt8
    rebuilt: UInt8
    found: npt.NDArray[np.int64]
    hit: npt.NDArray[np.bool_]
    rebuilt_hit: npt.NDArray[np.bool_]
    distance: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Repeats:
    """Several drawings of some captions: uint8 [r, H, W, 3], and the number of each one's caption, int64 [r]."""

    made: UInt8
    groups: npt.NDArray[np.int64]


def work(job: Job) -> Outcome:
    """Measure one model. All figures are offline: they need no other network than the model and its tokenizer."""
    config: EvaluateConfig = job.config
    model = job.inputs["model"]
    if model.step == unprompted.STEP:
        return evaluate_unprompted.work(job)
    tokens = load_ancestor(job.store, model, "tokens")
    curated = load_ancestor(job.store, tokens, "curated")
    painter = load_painter(job, model, config.sampler, config.seed)
    px = painter.tokenizer.config.image_px
    training = load_pictures(
        job, curated, _by_caption(curated_table(job, curated, ("train",)), config.max_reference), px, "train"
    )
    heldout_rows = _by_caption(curated_table(job, curated, ("heldout",)), config.num_heldout)
    heldout = load_pictures(job, curated, heldout_rows, px, "heldout")
    chosen = spread(len(training.images), config.num_captions)
    total = len(chosen) + len(heldout.images)
    train = _draw(job, painter, training, chosen, to_float(np.asarray(training.images)), 0, total)
    both = (
        torch.cat([to_float(np.asarray(training.images)), to_float(np.asarray(heldout.images))])
        if len(heldout.images)
        else None
    )
    held = None
    if both is not None:
        offset = len(training.images)
        held = _draw(job, painter, heldout, np.arange(len(heldout.images)), both, offset, total, done=len(chosen))
    copies = CopyDetector(np.asarray(training.images))
    measured = _measured(job, model, painter, train, held, copies)
    metrics = _metrics(model, train, held, painter)
    for one in measured.values():
        # Beyond nine digits, sums of floats depend on the number of threads; the figures must not.
        metrics |= {name: float(f"{figure:.9g}") for name, figure in one.figures.items()}
    protocol = _protocol(config, painter, training, heldout) | {
        name: m.protocol for name, m in measured.items() if m.protocol
    }
    report = report_html(_report(job, model, metrics, protocol, train, held, training, copies))
    document = json.dumps({"metrics": metrics, "protocol": protocol}, sort_keys=True, indent=1).encode()
    objects = (
        job.put(document, ext="json", role="metrics"),
        job.put(_sheet(train, held), ext="png", role="sheet.samples"),
        job.put(report, ext="html", role="report"),
    )
    return Outcome(objects, total, metrics)


def _by_caption(rows: pa.Table, limit: int) -> pa.Table:
    """Rows in the order of their captions, at most ``limit``, spread evenly: similar captions stand side by side."""
    ordered = rows.sort_by([("caption", "ascending"), ("id", "ascending")])
    return ordered.take(pa.array(spread(ordered.num_rows, limit))) if ordered.num_rows > limit else ordered


def _draw(
    job: Job,
    painter: Painter,
    pictures: PictureSet,
    chosen: npt.NDArray[np.int64],
    reference: torch.Tensor,
    offset: int,
    total: int,
    done: int = 0,
) -> Drawn:
    """Draw the chosen captions and find the nearest of ``reference`` [m, 3, H, W]; ``offset``: row of the first own picture."""
    captions = pictures.rows["caption"].take(pa.array(chosen)).to_pylist()
    requests = [painter.request(caption, job.config.seed, 0) for caption in captions]
    tokens = painter.tokens(requests, job.config.batch_size, lambda n, _: job.progress(done + n, total, "pictures"))
    made = painter.pictures(tokens)
    truth = np.asarray(pictures.images[chosen])
    _, rebuilt = reconstruct(painter.tokenizer, truth, painter.runtime)
    own = torch.from_numpy(chosen + offset)
    hit = recognised(made, reference, own)
    error = (made - to_float(truth)).square().flatten(1).mean(1)
    return Drawn(
        captions=captions,
        truth=truth,
        made=to_uint8(made),
        rebuilt=to_uint8(rebuilt),
        found=nearest(made, reference).numpy(),
        hit=hit.numpy(),
        rebuilt_hit=recognised(rebuilt, reference, own).numpy(),
        distance=error.double().numpy(),
    )


def _repeat(job: Job, painter: Painter, train: Drawn) -> Repeats:
    """Draw some captions again under other indices; the first drawing of each is there already."""
    chosen = spread(len(train.captions), _REPEATED_CAPTIONS)
    pairs = [(caption, index) for caption in chosen for index in range(1, _REPEATS)]
    requests = [painter.request(train.captions[caption], job.config.seed, index) for caption, index in pairs]
    again = to_uint8(painter.pictures(painter.tokens(requests, job.config.batch_size)))
    groups = np.concatenate([chosen, np.array([caption for caption, _ in pairs], np.int64)])
    return Repeats(np.concatenate([train.made[chosen], again]), groups)


def _measured(
    job: Job, model: Manifest, painter: Painter, train: Drawn, held: Drawn | None, copies: CopyDetector
) -> dict[str, Measured]:
    """What is measured beside recognisability, by its name in the protocol."""
    own_features = TokenizerFeatures(painter.tokenizer, model.object_of("tokenizer.weights").sha256)
    repeats = _repeat(job, painter, train)
    copied = share("copied", copies.copied(train.made)) | (
        share("copied_heldout", copies.copied(held.made)) if held else {}
    )
    return {
        "distributions": distributions(train.made, train.truth, train.rebuilt, own_features),
        "variety": variety(repeats.made, repeats.groups, train.made),
        "copies": Measured(copied, copies.protocol),
        "scenes": scenes(train.captions, train.made, train.rebuilt),
        "scenes_heldout": scenes(held.captions, held.made, held.rebuilt, "_heldout") if held else Measured({}, {}),
    }


def _metrics(model: Manifest, train: Drawn, held: Drawn | None, painter: Painter) -> dict[str, float]:
    """The figures, flat. Own measures (recognisability) are named as such in the report."""
    out = share("recognisability", train.hit) | {
        "recognisability_of_reconstructions": float(train.rebuilt_hit.mean()),
        "distance_to_own_picture": float(train.distance.mean()),
    }
    if held is not None:
        out |= share("recognisability_heldout", held.hit) | {
            "distance_to_own_picture_heldout": float(held.distance.mean())
        }
    grid, px = painter.tokenizer.num_tokens, painter.tokenizer.config.image_px
    for split in ("train", "valid", "heldout"):
        for kind in ("image", "text"):
            if f"loss_{kind}_{split}" in model.stats:
                out[f"loss_{kind}_{split}"] = model.stats[f"loss_{kind}_{split}"]
        if f"loss_image_{split}" in out:
            out[f"bits_per_pixel_{split}"] = bits_per_pixel(out[f"loss_image_{split}"], grid, px)
    rebuilt = to_float(train.rebuilt)
    out["reconstruction_psnr"] = float(psnr(rebuilt, to_float(train.truth)).mean())
    return out


def _protocol(config: EvaluateConfig, painter: Painter, training: PictureSet, heldout: PictureSet) -> dict[str, Any]:
    """What one must know to measure the same again."""
    return {
        "recognisability": "share of drawn captions whose nearest reference picture (mean squared error at half resolution) is their own",
        "captions": "training captions in alphabetical order, spread evenly",
        "num_captions": config.num_captions,
        "num_heldout": len(heldout.images),
        "reference_pictures": len(training.images),
        "heldout_reference": "training pictures and all drawn held-out pictures",
        "picture_px": painter.tokenizer.config.image_px,
        "seed": config.seed,
        "index": 0,
        "sampler": painter.sampler.model_dump(mode="json"),
        "interval": "95 % percentile bootstrap over captions, 1000 resamples, Philox seed 0; of shares of 0 and 1 Wilson's",
    }


def _sheet(train: Drawn, held: Drawn | None) -> bytes:
    """The real picture above what was drawn, for training captions and in a row of their own for held-out ones."""
    sections = [
        Section("Training captions: the real picture above, the drawn one below", _towers(train), train.captions)
    ]
    if held is not None:
        sections.append(
            Section(
                "Held-out compositions, never trained on: the real picture above, the drawn one below",
                _towers(held),
                held.captions,
            )
        )
    return sectioned_sheet(sections, columns=16, tile_px=(64, 130), max_bytes=400_000)


def _towers(group: Drawn) -> list[UInt8]:
    line = np.full((2, group.truth.shape[2], 3), 255, np.uint8)
    return [np.concatenate([truth, line, made], axis=0) for truth, made in zip(group.truth, group.made, strict=True)]


# --- the report ------------------------------------------------------------------------------------------------------


def _report(
    job: Job,
    model: Manifest,
    metrics: dict[str, float],
    protocol: dict[str, Any],
    train: Drawn,
    held: Drawn | None,
    training: PictureSet,
    copies: CopyDetector,
) -> ReportData:
    tokens = load_ancestor(job.store, model, "tokens")
    tokenizer, curated = (load_ancestor(job.store, tokens, name) for name in ("tokenizer", "curated"))
    pairs = load_ancestor(job.store, curated, "pairs")
    share = metrics["recognisability"]
    summary = (
        f"This model was trained on {model.stats['trained_on']:,} captioned pictures. Asked for {len(train.captions)} captions it was trained on, "
        f"it drew {int(train.hit.sum())} pictures that resemble their own original more than any other of {len(training.images):,}."
    )
    if held is not None:
        summary += f" Of {len(held.captions)} compositions it never saw, {int(held.hit.sum())} came out nearer to their own true picture than to any other."
    lineage = tuple(
        Ancestor(m.step, m.kind, m.fingerprint, config=m.config) for m in (pairs, curated, tokenizer, tokens, model)
    )
    return ReportData(
        title=f"Evaluation of model {model.fingerprint[:12]}",
        summary=summary,
        facts={
            "model": model.fingerprint[:12],
            "parameters": f"{model.stats['parameters']:,}",
            "updates": f"{model.stats['steps']:,}",
        },
        headlines=_headlines(metrics, share),
        sheets=(
            Sheet(
                "Training captions",
                "The real picture, what the tokenizer makes of it, and what the model drew from the caption alone.",
                _samples(train),
            ),
        ),
        heldout=Sheet(
            "Held-out compositions", "Combinations that were never trained on, though their parts were.", _samples(held)
        )
        if held
        else None,
        worst=Sheet(
            "Where it fails",
            "Training captions whose drawing is furthest from the real picture.",
            _samples(train, np.argsort(-train.distance)[:12]),
        ),
        neighbours=_neighbours(held or train, training, copies),
        neighbours_note="Each drawing beside the training picture it is nearest to. A model this small trained on so few pictures is expected to stay close to them.",
        curves=(
            *_curves(job, tokenizer, "Loss of the tokenizer", None),
            *_curves(job, model, "Loss of the transformer", math.log(tokenizer.stats["vocab_size"])),
        ),
        funnels=_funnels(pairs, curated),
        metrics=metrics_of(metrics, protocol=json.dumps(protocol["sampler"])),
        lineage=lineage,
        notes=(
            "Recognisability, variety, copied and the scene figures are this project's own measures, not published benchmarks. Frechet and Wasserstein distances stand on our own features: they compare with other runs of this project, never with a published FID.",
            f"Protocol: {json.dumps(protocol, sort_keys=True)}",
        ),
    )


def _headlines(metrics: dict[str, float], share: float) -> tuple[Headline, ...]:
    lines = [
        Headline(
            "Recognisable drawings",
            share,
            "Share of training captions whose drawing is nearest to its own original.",
            "good" if share >= 0.5 else "fair" if share >= 0.2 else "poor",
            f"0.5 or more is the goal; the tokenizer alone would allow {metrics['recognisability_of_reconstructions']:.2f}",
            share,
            0.5,
        )
    ]
    if "recognisability_heldout" in metrics:
        held = metrics["recognisability_heldout"]
        lines.append(
            Headline(
                "New compositions",
                held,
                "The same for combinations it never saw.",
                "good" if held >= 0.5 else "fair" if held >= 0.1 else "poor",
                "0.5 is a high goal",
                held,
                0.5,
            )
        )
    if "scene_all" in metrics:
        met = metrics["scene_all"]
        hint = f"the tokenizer alone would allow {metrics['scene_all_of_reconstructions']:.2f}; the wrong captions give {metrics['scene_all_chance']:.2f}"
        lines.append(
            Headline(
                "Captions met",
                met,
                "Share of drawings that show all that their caption says, measured in the pixels.",
                "good" if met >= 0.5 else "fair" if met >= 0.2 else "poor",
                hint,
                met,
                0.5,
            )
        )
    if "bits_per_pixel_valid" in metrics:
        lines.append(
            Headline(
                "Bits per pixel, unseen pictures",
                metrics["bits_per_pixel_valid"],
                "How surprised the model is by pictures it did not train on; lower is better.",
            )
        )
    return tuple(lines)


def _samples(group: Drawn, order: Sequence[int] | npt.NDArray[np.int64] | None = None) -> tuple[Sample, ...]:
    chosen = range(len(group.captions)) if order is None else order
    return tuple(
        Sample(
            group.captions[i],
            tuple(
                Picture(label, encode_png(images[i]))
                for label, images in (("real", group.truth), ("tokenizer", group.rebuilt), ("drawn", group.made))
            ),
            bool(group.hit[i]),
        )
        for i in chosen
    )


def _neighbours(group: Drawn, training: PictureSet, copies: CopyDetector) -> tuple[Neighbour, ...]:
    captions = training.rows["caption"].to_pylist()
    made = to_float(group.made)
    found = nearest(made, to_float(np.asarray(training.images))).numpy()
    near = np.asarray(training.images[found])
    distance = (made - to_float(near)).square().flatten(1).mean(1).tolist()
    copied = copies.copied(group.made)
    closest = np.argsort(distance)[:12]
    return tuple(
        Neighbour(
            group.captions[i],
            encode_png(group.made[i]),
            encode_png(near[i]),
            captions[found[i]],
            float(distance[i]),
            bool(copied[i]),
        )
        for i in closest
    )


def _curves(job: Job, manifest: Manifest, title: str, random_loss: float | None) -> tuple[Any, ...]:
    columns = pq.read_table(io.BytesIO(job.read(manifest.object_of("curve")))).to_pydict()
    references = (("ln K: nothing learnt", random_loss),) if random_loss else ()
    return tuple(c for c in curves_of(columns, references, title=title) if c.title == title)


def _funnels(pairs: Manifest, curated: Manifest) -> tuple[Funnel, ...]:
    ingest = (("rows read", int(pairs.stats["rows_in"])), ("pairs kept", int(pairs.stats["kept"])))
    steps = tuple((str(rule), int(left)) for rule, left in curated.stats.get("funnel", []))
    return (
        Funnel("Ingest", ingest, pairs.stats.get("reasons", {})),
        Funnel("Curation", steps, curated.stats.get("reasons", {})),
    )
