"""Who may take a name over, where no two evaluations can be compared."""

from types import SimpleNamespace
from typing import Any

import pytest

from dalle_model.config import EvaluateConfig
from dalle_model.errors import DataError, UsageError
from flows import comparison
from tasks.settings import Settings


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
