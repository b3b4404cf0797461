"""Stage evaluate: draw training and held-out captions, measure, and write the report."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dalle_model.config import EvaluateConfig
from dalle_model.describing import describe
from dalle_model.dual_encoder import Judge
from dalle_model.errors import DataError
from dalle_model.features import ModelFeatures, RandomFeatures, TokenizerFeatures
from dalle_model.images import encode_png
from dalle_model.likelihood import PixelLikelihood, bits, sequence_nats
from dalle_model.metrics import bits_per_pixel
from dalle_model.objectives import num_targets
from dalle_model.packaged_features import ABSENT, packaged_features
from dalle_model.published import ClipJudge, InceptionFeatures
from dalle_model.token_batches import TokenRows
from tasks import evaluate_unprompted, measures, unprompted
from tasks.artifacts import Manifest, ObjectRef
from tasks.contamination import refuse_contaminated
from tasks.copies import CopyDetector, Nearest
from tasks.drawing import Painter, load_painter
from tasks.drawn import Drawn, Easel, Reference, Stopwatch, Timed, sheet
from tasks.evaluation_report import Evidence, report
from tasks.examples import ROLE, examples_table
from tasks.findings import Findings, Record
from tasks.fit_dalle import read_tokens
from tasks.job import Job, Outcome, load_ancestor
from tasks.judge import trained_judge
from tasks.pages import report_html
from tasks.pictures import PictureSet, curated_table, load_pictures, spread

UNSEEN = ("train", "valid", "test", "heldout")
_FITTED_PICTURES = 256  # that the likelihood of pixels is fitted to

# One drawn picture and the training picture it is nearest to.
DRAWING = pa.schema(
    [
        pa.field("split", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),  # of the pair whose caption was drawn
        pa.field("caption", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),  # PNG
        pa.field("copied", pa.bool_(), nullable=False),
        pa.field("nearest_id", pa.string(), nullable=False),
        pa.field("nearest_caption", pa.string(), nullable=False),
        pa.field("nearest_times", pa.int64(), nullable=False),  # near-duplicates of it in the training set, itself too
        pa.field("token_distance", pa.float64(), nullable=False),
        pa.field("feature_distance", pa.float64(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Subject:
    """The model under examination and the data it came from."""

    model: Manifest
    tokens: Manifest
    curated: Manifest
    painter: Painter
    training: PictureSet
    training_tokens: npt.NDArray[np.uint16]
    heldout: PictureSet
    foreign: dict[str, object]  # of a foreign set, in place of the held-out captions: what it was compared with


def work(job: Job) -> Outcome:
    """Measure one model. All figures are offline: they need no network but those of the chain and of packages."""
    if job.inputs["model"].step == unprompted.STEP:
        if "curated" in job.inputs:
            raise DataError(
                "this model reads no prompts, so a foreign set of captions does not measure it; leave --on out"
            )
        return evaluate_unprompted.work(job)
    watch = Stopwatch()
    subject = _subject(job)
    train, held, total = _drawn(job, subject, watch)
    judge, judge_objects = _judge(job, subject, watch)
    detector = CopyDetector(np.asarray(subject.training.images), subject.training_tokens)
    copies = [detector.look(group.made, group.tokens) for group in (train, held) if group is not None]
    found = _findings(job, subject)
    found.protocol["copies"] = detector.protocol | {"memorised": _memorised(subject, [train, held], copies)}
    easel = Easel(job, subject.painter, watch, total)
    _measure(found, subject, easel, train, held, judge)
    for group, near, suffix in zip((train, held), copies, ("", "_heldout"), strict=False):
        measures.copies(found, group, near, detector.features, suffix)  # type: ignore[arg-type]  # no copies without a group
    _runs(found, subject, train, held, watch)
    _likelihoods(job, subject, found, watch)
    evidence = Evidence(job, subject.model, found, train, held, subject.training, tuple(copies), judge)
    data = report(evidence)
    objects = (
        job.put(json.dumps(found.document(), sort_keys=True, indent=1).encode(), ext="json", role="metrics"),
        job.put(found.table(), ext="parquet", role="values"),
        _drawings(job, subject, [train, held], copies),
        job.put(sheet(train, held), ext="png", role="sheet.samples"),
        job.put(report_html(data), ext="html", role="report"),
        job.put(examples_table(data), ext="parquet", role=ROLE),
        *judge_objects,
    )
    told = f"{data.summary} Against the model before: {data.compared.sentence}." if data.compared else data.summary
    return Outcome(objects, total, {**found.figures, "summary": told}, watch.facts())


def _subject(job: Job) -> Subject:
    config: EvaluateConfig = job.config
    model = job.inputs["model"]
    tokens = load_ancestor(job.store, model, "tokens")
    curated = load_ancestor(job.store, tokens, "curated")
    painter = load_painter(job, model, config.sampler, config.seed)
    if painter.model.directions == ("text",):
        raise DataError(
            f"model {model.fingerprint[:12]} was trained on captions alone (train.objective=text) and draws nothing; its losses are in `dalle show {model.fingerprint[:12]}`"
        )
    px = painter.tokenizer.config.image_px
    rows = _by_caption(curated_table(job, curated, ("train",)), config.max_reference)
    training = load_pictures(job, curated, rows, px, "train")
    foreign = job.inputs.get("curated")
    checked = refuse_contaminated(job, curated, foreign) if foreign else {}
    held = curated_table(job, foreign) if foreign else curated_table(job, curated, ("heldout",))
    heldout = load_pictures(job, foreign or curated, _by_caption(held, config.num_heldout), px, "heldout")
    encoded, ids, _, _ = read_tokens(job, tokens, "train")
    place = pair_rows(ids)
    wanted = [place[identifier] for identifier in rows["id"].to_pylist()]
    return Subject(model, tokens, curated, painter, training, np.asarray(encoded.image[wanted]), heldout, checked)


def pair_rows(ids: Sequence[str]) -> dict[str, int]:
    """The token row of each pair itself, by id: augmented copies follow their pair and have its id."""
    return {identifier: row for row, identifier in reversed(list(enumerate(ids)))}


def _by_caption(rows: pa.Table, limit: int) -> pa.Table:
    """Rows in the order of their captions, at most ``limit``, spread evenly: similar captions stand side by side."""
    ordered = rows.sort_by([("caption", "ascending"), ("id", "ascending")])
    return ordered.take(pa.array(spread(ordered.num_rows, limit))) if ordered.num_rows > limit else ordered


def _drawn(job: Job, subject: Subject, watch: Stopwatch) -> tuple[Drawn, Drawn | None, int]:
    """(training captions, held-out ones if there are any, number of both)."""
    training, heldout = subject.training, subject.heldout
    chosen = spread(len(training.images), job.config.num_captions)
    total = len(chosen) + len(heldout.images)
    easel = Easel(job, subject.painter, watch, total)
    train = easel.draw(training, chosen, Reference(training), 0)
    if not len(heldout.images):
        return train, None, total
    both = Reference(training, heldout)
    held = easel.draw(heldout, np.arange(len(heldout.images)), both, len(training.images), done=len(chosen))
    return train, held, total


def _judge(job: Job, subject: Subject, watch: Stopwatch) -> tuple[Judge | None, tuple[ObjectRef, ...]]:
    if not job.config.judge_steps:
        return None, ()
    with watch.networks():
        return trained_judge(job, subject.curated, subject.training.rows)


def _findings(job: Job, subject: Subject) -> Findings:
    """Empty, with what all records share and what the reader of the protocol must know beside them."""
    config: EvaluateConfig = job.config
    px = subject.painter.tokenizer.config.image_px
    reference = f"{len(subject.training.images)} training pictures of curated {subject.curated.fingerprint[:12]}; for held-out captions also all drawn held-out ones"
    basis = Record(
        measure="",
        n=0,
        reference=reference,
        seed=config.seed,
        resize=f"cut to a square and averaged to {px} px by the chain; drawings as decoded, 8 bits",
    )
    protocol = {
        "captions": "training captions in alphabetical order, spread evenly; held-out ones likewise",
        "num_captions": config.num_captions,
        "num_heldout": len(subject.heldout.images),
        "reference_pictures": len(subject.training.images),
        "picture_px": px,
        "seed": config.seed,
        "index": "0, and the next for a caption that was there before",
        "sampler": subject.painter.sampler.model_dump(mode="json"),
    }
    if subject.foreign:
        protocol["foreign_set"] = subject.foreign
    return Findings(basis, protocol=protocol)


def _measure(
    found: Findings, subject: Subject, easel: Easel, train: Drawn, held: Drawn | None, judge: Judge | None
) -> None:
    """Everything about drawings but copies."""
    painter, watch = subject.painter, easel.watch
    own = TokenizerFeatures(painter.tokenizer, subject.model.object_of("tokenizer.weights").sha256)
    inner = ModelFeatures(painter.model, painter.tokenizer, painter.runtime, subject.model.object_of("weights").sha256)
    others = [("tokenizer", Timed(own, watch)), ("model", Timed(inner, watch))]
    if judge is not None:
        others.append(("judge", Timed(judge, watch)))
    inception, clip = _supplied(easel.job)
    known = subject.training.rows["caption"].to_pylist()
    groups = [(train, "")] + ([(held, "_heldout")] if held is not None else [])
    for group, suffix in groups:
        measures.drawings(found, group, suffix)
        if judge is not None:
            measures.agreement(found, judge, group, known, suffix)
        measures.scenes(found, group, suffix)
        with watch.networks():
            measures.published(found, group, inception, clip, suffix)
    random = Timed(RandomFeatures(), watch)
    measures.distributions(found, train.made, train.truth, train.rebuilt, others, random=random)
    _packaged(found, easel.job, train, watch)
    measures.variety(found, easel.repeat(train), train.made)
    measures.code_health(found, train, painter.tokenizer.vocab_size)


def _packaged(found: Findings, job: Job, train: Drawn, watch: Stopwatch) -> None:
    """Figures on the packaged network; where it is absent, the protocol says so."""
    if not job.config.packaged:
        return
    network = packaged_features(replace(job.runtime, dtype=torch.float32))
    if network is None:
        found.leave_out(ABSENT)
        job.log(ABSENT)
    else:
        measures.packaged(found, train.made, train.truth, Timed(network, watch))


def _supplied(job: Job) -> tuple[InceptionFeatures | None, ClipJudge | None]:
    """The networks of published metrics whose weights the config names."""
    config: EvaluateConfig = job.config
    runtime = replace(job.runtime, dtype=torch.float32)
    inception = (
        InceptionFeatures(Path(config.inception), config.inception_sha256, runtime) if config.inception else None
    )
    return inception, ClipJudge(Path(config.clip), config.clip_sha256, runtime) if config.clip else None


def _runs(found: Findings, subject: Subject, train: Drawn, held: Drawn | None, watch: Stopwatch) -> None:
    """Pieces that drawings, and captions where the model writes some, have in common with the training set."""
    painter, known = subject.painter, subject.training.rows["caption"].to_pylist()
    for group, suffix in ((train, ""), (held, "_heldout")):
        if group is None:
            continue
        measures.runs_copied(found, group, subject.training_tokens, suffix)
        if "image_to_text" in painter.model.directions:
            with watch.networks():
                ids = describe(painter.model, torch.from_numpy(group.true_tokens), painter.runtime)
            written = [painter.words.decode([i for i in row if i]) for row in ids.tolist()]
            digest = subject.model.object_of("weights").sha256
            measures.captions_written(found, written, group, known, digest, suffix)


# --- likelihood ------------------------------------------------------------------------------------------------------


def _likelihoods(job: Job, subject: Subject, found: Findings, watch: Stopwatch) -> None:
    """Nats per token and bits per pixel of pairs of each split, of the tokens alone and through the whole chain."""
    painter, limit = subject.painter, job.config.num_unseen
    if not limit:
        return
    px, places = painter.tokenizer.config.image_px, painter.tokenizer.num_tokens
    fitted = spread(len(subject.training.images), _FITTED_PICTURES)
    runtime = replace(painter.runtime, dtype=torch.float32)
    with watch.networks():
        pixels = PixelLikelihood(
            painter.tokenizer, np.asarray(subject.training.images[fitted]), subject.training_tokens[fitted], runtime
        )
    found.protocol["likelihood"] = {
        "pixels": f"{pixels.name}, discretised to 8 bits; mass sums to 1 over the 256 values of each",
        "weights": [[float(f"{w:.6g}") for w in channel] for channel in pixels.weights.tolist()],
        "pairs_at_most": limit,
    }
    about: dict[str, Any] = {"reference": "the pairs of the split, spread evenly", "features": "transformer"}
    about["features_sha256"] = subject.model.object_of("weights").sha256
    for split in UNSEEN:
        rows, ids, _, _ = read_tokens(job, subject.tokens, split)
        own = np.array(sorted(pair_rows(ids).values()), np.int64)  # a copy's tokens are of another picture
        chosen = own[spread(len(own), limit)]
        if not len(chosen):
            continue
        part = TokenRows(rows.text[chosen], rows.image[chosen], rows.weights[chosen])
        units = [ids[row] for row in chosen]
        pictures = _pictures_of(job, subject, split, units, px)
        with watch.networks():
            text, image = sequence_nats(painter.model, part, painter.runtime)
            seen = pixels.nats(pictures, part.image)
        words = num_targets(part.text)
        of_text = "nats per text token, averaged in each caption"
        found.mean(f"loss_text_{split}", units, text / words, of_text, **about)
        found.mean(f"loss_image_{split}", units, image / places, "nats per image token", **about)
        tokens_alone = bits_per_pixel(1.0, 1, px) * image
        found.mean(f"bits_per_pixel_{split}", units, tokens_alone, "bits per pixel of the image tokens", **about)
        measure = "bits per pixel (all three channels) of tokens and of pixels given them: a bound on -log2 p(picture | caption)"
        found.mean(f"bits_per_pixel_chain_{split}", units, bits(image + seen, px), measure, **about)
        job.check_stop()


def _pictures_of(job: Job, subject: Subject, split: str, ids: list[str], px: int) -> npt.NDArray[np.uint8]:
    """Pictures of pairs in the order of their ids."""
    table = curated_table(job, subject.curated, (split,))
    place = {identifier: row for row, identifier in enumerate(table["id"].to_pylist())}
    rows = table.take(pa.array([place[identifier] for identifier in ids]))
    return np.asarray(load_pictures(job, subject.curated, rows, px, f"unseen-{split}").images)


# --- pictures and copies ---------------------------------------------------------------------------------------------


def _memorised(subject: Subject, groups: list[Drawn | None], copies: list[Nearest]) -> list[dict[str, Any]]:
    """The training pictures that came out again, each once, with the captions that brought them."""
    ids, captions = (subject.training.rows[name].to_pylist() for name in ("id", "caption"))
    brought: dict[int, list[str]] = {}
    times: dict[int, int] = {}
    for group, near in zip((g for g in groups if g is not None), copies, strict=True):
        for drawing in np.flatnonzero(near.copied):
            source = int(near.source[drawing])
            brought.setdefault(source, []).append(group.captions[drawing])
            times[source] = int(near.times[drawing])
    return [
        {"id": ids[row], "caption": captions[row], "times_in_training": times[row], "drawn_for": sorted(set(said))}
        for row, said in sorted(brought.items(), key=lambda item: (-times[item[0]], item[0]))
    ]


def _drawings(job: Job, subject: Subject, groups: list[Drawn | None], copies: list[Nearest]) -> ObjectRef:
    ids, captions = (subject.training.rows[name].to_pylist() for name in ("id", "caption"))
    rows = [
        {
            "split": split,
            "id": group.ids[i],
            "caption": group.captions[i],
            "image": encode_png(group.made[i]),
            "copied": bool(near.copied[i]),
            "nearest_id": ids[near.source[i]],
            "nearest_caption": captions[near.source[i]],
            "nearest_times": int(near.times[i]),
            "token_distance": float(near.token_distance[i]),
            "feature_distance": float(f"{near.feature_distance[i]:.9g}"),
        }
        for group, near, split in zip((g for g in groups if g), copies, ("train", "heldout"), strict=False)
        for i in range(len(group.ids))
    ]
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=DRAWING), out, compression="zstd")
    return job.put(out.getvalue(), ext="parquet", role="drawings", rows=len(rows))
