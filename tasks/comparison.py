"""Two evaluations side by side: paired by what both measured, with a verdict that a promotion can lean on."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pyarrow.parquet as pq

from dalle_model.errors import DataError
from dalle_model.paired import ALPHA, LEAST_PAIRS, PairedDifference, compare_paired, pair_up
from tasks.artifacts import Manifest
from tasks.figures import better_of, spoken
from tasks.findings import values_of
from tasks.pages import Compared, ComparedFigure, Picture, ReportData, Sample, Sheet, report_html
from tasks.stages import EVALUATE
from tasks.store import Store

Values = Mapping[str, Mapping[str, float]]
Records = Mapping[str, Mapping[str, Any]]
Overall = Literal["better", "worse", "mixed", "no difference shown"]

# What decides between two models, if both have it. The others are told and do not decide: they say the same again
# (losses beside bits), or are no aim in themselves (copies, reconstructions).
DECIDING = (
    "recognisability",
    "recognisability_heldout",
    "agreement",
    "agreement_heldout",
    "attribute_agreement",
    "attribute_agreement_heldout",
    "scene_all",
    "scene_all_heldout",
    "bits_per_pixel_chain_valid",
    "bits_per_pixel_chain_test",
    "bits_per_pixel_chain_heldout",
)


_OF_A_MODEL = ("transformer", "tokenizer", "words")  # features that differ because the models do


@dataclass(frozen=True)
class Row:
    """One figure of two models. ``decides``: whether it counts for the verdict, with p corrected (Holm 1979)."""

    figure: str
    told: PairedDifference
    decides: bool


@dataclass(frozen=True)
class Comparison:
    """The second evaluation against the first, by their fingerprints. ``left_out``: figures that cannot be compared."""

    first: str
    second: str
    rows: tuple[Row, ...]
    left_out: tuple[str, ...] = ()

    @property
    def overall(self) -> Overall:
        """Better: some deciding figure won and none lost. Mixed: some of both."""
        verdicts = {row.told.verdict for row in self.rows if row.decides}
        won, lost = "better" in verdicts, "worse" in verdicts
        return "mixed" if won and lost else "better" if won else "worse" if lost else "no difference shown"

    @property
    def sentence(self) -> str:
        """The verdict for a person, with the figures that made it."""
        parts = [
            f"{row.figure.replace('_', ' ')} {row.told.first:.4g} -> {row.told.second:.4g} ({row.told.verdict}, {row.told.pairs} pairs, p {row.told.sign_p:.2g})"
            for row in self.rows
            if row.decides and row.told.verdict != "no difference shown"
        ]
        asked = sum(row.decides for row in self.rows)
        nothing = f"none of {asked} deciding figures differs by more than chance"
        parts = parts or [nothing if asked else "no figure that decides was measured for both"]
        if self.left_out:
            parts.append(
                f"not compared, as another network or other reference pictures measured them for either: {', '.join(self.left_out)}"
            )
        return f"{self.overall}: " + "; ".join(parts)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "first": self.first,
            "second": self.second,
            "overall": self.overall,
            "sentence": self.sentence,
            "left_out": list(self.left_out),
            "figures": {row.figure: {**vars(row.told), "decides": row.decides} for row in self.rows},
        }


def compare(store: Store, first: Manifest, second: Manifest) -> Comparison:
    """Pair two evaluations. DataError when they have fewer than 8 prompts of any figure in common."""
    one, two = (measured_values(store, m) for m in (first, second))
    apart = measured_apart(*(records_of(store, m) for m in (first, second)))
    return compare_values(first.fingerprint, one, second.fingerprint, two, apart)


def measured_values(store: Store, evaluation: Manifest) -> Values:
    """The values behind an evaluation's figures. DataError for one of a version of the step that kept none, or others."""
    if evaluation.step_version != EVALUATE.version:
        raise DataError(
            f"evaluation {evaluation.fingerprint[:12]} was made by version {evaluation.step_version} of the step, whose figures are not "
            f"those of version {EVALUATE.version}; run `dalle evaluate` on its model again"
        )
    return values_of(store.read(evaluation.object_of("values")))


def measured_apart(one: Records, two: Records) -> tuple[str, ...]:
    """Figures that stand on other networks in two evaluations, which are no part of the models under examination, or on
    other reference pictures.

    Judges of other training data or of another length, say: their difference would pass for one of the models. Among
    more pictures it is harder to be recognised, so of a model that more data went into fewer drawings would be.
    """
    return tuple(
        sorted(
            figure
            for figure in one.keys() & two.keys()
            if one[figure]["reference"] != two[figure]["reference"]
            or (
                one[figure]["features_sha256"] != two[figure]["features_sha256"]
                and not one[figure]["features"].startswith(_OF_A_MODEL)
            )
        )
    )


def compare_values(first: str, one: Values, second: str, two: Values, apart: Sequence[str] = ()) -> Comparison:
    """The same on the values themselves; ``first`` and ``second`` are fingerprints, ``apart`` as ``measured_apart``."""
    rows: list[Row] = []
    for figure in (one.keys() & two.keys()) - set(apart):
        better = better_of(figure)
        a, b = pair_up(one[figure], two[figure])
        if better and len(a) >= LEAST_PAIRS:
            rows.append(Row(figure, compare_paired(a, b, better), figure in DECIDING))
    if not rows:
        raise DataError(
            f"evaluations {first[:12]} and {second[:12]} have fewer than {LEAST_PAIRS} prompts in common: "
            "evaluate both on the same curated data, with the same evaluate.num_captions"
        )
    order = {name: number for number, name in enumerate(DECIDING)}
    rows.sort(key=lambda row: (order.get(row.figure, len(order)), row.figure))
    return Comparison(first, second, tuple(_corrected(rows)), tuple(f for f in apart if f in one and f in two))


def _corrected(rows: Sequence[Row]) -> list[Row]:
    """Deciding figures are several tests of one question: a win by chance among them must stay below one in twenty."""
    deciding = sorted((row for row in rows if row.decides), key=lambda row: row.told.sign_p)
    adjusted: dict[str, float] = {}
    highest = 0.0
    for number, row in enumerate(deciding):
        highest = max(highest, min(1.0, row.told.sign_p * (len(deciding) - number)))
        adjusted[row.figure] = highest
    out = []
    for row in rows:
        p = adjusted.get(row.figure, row.told.sign_p)
        verdict = row.told.verdict if p < ALPHA else "no difference shown"
        out.append(replace(row, told=replace(row.told, sign_p=p, verdict=verdict)))
    return out


def figures_of(store: Store, evaluation: Manifest) -> Mapping[str, float]:
    """All figures of an evaluation, ends of intervals included."""
    figures: dict[str, float] = json.loads(store.read(evaluation.object_of("metrics")))["metrics"]
    return figures


def records_of(store: Store, evaluation: Manifest) -> Records:
    """What is on record of each figure; see ``findings.Record``."""
    records: Records = json.loads(store.read(evaluation.object_of("metrics")))["records"]
    return records


def drawings_of(store: Store, evaluation: Manifest) -> list[dict[str, Any]]:
    """The drawn pictures of an evaluation, rows of ``evaluate.DRAWING``; none for a model that reads no prompts."""
    tables = [pq.read_table(io.BytesIO(store.read(o))) for o in evaluation.objects_of("drawings")]
    return [row for table in tables for row in table.to_pylist()]


# --- for a person ----------------------------------------------------------------------------------------------------

_SHOWN = 24


def compared_table(told: Comparison) -> Compared:
    """The table of two models as a page shows it: what decides, and what differs at all."""
    rows = tuple(
        ComparedFigure(
            name=spoken(row.figure),
            before=row.told.first,
            now=row.told.second,
            difference=row.told.difference,
            low=row.told.low,
            high=row.told.high,
            pairs=row.told.pairs,
            wins=row.told.wins,
            losses=row.told.losses,
            p=row.told.sign_p,
            verdict=row.told.verdict,
            decides=row.decides,
        )
        for row in told.rows
        if row.decides or row.told.wins or row.told.losses
    )
    return Compared(told.sentence, rows)


def comparison_page(store: Store, told: Comparison, first: Manifest, second: Manifest) -> bytes:
    """One HTML file: the table, and the prompts on which the two models differ most, side by side."""
    one, two = ({(r["split"], r["id"]): r for r in drawings_of(store, m)} for m in (first, second))
    changes = _changes(store, first, second)
    both = sorted(one.keys() & two.keys(), key=lambda unit: (-abs(changes.get(unit, 0.0)), unit))
    samples = tuple(
        Sample(
            one[unit]["caption"],
            (Picture("first", one[unit]["image"]), Picture("second", two[unit]["image"])),
            note=_of_change(changes.get(unit, 0.0)),
        )
        for unit in both[:_SHOWN]
    )
    return report_html(
        ReportData(
            title="Two models on the same prompts",
            summary=f"The second against the first is {told.sentence}.",
            facts={
                name: m.inputs[0].fingerprint[:12] for name, m in (("first model", first), ("second model", second))
            },
            compared=compared_table(told),
            sheets=(Sheet("Where they differ most", "The same prompt and seed, drawn by both.", samples),),
            notes=(
                f"Evaluations {first.fingerprint[:12]} and {second.fingerprint[:12]}.",
                "p of deciding figures is corrected for their number (Holm 1979).",
            ),
        )
    )


def _changes(store: Store, first: Manifest, second: Manifest) -> dict[tuple[str, str], float]:
    """By how much each prompt gained: recognised or not counts most, then how well it fits its caption."""
    one, two = (measured_values(store, m) for m in (first, second))
    out: dict[tuple[str, str], float] = {}
    for split, suffix in (("train", ""), ("heldout", "_heldout")):
        for figure in ("recognisability", "agreement"):
            before, now = one.get(figure + suffix, {}), two.get(figure + suffix, {})
            for unit in before.keys() & now.keys():
                out[split, unit] = out.get((split, unit), 0.0) + now[unit] - before[unit]
    return out


def _of_change(change: float) -> str:
    return "better by the second" if change > 0 else "better by the first" if change < 0 else "as good by both"
