"""What the report of an evaluation says: is it good, is it better than the last, where does it fail, is it copying."""

import io
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from string import Formatter
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from dalle_model.dual_encoder import Judge
from dalle_model.errors import DataError
from dalle_model.images import encode_png
from dalle_model.intervals import mean_interval
from dalle_model.scene_checks import ATTRIBUTES
from tasks.artifacts import Manifest
from tasks.comparison import (
    Comparison,
    compare_values,
    compared_table,
    drawings_of,
    figures_of,
    measured_apart,
    measured_values,
    records_of,
)
from tasks.copies import Nearest
from tasks.curves import curves_of
from tasks.drawn import Drawn
from tasks.figures import metrics_of
from tasks.findings import Findings
from tasks.job import Job, load_ancestor
from tasks.pages import (
    Ancestor,
    Funnel,
    Headline,
    Neighbour,
    Picture,
    ReportData,
    Sample,
    Sheet,
    Verdict,
)
from tasks.pictures import PictureSet

_WORST = 12
_CLOSEST = 12
_LEAST_CAPTIONS = 3  # with a word, to say how it fares
_HARDEST_WORDS = 8
_LEAST_JUDGED = 10  # captions; of fewer a share is hardly known
_ATTRIBUTES = tuple(name for name in ATTRIBUTES if name != "all")


@dataclass(frozen=True)
class Evidence:
    """All that was found. ``copies``: of the training captions, then of the held-out ones."""

    job: Job
    model: Manifest
    found: Findings
    train: Drawn
    held: Drawn | None
    training: PictureSet
    copies: tuple[Nearest, ...]
    judge: Judge | None


def report(evidence: Evidence) -> ReportData:
    """The report's content. Reads the baseline's evaluation where the config names one."""
    job, model, found = evidence.job, evidence.model, evidence.found
    tokens = load_ancestor(job.store, model, "tokens")
    tokenizer, curated = (load_ancestor(job.store, tokens, name) for name in ("tokenizer", "curated"))
    pairs = load_ancestor(job.store, curated, "pairs")
    baseline = _baseline(job)
    against = _against(evidence, baseline)
    lineage = tuple(
        Ancestor(m.step, m.kind, m.fingerprint, config=m.config) for m in (pairs, curated, tokenizer, tokens, model)
    )
    before = figures_of(job.store, baseline) if baseline else None
    return ReportData(
        title=f"Evaluation of model {model.fingerprint[:12]}",
        summary=_summary(evidence),
        facts={
            "model": model.fingerprint[:12],
            "parameters": f"{model.stats['parameters']:,}",
            "updates": f"{model.stats['steps']:,}",
        },
        headlines=headlines(evidence, against),
        sheets=(
            Sheet(
                "Training captions",
                "The real picture, what the tokenizer makes of it, and what the model drew from the caption alone.",
                _samples(evidence.train),
            ),
        ),
        heldout=Sheet(
            "Held-out compositions",
            "Combinations that were never trained on, though their parts were.",
            _samples(evidence.held),
        )
        if evidence.held
        else None,
        worst=_worst(evidence, baseline),
        compared=compared_table(against) if against else None,
        neighbours=_neighbours(evidence),
        neighbours_note=_copying(evidence),
        curves=(
            *_curves(job, tokenizer, "Loss of the tokenizer", None),
            *_curves(job, model, "Loss of the transformer", math.log(tokenizer.stats["vocab_size"])),
        ),
        funnels=_funnels(pairs, curated),
        metrics=metrics_of(found.figures, previous=before, records=found.records),
        lineage=lineage,
        notes=(
            "Figures whose record begins with `own:` are this project's own measures, not published benchmarks. Frechet and Wasserstein distances stand on our own features: they compare with other runs of this project, never with a published FID; agreement is no CLIP score.",
            "Any figure can be computed again to its last digit: dalle evaluate --reproduce EVALUATION:FIGURE.",
            *((f"Left out: {found.protocol['left_out']}.",) if "left_out" in found.protocol else ()),
            f"Protocol: {json.dumps(found.protocol, sort_keys=True)}",
        ),
    )


# --- in short --------------------------------------------------------------------------------------------------------


def _summary(evidence: Evidence) -> str:
    train, held, copied = evidence.train, evidence.held, sum(int(c.copied.sum()) for c in evidence.copies)
    drawn = len(train.ids) + (len(held.ids) if held else 0)
    text = (
        f"This model was trained on {evidence.model.stats['trained_on']:,} captioned pictures. Asked for {_counted(len(train.captions), 'caption')} it was trained on, "
        f"it drew {_counted(int(train.hit.sum()), 'picture')} nearer to the original than to any other of {len(evidence.training.images):,}."
    )
    if held is not None:
        text += f" Of {_counted(len(held.captions), 'composition')} it never saw, {int(held.hit.sum())} came out nearer to their own true picture than to any other."
    text += f" {copied} of {_counted(drawn, 'drawing')} {'is a copy' if copied == 1 else 'are copies'} of training pictures."
    return " ".join((text, *cautions(train, held)))


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def cautions(train: Drawn, held: Drawn | None) -> Iterator[str]:
    """What makes the figures say less than they seem to."""
    made = [picture.tobytes() for group in (train, held) if group for picture in group.made]
    different, captions = len(set(made)), len({c for group in (train, held) if group for c in group.captions})
    if different == 1 < len(made):
        yield "All drawings are one and the same picture, whatever the caption: the figures of sets of pictures (precision, density, coverage) say nothing of such a model."
    elif different < captions / 2:
        yield f"Only {different} of {len(made)} drawings are different pictures: the model hardly reads its captions."
    for group, name in ((train, "training"), (held, "held-out")):
        if group and len(set(group.captions)) < len(group.captions) / 2:
            texts = len(set(group.captions))
            yield f"The {len(group.captions)} {name} captions are only {texts} different text{'s' if texts > 1 else ''}; the figures tell of no others."


def headlines(evidence: Evidence, against: Comparison | None) -> tuple[Headline, ...]:
    """The few figures that matter, each with a verdict where there are enough pictures for one."""
    figures = evidence.found.figures
    lines = [] if against is None else [_better_than_before(against)]
    for name, title, meaning, fair, hints in (
        ("recognisability", "Recognisable drawings", "Share of training captions whose drawing is nearest to its own original.", 0.2, ("the tokenizer alone would allow {recognisability_of_reconstructions:.2f}",)),
        ("recognisability_heldout", "New compositions", "The same for combinations it never saw.", 0.1, ("0.5 is a high goal",)),
        ("scene_all", "Captions met", "Share of drawings that show all that their caption says, measured in the pixels.", 0.2, ("the tokenizer alone would allow {scene_all_of_reconstructions:.2f}", "the wrong captions give {scene_all_chance:.2f}")),
        ("scene_all_heldout", "Captions met, new compositions", "The same for combinations it never saw.", 0.2, ("the tokenizer alone would allow {scene_all_of_reconstructions_heldout:.2f}", "the wrong captions give {scene_all_chance_heldout:.2f}")),
        ("agreement", "Words fit pictures", "How often a drawing fits its own caption better than another one, by a small judge trained beside the model.", 0.6, ("true pictures reach {agreement_of_originals:.2f}", "chance is 0.5 ({agreement_of_wrong_captions:.2f} with the captions mixed up)")),
    ):  # fmt: skip
        if name in figures:
            goal = 0.9 if name == "agreement" else 0.5
            value = figures[name]
            verdict: Verdict = "good" if value >= goal else "fair" if value >= fair else "poor"
            told = "; ".join(
                (f"{goal:g} or more is the goal", *(h.format(**figures) for h in hints if _known(h, figures)))
            )
            few = _too_few(evidence, name)
            lines.append(Headline(title, value, meaning, "" if few else verdict, few or told, value, goal))
    unseen = next((s for s in ("valid", "test", "heldout") if f"bits_per_pixel_chain_{s}" in figures), None)
    if unseen:
        meaning = "How surprised tokenizer and transformer together are by pictures they did not train on; lower is better, and it compares between tokenizers."
        value = figures[f"bits_per_pixel_chain_{unseen}"]
        hint = f"24 is a picture of pure noise; {figures[f'bits_per_pixel_{unseen}']:.2g} of it is spent on the tokens"
        lines.append(Headline("Bits per pixel, unseen pictures", value, meaning, hint=hint))
    return (*lines, _copy_headline(evidence))


def _known(hint: str, figures: Mapping[str, float]) -> bool:
    """Whether all figures that a hint names are there: some are left out of sets that cannot give them."""
    return all(field in figures for _, field, _, _ in Formatter().parse(hint) if field)


def _too_few(evidence: Evidence, name: str) -> str:
    """Why a figure of a handful of captions gets no verdict, however often each is drawn; empty where there are enough."""
    group = evidence.held if name.endswith("_heldout") and evidence.held else evidence.train
    n, figures = len(set(group.captions)), evidence.found.figures
    return _few(n, figures[f"{name}_low"], figures[f"{name}_high"])


def _few(n: int, low: float, high: float) -> str:
    if n >= _LEAST_JUDGED:
        return ""
    what = "1 caption" if n == 1 else f"{n} different captions"
    return f"only {what}, too few to judge by: the 95 % range is {low:.2f} to {high:.2f}"


def _better_than_before(against: Comparison) -> Headline:
    verdict: Verdict = {"better": "good", "worse": "poor", "mixed": "fair"}.get(against.overall, "fair")  # type: ignore[assignment]
    return Headline(
        "Better than the last?",
        {"better": "yes", "worse": "no", "mixed": "in part"}.get(against.overall, "not shown"),
        f"Against the evaluation {against.first[:12]}, on the same prompts and seeds.",
        verdict,
        against.sentence,
    )


def _copy_headline(evidence: Evidence) -> Headline:
    copied = np.concatenate([c.copied for c in evidence.copies]).astype(np.float64)
    share = float(copied.mean())
    captions = {c for group in (evidence.train, evidence.held) if group for c in group.captions}
    few = _few(len(captions), *mean_interval(copied))
    verdict: Verdict = "good" if share <= 0.02 else "fair" if share <= 0.3 else "poor"
    meaning = "Share of drawings nearer to a training picture than different training pictures are to each other."
    hint = "about 0.004 is what pictures that copy nothing give; asked for captions it was trained on, a model of few pictures gives many"
    return Headline("Copies", share, meaning, "" if few else verdict, few or hint, share)


# --- pictures --------------------------------------------------------------------------------------------------------


def _samples(group: Drawn) -> tuple[Sample, ...]:
    return tuple(_sample(group, i) for i in range(len(group.captions)))


def _sample(group: Drawn, i: int, note: str = "", more: Sequence[Picture] = ()) -> Sample:
    pictures = [
        Picture(label, encode_png(images[i]))
        for label, images in (("real", group.truth), ("tokenizer", group.rebuilt), ("drawn", group.made))
    ]
    return Sample(group.captions[i], (*pictures, *more), bool(group.hit[i]), note)


def _worst(evidence: Evidence, baseline: Manifest | None) -> Sheet:
    """The captions that are met worst: by the scene checks, then by the judge, then by the distance to the original."""
    group, suffix = (evidence.held, "_heldout") if evidence.held else (evidence.train, "")
    values = evidence.found.values
    fits, met = values.get(f"agreement{suffix}", {}), values.get(f"scene_all{suffix}", {})
    drawn_before = drawings_of(evidence.job.store, baseline) if baseline else []
    before = {(row["split"], row["id"]): row["image"] for row in drawn_before}
    split = "heldout" if evidence.held else "train"
    order = sorted(
        range(len(group.ids)),
        key=lambda i: (met.get(group.ids[i], 1.0), fits.get(group.ids[i], 1.0), -group.distance[i]),
    )
    samples = []
    for i in order[:_WORST]:
        unit = group.ids[i]
        notes = [f"fits its caption better than {fits[unit]:.0%} of the others"] if unit in fits else []
        failed = [a for a in _ATTRIBUTES if values.get(f"scene_{a}{suffix}", {}).get(unit, 1.0) == 0]
        notes += [f"not as said: {', '.join(failed)}"] if failed else []
        last = before.get((split, unit))
        samples.append(_sample(group, i, "; ".join(notes), [Picture("drawn before", last)] if last else ()))
    kind = "New compositions" if evidence.held else "Training captions"
    return Sheet("Where it fails", f"{kind} that came out worst. {_hard_words(evidence)}".strip(), tuple(samples))


def _hard_words(evidence: Evidence) -> str:
    """Words whose captions are recognised least often."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for group in (evidence.train, evidence.held):
        if group is not None:
            for caption, hit in zip(group.captions, group.hit.tolist(), strict=True):
                for word in set(caption.lower().split()):
                    hits[word.strip(".,:;()")].append(hit)
    shares = [(sum(h) / len(h), word, len(h)) for word, h in hits.items() if len(h) >= _LEAST_CAPTIONS and word]
    worst = [
        f"“{word}” ({share:.0%} of {count})" for share, word, count in sorted(shares)[:_HARDEST_WORDS] if share < 1
    ]
    return f"Words whose captions are recognised least often: {', '.join(worst)}." if worst else ""


def _neighbours(evidence: Evidence) -> tuple[Neighbour, ...]:
    """The drawings nearest to a training picture, copies first, each beside it."""
    captions = evidence.training.rows["caption"].to_pylist()
    rows = []
    for group, near in zip((evidence.train, evidence.held), evidence.copies, strict=False):
        if group is None:
            continue
        for i in range(len(group.ids)):
            source = int(near.source[i])
            rows.append((not near.copied[i], float(near.feature_distance[i]), group, near, i, source))
    rows.sort(key=lambda row: (row[0], row[1], row[2].ids[row[4]]))
    return tuple(
        Neighbour(
            group.captions[i],
            encode_png(group.made[i]),
            encode_png(np.asarray(evidence.training.images[source])),
            captions[source] + (f" (stands {near.times[i]} times in training)" if near.times[i] > 1 else ""),
            distance,
            bool(near.copied[i]),
            f"{near.token_distance[i]:.0%} of the tokens differ from the nearest training picture's",
        )
        for _, distance, group, near, i, source in rows[:_CLOSEST]
    )


def _copying(evidence: Evidence) -> str:
    memorised = evidence.found.protocol["copies"]["memorised"]
    often = [m for m in memorised if m["times_in_training"] > 1]
    drawn = sum(len(c.copied) for c in evidence.copies)
    text = f"{sum(int(c.copied.sum()) for c in evidence.copies)} of {drawn} drawings are copies, of {len(memorised)} training pictures."
    if often:
        text += f" {len(often)} of these stand in the training set more than once, the most frequent {often[0]['times_in_training']} times: thin out duplicates with curate.near_duplicate_bits."
    return text


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


def _baseline(job: Job) -> Manifest | None:
    """The evaluation with which the config says to compare."""
    wanted = job.config.baseline
    found = job.store.find("evaluate", wanted) if wanted else None
    if wanted and found is None:
        raise DataError(
            f"evaluate.baseline {wanted[:12]} is no evaluation in {job.store.uri}; give the model with `dalle evaluate MODEL --against REF`"
        )
    return found


def _against(evidence: Evidence, baseline: Manifest | None) -> Comparison | None:
    """None, said in the log, when the two cannot be compared: the figures stand without it."""
    if baseline is None:
        return None
    try:
        before = measured_values(evidence.job.store, baseline)
        found = evidence.found
        now = {name: asdict(record) for name, record in found.records.items()}
        apart = measured_apart(records_of(evidence.job.store, baseline), now)
        return compare_values(baseline.fingerprint, before, evidence.job.fingerprint, found.values, apart)
    except DataError as error:
        evidence.job.log(f"not compared with the baseline: {error}")
        return None
