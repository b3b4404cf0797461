"""Questions to a curation: what other thresholds would keep."""

import dataclasses
import sys
from typing import Any

import pyarrow as pa

from dalle_model.config import CurateConfig
from dalle_model.curation.what_if import not_judged
from dalle_model.curation.what_if import what_if as moves_of
from dalle_model.errors import DataError, UsageError
from flows import commands
from flows.lineage import CUTTING_MODELS, check_places, curate_sets
from tasks.artifacts import Manifest
from tasks.curate_scores import stored_tables
from tasks.kin import EMBEDDING_MODEL, pairs_of
from tasks.model_scores import ROLES, model_digests, models_in
from tasks.removals import removals_of, withdrawn_ids
from tasks.settings import Settings
from tasks.step import open_store
from tasks.store import Store

_OFF: dict[str, Any] = {
    **dict.fromkeys(("max_aspect", "max_caption_chars", "max_profanity", "max_policy", "max_personal_data"), 10**9),
    **dict.fromkeys(("max_word_repetition", "max_boilerplate", "max_mined_boilerplate", "max_foreign"), 1.0),
    **dict.fromkeys(("max_blur", "max_text_share", "max_watermark", "max_nsfw"), 1.0),
    **dict.fromkeys(("min_caption_words", "min_caption_chars", "min_entropy_bits", "valid_share", "test_share"), 0),
    **dict.fromkeys(("max_captions_per_picture", "max_pairs_per_cluster", "folds", "fold"), 0),
    "preset": "none",
    "min_side_px": 1,
    "min_agreement": -1000.0,
    "exclude": (),
    "holdout_pattern": "",
}


def what_if(
    settings: Settings, ref: str, preset: str, sets: list[str], *, debug: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """``dalle curate --what-if``: a scan of stored scores. Pairs that were never curated are measured first, once.

    Of curated pairs their own thresholds are moved, with ``sets`` laid over them; of pairs those of ``preset``.
    """
    store = open_store(settings)
    manifest = store.resolve(ref)
    if manifest.kind == "pairs":
        config = commands.preset_config(preset, sets).curate
        manifest = _curation_of(store, manifest, settings, preset, sets, debug=debug)
    elif manifest.kind == "curated":
        config = _own_config(manifest, settings, preset, sets)
    else:
        raise UsageError(
            f"{ref!r} is of kind {manifest.kind}; what-if reads the scores of pairs or curated pairs, see `dalle ls --kind curated`"
        )
    ids = withdrawn_ids(store, pairs_of(store, manifest), removals_of(store), settings)
    gone = pa.array(sorted(ids), pa.string())
    moves = moves_of(
        stored_tables(store, manifest, config),
        config,
        removed=(lambda table: pa.compute.is_in(table["id"], gone).to_numpy()) if ids else None,
    )
    lines = [f"{'knob':28} {'threshold':>10} {'kept':>9} {'gained':>8} {'lost':>8}"]
    lines += [f"{m.knob:28} {m.threshold:10g} {m.kept:9,} {m.gained:8,} {m.lost:8,}" for m in moves]
    lines.append(f"of {manifest.stats['rows_in']:,} pairs; each threshold moved alone, as in a curation with it")
    if left := not_judged(config):
        lines.append(f"not judged: {left}")
    if config.preset != "none":
        lines.append(f"looser thresholds than those of curate.preset={config.preset} would not count and are left out")
    payload = {
        "curated": manifest.fingerprint,
        "not_judged": left,
        "moves": [dataclasses.asdict(m) for m in moves],
    }
    return payload, lines


def _curation_of(
    store: Store, pairs: Manifest, settings: Settings, preset: str, sets: list[str], *, debug: bool
) -> Manifest:
    """A curated artifact of these pairs that holds the scores this config needs; made where there is none."""
    config, refs = commands.preset_config(preset, sets), {"pairs": pairs.fingerprint}
    try:
        result = commands.run_stage("curate", refs, config, settings, None, debug=debug)
    except DataError as error:  # no pair is left by these thresholds, which is when one asks what others would keep
        print(f"{error}; measured with every threshold off instead", file=sys.stderr)
        config = config.model_copy(update={"curate": config.curate.model_copy(update=_OFF)})
        result = commands.run_stage("curate", refs, config, settings, None, debug=debug)
    for line in result.lines:
        print(line, file=sys.stderr)
    return store.resolve(result.payload["artifacts"]["curate"]["fingerprint"])


def _own_config(curated: Manifest, settings: Settings, preset: str, sets: list[str]) -> CurateConfig:
    """The thresholds of a curated artifact with ``sets`` over them.

    UsageError for a list of words that is not given, and for a model other than the one whose scores are stored.
    """
    config = commands.preset_config(preset, [*curate_sets(curated), *sets]).curate
    check_places(curated, config, ("policy_file",))
    outside = curated.config.get("outside", {})
    stored, asked = models_in(outside), model_digests(config, settings)
    for rule, knob in CUTTING_MODELS.items():
        if rule in asked and asked[rule] != stored.get(rule):
            raise UsageError(
                f"curated {curated.fingerprint[:12]} holds no scores of curate.{knob} {getattr(config, knob)!r}; curate with that model first"
            )
    # The scores are there, so that there is a model is all that counts.
    named = {
        knob: stored[rule]
        for rule, knob in CUTTING_MODELS.items()
        if rule in stored and curated.objects_of(ROLES[rule])
    }
    if EMBEDDING_MODEL in outside:
        named.setdefault("embedding_model", outside[EMBEDDING_MODEL])
    return config.model_copy(update=named)
