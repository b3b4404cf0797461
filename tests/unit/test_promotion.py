"""Names: who may take one over where nothing can be compared, and which one a schedule waits for."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dalle_model.config import EvaluateConfig
from dalle_model.errors import DataError, RefNotFound, UsageError
from flows import comparison
from tasks.references import is_free_name
from tasks.settings import Settings
from tasks.store import Store


def test_production_is_given_to_models_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """With another artifact under that name every schedule failed, and the next model took it over unmeasured."""
    store = SimpleNamespace(resolve=lambda ref: SimpleNamespace(kind="tokens"))
    monkeypatch.setattr(comparison, "open_store", lambda settings: store)
    with pytest.raises(UsageError, match="of kind tokens; production is what schedules draw with"):
        comparison.promote(Settings(), "5a5e", "production", force=True)


def test_force_also_counts_where_nothing_can_be_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ended with: have fewer than 8 prompts in common."""
    evaluation = SimpleNamespace(config={"config": EvaluateConfig().model_dump(mode="json")})

    def too_few(*_: Any) -> None:
        raise DataError("fewer than 8 prompts in common")

    monkeypatch.setattr(comparison, "newest_evaluation", lambda *_: evaluation)
    monkeypatch.setattr(comparison, "evaluation_of", lambda *_: evaluation)
    monkeypatch.setattr(comparison, "compare", too_few)
    new, old = (SimpleNamespace(fingerprint=digit * 64) for digit in "ab")
    gate: Any = comparison._gate
    assert gate(Settings(), None, new, old, True) == (
        "forced over bbbbbbbbbbbb, not compared: fewer than 8 prompts in common",
        None,
    )
    with pytest.raises(DataError, match="fewer than 8"):
        gate(Settings(), None, new, old, False)


def test_a_schedule_waits_for_a_name_that_nobody_has_and_for_nothing_else(tmp_path: Path) -> None:
    """It skipped in silence, and for ever, when the model of its name was deleted or a fingerprint mistyped."""
    store = Store.open(tmp_path)
    assert is_free_name(store, "production")
    assert not any(is_free_name(store, ref) for ref in ("5a5e", "manifests/fit/5a5e.json", "s3://b/x", "No Name"))
    gone: Any = SimpleNamespace(step="fit", kind="model", fingerprint="a" * 64)
    store.set_ref("production", gone)
    assert not is_free_name(store, "production")
    with pytest.raises(RefNotFound, match="is gone from"):
        store.resolve("production")


def test_a_reproduction_with_another_judge_says_which_figures_it_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """26 of 177 figures differed and nothing told that a release between had trained the judge anew."""
    evaluations = [SimpleNamespace(fingerprint=digit * 64, kind="evaluation", facts={}) for digit in "ab"]
    figures = {"agreement": (0.9, 0.8), "recognisability": (0.5, 0.5), "variety": (0.1, 0.2)}
    done = SimpleNamespace(repeated=evaluations[1], figures=figures, differing=["agreement", "variety"], objects={})
    judges = {evaluations[0].fingerprint: "one", evaluations[1].fingerprint: "other"}

    def records(_: Any, evaluation: Any) -> dict[str, dict[str, str]]:
        known = {"features": "pixels", "features_sha256": "", "reference": "same"}
        judge = {"features": "dual_encoder", "features_sha256": judges[evaluation.fingerprint]}
        return {"agreement": known | judge, "recognisability": known, "variety": known}

    monkeypatch.setattr(comparison, "open_store", lambda _: SimpleNamespace(resolve=lambda ref: evaluations[0]))
    monkeypatch.setattr(comparison, "reproduce", lambda *_: done)
    monkeypatch.setattr(comparison, "records_of", records)
    _, lines, equal = comparison.reproduce_figures(Settings(), "aaaa")
    assert not equal and lines[-1].startswith("2 of 3 figures differ: agreement, variety")
    assert lines[-1].endswith("such as a judge that another release trained: agreement")
