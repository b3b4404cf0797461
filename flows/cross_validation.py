"""k-fold cross-validation: the chain once per fold, measured on the fold that it has not seen."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dalle_model.config import PipelineConfig
from dalle_model.errors import DataError
from flows import views
from flows.inspection import Shown
from tasks.artifacts import Manifest
from tasks.comparison import figures_of
from tasks.figures import spoken
from tasks.plain import bind, here
from tasks.settings import Settings
from tasks.stages import EVALUATE
from tasks.step import StepResult, open_store
from tasks.store import Store


def cross_validate(settings: Settings, config: PipelineConfig, folds: int, out: Path) -> Shown:
    """``dalle cross-validate``: every cluster is in the split ``test`` of one run, and kin are in one fold.

    Pairs are ingested once; each fold's tokenizer, transformer and judge see its training split alone. Killed and
    started again it goes on, as every step does.
    """
    views.prepare_folder(out)
    store = open_store(settings)
    do = bind(here)
    pairs = do.ingest(config.ingest, settings)
    # all of them before the first training: a fold without a pair is told at once
    curated = [_curated(settings, config, do, pairs, number, folds) for number in range(folds)]
    evaluations = [_fold(settings, config, do, fold) for fold in curated]
    manifests = [_manifest(store, result) for result in evaluations]
    summary = summarise([figures_of(store, m) for m in manifests])
    payload: dict[str, Any] = {
        "folds": folds,
        "evaluations": [m.fingerprint for m in manifests],
        "models": [m.inputs[0].fingerprint for m in manifests],
        "figures": summary,
    }
    path = views.write_whole(out / "cross_validation.json", json.dumps(payload, indent=1, sort_keys=True).encode())
    payload["file"] = str(path.absolute())
    return payload, [*_lines(summary, folds), f"all of it: {path.absolute()}"]


def _curated(
    settings: Settings, config: PipelineConfig, do: Any, pairs: StepResult, number: int, folds: int
) -> StepResult:
    """The pairs with one fold as the split ``test``."""
    knobs = config.curate.model_dump() | {"folds": folds, "fold": number, "test_share": 0.0}
    curated: StepResult = do.curate(type(config.curate).model_validate(knobs), settings, pairs=pairs.ref)
    return curated


def _fold(settings: Settings, config: PipelineConfig, do: Any, curated: StepResult) -> StepResult:
    """The chain on all folds but one, up to the evaluation."""
    if config.family == "dalle":
        tokenizer = do.fit_tokenizer(config.tokenizer, settings, curated=curated.ref)
        tokens = do.encode(config.encode, settings, curated=curated.ref, tokenizer=tokenizer.ref)
        model = do.fit(config.fit, settings, tokens=tokens.ref)
    else:
        model = do.fit_generator(config.generator, settings, curated=curated.ref)
    evaluation: StepResult = do.evaluate(config.evaluate, settings, model=model.ref)
    return evaluation


def _manifest(store: Store, result: StepResult) -> Manifest:
    found = store.find(EVALUATE.name, result.ref.fingerprint)
    if found is None:
        raise DataError(f"the evaluation {result.ref.fingerprint[:12]} is gone from {store.uri}; run the command again")
    return found


def summarise(folds: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Mean, standard deviation between folds and standard error of each figure that every fold has.

    The standard error treats folds as independent; as their training sets overlap, it is too small (Bengio and
    Grandvalet 2004), so it is a description and no test.
    """
    common = set.intersection(*(set(fold) for fold in folds))
    out: dict[str, dict[str, Any]] = {}
    for name in sorted(n for n in common if not n.endswith(("_low", "_high"))):
        each = [fold[name] for fold in folds]
        spread = float(np.std(each, ddof=1)) if len(each) > 1 else 0.0
        out[name] = {
            "mean": float(np.mean(each)),
            "sd": spread,
            "se": spread / math.sqrt(len(each)),
            "folds": each,
        }
    return out


def _lines(summary: Mapping[str, Mapping[str, Any]], folds: int) -> list[str]:
    unseen = [name for name in summary if name.endswith("_test")]
    lines = [f"{'figure':44} {'mean':>10} {'sd':>9}  each of {folds} folds"]
    for name in [*unseen, *(n for n in summary if n not in unseen)]:
        told = summary[name]
        each = " ".join(f"{value:.4g}" for value in told["folds"])
        lines.append(f"{spoken(name):44} {told['mean']:10.4g} {told['sd']:9.3g}  {each}")
    return lines
