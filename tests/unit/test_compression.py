"""Smaller weights are accepted only where the pairs show that little was lost."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dalle_model.errors import DataError
from tasks.comparison import Comparison, compare, compare_values, measured_apart
from tasks.compression import decide
from tasks.stages import EVALUATE


def compared(full: list[float], small: list[float], figure: str = "recognisability") -> Comparison:
    units = [f"prompt {i}" for i in range(len(full))]
    values = ({figure: dict(zip(units, column, strict=True))} for column in (full, small))
    return compare_values("a" * 64, next(values), "b" * 64, next(values))


def test_equal_pictures_are_accepted_and_the_decision_names_figures_and_margin() -> None:
    decision = decide(compared([1.0] * 60 + [0.0] * 40, [1.0] * 60 + [0.0] * 40), "int8", 0.05)
    assert decision.accepted and decision.sentence == "int8 accepted: 1 figures (recognisability) lost at most 0.05"
    assert decision.document()["accepted"] is True


def test_a_loss_beyond_the_margin_is_refused_and_named() -> None:
    full, small = [1.0] * 100, [0.0] * 30 + [1.0] * 70
    decision = decide(compared(full, small), "int8", 0.05)
    assert not decision.accepted
    assert "recognisability may have lost" in decision.sentence and "(1 -> 0.7, 100 pairs)" in decision.sentence
    assert decide(compared(full, small), "int8", 0.5).accepted
    assert decide(compared(small, full), "int8", 0.05).accepted  # a gain is no loss


def test_what_few_pairs_cannot_show_is_refused() -> None:
    """No difference on 10 prompts may be a loss on a quarter of all; a test of difference would accept it."""
    decision = decide(compared([1.0] * 10, [1.0] * 10), "int8", 0.05)
    assert not decision.accepted and "10 pairs" in decision.sentence and "num_captions" in decision.sentence
    noisy = np.random.default_rng(0).integers(0, 2, (2, 40)).astype(float)
    assert compared(*noisy.tolist()).overall == "no difference shown"
    assert not decide(compared(*noisy.tolist()), "int8", 0.05).accepted


def test_what_no_drawing_changes_decides_nothing() -> None:
    with pytest.raises(DataError, match="no figure of drawn pictures"):
        decide(compared([3.0] * 20, [3.0] * 20, "bits_per_pixel_chain_valid"), "int8", 0.05)


def test_what_other_networks_measured_for_either_model_is_not_compared_and_said_so() -> None:
    def records(judge: str, model: str, pictures: int = 100) -> dict[str, dict[str, str]]:
        fixed = {"reference": "the pairs of the split"}
        return {
            "agreement": {"features": "dual_encoder", "features_sha256": judge, **fixed},
            "recognisability": {"features": "pixels", "features_sha256": "", "reference": f"{pictures} pictures"},
            "bits_per_pixel_valid": {"features": "transformer", "features_sha256": model, **fixed},
        }

    assert measured_apart(records("a", "m"), records("a", "n")) == ()
    # among more pictures fewer drawings are recognised, whatever the model
    assert measured_apart(records("a", "m"), records("a", "n", 200)) == ("recognisability",)
    apart = measured_apart(records("a", "m"), records("b", "n"))
    assert apart == ("agreement",)
    units = [f"prompt {i}" for i in range(20)]
    low, high = ({"agreement": dict.fromkeys(units, v), "recognisability": dict.fromkeys(units, v)} for v in (0.0, 1.0))
    told = compare_values("a" * 64, low, "b" * 64, high, apart)
    assert [row.figure for row in told.rows] == ["recognisability"] and told.document()["left_out"] == ["agreement"]
    assert told.sentence.endswith(
        "not compared, as another network or other reference pictures measured them for either: agreement"
    )
    assert [row.figure for row in compare_values("a" * 64, low, "b" * 64, high).rows] == [
        "recognisability",
        "agreement",
    ]


def test_an_evaluation_of_another_version_is_named_with_the_remedy() -> None:
    """It ended with: has 0 objects of role 'values', expected one."""
    old: Any = SimpleNamespace(fingerprint="a" * 64, step_version=EVALUATE.version - 1)
    store: Any = None
    with pytest.raises(DataError, match=r"aaaaaaaaaaaa was made by version .* run `dalle evaluate` on its model again"):
        compare(store, old, old)
