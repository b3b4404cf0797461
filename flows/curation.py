"""Questions to a curation: what other thresholds would keep."""

import dataclasses
import sys
from typing import Any

from dalle_model.config import PipelineConfig
from dalle_model.curation.what_if import what_if as moves_of
from dalle_model.errors import UsageError
from flows import commands
from tasks.artifacts import Manifest
from tasks.curate_scores import stored_tables
from tasks.settings import Settings
from tasks.step import open_store
from tasks.store import Store


def what_if(
    settings: Settings, ref: str, config: PipelineConfig, *, debug: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """``dalle curate --what-if``: a scan of stored scores. Pairs that were never curated are measured first, once."""
    store = open_store(settings)
    manifest = store.resolve(ref)
    if manifest.kind == "pairs":
        manifest = _curation_of(store, manifest, settings, config, debug=debug)
    if manifest.kind != "curated":
        raise UsageError(
            f"{ref!r} is of kind {manifest.kind}; what-if reads the scores of pairs or curated pairs, see `dalle ls --kind curated`"
        )
    moves = moves_of(stored_tables(store, manifest, config.curate), config.curate)
    lines = [f"{'knob':28} {'threshold':>10} {'kept':>9} {'gained':>8} {'lost':>8}"]
    lines += [f"{m.knob:28} {m.threshold:10.4g} {m.kept:9,} {m.gained:8,} {m.lost:8,}" for m in moves]
    lines.append(f"of {manifest.stats['rows_in']:,} pairs; each threshold moved alone, duplicates not judged again")
    payload = {"curated": manifest.fingerprint, "moves": [dataclasses.asdict(m) for m in moves]}
    return payload, lines


def _curation_of(store: Store, pairs: Manifest, settings: Settings, config: PipelineConfig, *, debug: bool) -> Manifest:
    """A curated artifact of these pairs that holds the scores this config needs; made where there is none."""
    ref = pairs.fingerprint
    result = commands.run_stage("curate", {"pairs": ref}, config, settings, None, debug=debug)
    for line in result.lines:
        print(line, file=sys.stderr)
    return store.resolve(result.payload["artifacts"]["curate"]["fingerprint"])
