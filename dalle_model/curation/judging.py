"""Stored features as the rules of one config see them: with the caption that goes on, and with the scores that depend
on settings, on the whole set or on a model.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dalle_model.config import CurateConfig
from dalle_model.curation.languages import check_codes, detector, foreign
from dalle_model.curation.phrases import Phrasebook
from dalle_model.curation.rules import FOREIGN, MINED, POLICY, languages_of
from dalle_model.curation.texts import one_array
from dalle_model.curation.word_lists import WordList
from dalle_model.errors import UsageError


@dataclass(frozen=True)
class Context:
    """What a config brings beside thresholds: mined phrases and an own list of words; None where it has none."""

    phrases: Phrasebook | None = None
    policy: WordList | None = None


def check_languages(config: CurateConfig) -> None:
    """UsageError for an unknown language, or where captions cannot be judged because the detector is not installed."""
    kept = languages_of(config)
    check_codes(kept)
    if kept and not detector():
        raise UsageError(
            f"keeping {kept} needs the package py3langid, which is not installed; run `pip install -c infra/constraints.txt py3langid`, or choose preset none without curate.languages"
        )


def captions_of(features: pa.Table, config: CurateConfig) -> pa.Array:
    """The captions that go on: without personal data unless the config keeps it."""
    captions = one_array(features["caption"])
    return pc.coalesce(one_array(features["masked"]), captions) if config.mask_personal_data else captions


def judged(
    features: pa.Table, config: CurateConfig, context: Context, models: Mapping[str, pa.Array] | None = None
) -> pa.Table:
    """FEATURES with ``caption`` as it goes on and a column for every rule of ``rules.rules_of(config)``.

    ``models``: scores of models by rule, row for row.
    """
    table = features.set_column(
        features.schema.get_field_index("caption"),
        pa.field("caption", pa.string(), nullable=False),
        captions_of(features, config),
    )
    captions = one_array(features["caption"])  # rules read what was written, not what is left of it
    scores: dict[str, pa.Array] = dict(models or {})
    if kept := languages_of(config):
        codes = np.array(features["language"].to_pylist(), object)
        confidence = np.asarray(features["language_confidence"], np.float64)
        scores[FOREIGN.name] = _column(foreign(codes, confidence, kept))
    if context.phrases is not None:
        scores[MINED.name] = _column(context.phrases.shares(captions))
    if context.policy is not None:
        scores[POLICY.name] = _column(context.policy.counts(captions))
    for name, column in scores.items():
        table = table.append_column(name, column)
    return table


def _column(scores: np.ndarray[tuple[int], np.dtype[np.float64]]) -> pa.Array:
    return pa.array(scores, pa.float64(), from_pandas=True)
