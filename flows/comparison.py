"""Comparing models: evaluations paired on the same prompts, the gate before a promotion, and reproduction of figures."""

import difflib
import json
from pathlib import Path
from typing import Any

from dalle_model.config import EvaluateConfig
from dalle_model.errors import CorruptObject, DalleError, DataError, PromotionRefused, RefNotFound, UsageError
from flows import views
from flows.commands import artifact_of
from flows.inspection import Shown, all_manifests
from tasks.artifacts import ArtifactRef, Manifest
from tasks.comparison import Comparison, compare, comparison_page, figures_of, measured_apart, records_of
from tasks.display import step_display
from tasks.plain import Step, here
from tasks.reproduce import is_reproduction, reproduce, split_id
from tasks.settings import Settings
from tasks.stages import EVALUATE
from tasks.step import open_store
from tasks.store import Store

GATED = "production"
"""The name whose models are drawn with on a schedule: it changes hands only for a better one."""


def evaluation_of(settings: Settings, subject: Manifest, config: EvaluateConfig, step: Step | None = None) -> Manifest:
    """The evaluation of a model with a config, made where it is not there yet; an evaluation is its own.

    ``step`` runs the stage; without it, it runs here.
    """
    store = open_store(settings)
    if subject.kind == EVALUATE.kind:
        return subject
    if subject.kind != "model":
        raise UsageError(
            f"{subject.fingerprint[:12]} is of kind {subject.kind}; give models or evaluations: `dalle ls --kind model` shows those"
        )
    ref = subject.ref(store.manifest_uri(subject.step, subject.fingerprint))
    result = (step or here(EVALUATE))(config, settings, model=ref)
    found = store.find(EVALUATE.name, result.ref.fingerprint)
    if found is None:
        raise RefNotFound(f"the evaluation {result.ref.fingerprint[:12]} is gone from {store.uri}")
    return found


def baseline_of(settings: Settings, model: str, config: EvaluateConfig, against: str, step: Step | None = None) -> str:
    """Fingerprint of the evaluation of ``against``, made where it is not there yet; "" = there is nothing to compare with.

    ``production`` may be nobody's name yet; any other reference that answers to nothing is an error. A model is not
    compared with itself.
    """
    store = open_store(settings)
    if config.baseline or not against or (against == GATED and store.read_ref(against) is None):
        return config.baseline
    other = store.resolve(against)
    if other.fingerprint == store.resolve(model).fingerprint or (against == GATED and other.kind != "model"):
        return ""
    return evaluation_of(settings, other, config, step).fingerprint


def compare_models(settings: Settings, first: str, second: str, config: EvaluateConfig, out: Path) -> Shown:
    """``dalle compare``."""
    views.prepare_folder(out)
    store = open_store(settings)
    subjects = [store.resolve(ref) for ref in (first, second)]
    if subjects[0].fingerprint == subjects[1].fingerprint:
        raise UsageError(
            f"{first!r} and {second!r} are the same artifact {subjects[0].fingerprint[:12]}; give two models"
        )
    evaluations = [evaluation_of(settings, subject, config) for subject in subjects]
    told = compare(store, *evaluations)
    page = views.write_whole(out / "comparison.html", comparison_page(store, told, *evaluations))
    payload = told.document() | {"page": str(page.absolute())}
    return payload, [*_table(told), f"{second} against {first}: {told.sentence}", f"page: {page.absolute()}"]


def _table(told: Comparison) -> list[str]:
    lines = [
        f"{'figure':34} {'first':>9} {'second':>9} {'difference [95 %]':>30} {'won:lost/pairs':>16} {'p':>8}  verdict"
    ]
    for row in told.rows:
        t = row.told
        span = f"{t.difference:+.4g} [{t.low:+.4g}, {t.high:+.4g}]"
        wins = f"{t.wins}:{t.losses}/{t.pairs}"
        name = row.figure + (" *" if row.decides else "")
        lines.append(f"{name:34} {t.first:9.4g} {t.second:9.4g} {span:>30} {wins:>16} {t.sign_p:8.2g}  {t.verdict}")
    return [*lines, "* decides; its p is corrected for their number (Holm)"]


# --- the gate --------------------------------------------------------------------------------------------------------


def promote(settings: Settings, ref: str, name: str, *, force: bool) -> Shown:
    """``dalle promote``: a model takes over ``production`` only when it beats the one that has it. ``latest`` is a model.

    Raises CorruptObject for a damaged model, or a damaged name without ``force``: what to beat is then unknown.
    """
    store = open_store(settings)
    manifest = store.resolve(artifact_of(settings, ref, "model").fingerprint if ref == "latest" else ref)
    if name == GATED and manifest.kind != "model":
        raise UsageError(
            f"{ref!r} is of kind {manifest.kind}; {GATED} is what schedules draw with: give a model, or another name with --as"
        )
    if name == GATED and (problems := store.verify(manifest)):
        key, problem = problems[0]
        raise CorruptObject(
            f"model {manifest.fingerprint[:12]} cannot draw: {store.url(key)} {problem}; "
            "run the step that made it again and it is made anew, or restore it from a backup"
        )
    try:
        held = store.read_ref(name)
    except CorruptObject:
        if not force:
            raise
        held = None  # what it pointed at is lost: this sets it again
    note = ""
    payload: dict[str, Any] = {"name": name, "fingerprint": manifest.fingerprint}
    lines = [f"{name} is now {manifest.step} {manifest.fingerprint[:12]}"]
    holder = store.find(held.step, held.fingerprint) if held else None
    contest = name == GATED and manifest.kind == "model" and holder is not None and holder.kind == "model"
    if contest and holder is not None and holder.fingerprint != manifest.fingerprint:
        note, told = _gate(settings, store, manifest, holder, force)
        lines.append(note)
        payload |= {"gate": told.document() if told else None, "forced": force}
    # What was compared is what is replaced: if the name moved meanwhile, the verdict is about another model.
    store.set_ref(name, manifest, note=note[:500], expect=held.fingerprint if note and held else None)
    return payload, lines


def offer(settings: Settings, model: ArtifactRef) -> str:
    """``promote`` to production for a run that goes well either way: what was decided, in words."""
    try:
        return "; ".join(promote(settings, model.fingerprint, GATED, force=False)[1])
    except (PromotionRefused, DataError) as refused:  # not better, or too few prompts in common to say so
        return str(refused)


def _gate(
    settings: Settings, store: Store, candidate: Manifest, holder: Manifest, force: bool
) -> tuple[str, Comparison | None]:
    """The note for the name's history. Raises PromotionRefused unless the candidate wins, or force."""
    found = newest_evaluation(store, candidate)
    if found is None:
        if force:
            return f"forced over {holder.fingerprint[:12]} without an evaluation", None
        raise PromotionRefused(
            f"model {candidate.fingerprint[:12]} has no evaluation to compare with that of {GATED}, {holder.fingerprint[:12]}; "
            f"run `dalle evaluate {candidate.fingerprint[:12]}` first, or give --force"
        )
    config = EvaluateConfig.model_validate(found.config["config"]).model_copy(update={"baseline": ""})
    try:
        told = compare(store, evaluation_of(settings, holder, config), found)
    except DalleError as error:  # too few prompts in common, or the holder's data are gone
        if not force:
            raise
        return f"forced over {holder.fingerprint[:12]}, not compared: {error}", None
    if told.overall != "better" and not force:
        raise PromotionRefused(
            f"model {candidate.fingerprint[:12]} is not better than {GATED}, {holder.fingerprint[:12]}, on the same prompts: {told.sentence}; "
            "train it further, measure on more captions (evaluate.num_captions), or give --force"
        )
    return f"{'forced' if told.overall != 'better' else 'won'} over {holder.fingerprint[:12]}: {told.sentence}", told


def newest_evaluation(store: Store, model: Manifest) -> Manifest | None:
    """The evaluation of a model that was made last and holds the values a comparison needs."""
    made = [
        m
        for m in all_manifests(store)
        if m.kind == EVALUATE.kind
        and [i.fingerprint for i in m.inputs] == [model.fingerprint]  # none on a foreign set
        and m.step_version == EVALUATE.version
        and not is_reproduction(m)
    ]
    return made[-1] if made else None


# --- reproduction ----------------------------------------------------------------------------------------------------


def reproduce_figures(settings: Settings, identifier: str) -> tuple[dict[str, Any], list[str], bool]:
    """``dalle evaluate --reproduce EVALUATION[:FIGURE]``: (payload, lines, whether all came out the same)."""
    store = open_store(settings)
    ref, figure = split_id(identifier)
    original = store.resolve(ref)
    if figure and original.kind == EVALUATE.kind and figure not in figures_of(store, original):
        near = difflib.get_close_matches(figure, figures_of(store, original), n=3, cutoff=0.3)
        raise UsageError(
            f"evaluation {original.fingerprint[:12]} has no figure {figure!r}; near: {', '.join(near) or 'none'}"
        )
    with step_display(EVALUATE.name) as listen:
        done = reproduce(store, original, settings, listen)
    asked = {figure: done.figures[figure]} if figure else dict(done.figures)
    differing = [name for name in done.differing if name in asked]
    lines = [
        f"{name:44} {before!r:>20} {'=' if before == now else f'-> {now!r}'}" for name, (before, now) in asked.items()
    ]
    if figure:
        records = json.loads(store.read(original.object_of("metrics")))["records"]
        lines += [f"  {key}: {value}" for key, value in records.get(figure, {}).items()]
    verdict = (
        f"{len(differing)} of {len(asked)} figures differ: {', '.join(differing[:5])}; the first time: {_where(original)}, now: {_where(done.repeated)}"
        if differing
        else f"all {len(asked)} figures of evaluation {original.fingerprint[:12]} came out the same to the last digit"
    )
    others = measured_apart(records_of(store, original), records_of(store, done.repeated)) if differing else ()
    if set(others) & set(differing):
        verdict += "; of these another network measured some, such as a judge that another release trained: "
        verdict += ", ".join(name for name in others if name in differing)
    payload = {
        "evaluation": original.fingerprint,
        "reproduction": done.repeated.fingerprint,
        "figures": {name: {"stored": a, "computed": b} for name, (a, b) in asked.items()},
        "differing": differing,
        "equal_objects": dict(done.objects),
    }
    return payload, [*lines, verdict], not differing


def _where(evaluation: Manifest) -> str:
    facts = evaluation.facts
    return " ".join(str(facts.get(name, "?")) for name in ("device", "dtype", "threads")) + " threads"
