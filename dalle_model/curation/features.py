"""Everything curation measures of a pair, once: scores of all rules, and the hashes that find duplicates.

Features depend on the pair alone, not on thresholds, so they are stored and shared by all later choices.
"""

import hashlib
import io
import json
from concurrent.futures import Executor
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from dalle_model.curation import texts
from dalle_model.curation.hashes import SIDE_PX, perceptual_hashes
from dalle_model.curation.languages import detector, language_columns
from dalle_model.curation.looks import Look, look
from dalle_model.curation.personal import mask_column
from dalle_model.curation.rules import RULES, RULES_VERSION
from dalle_model.curation.word_lists import profanity
from dalle_model.errors import DataError

FEATURES_VERSION = 2

FEATURES = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("picture", pa.uint64(), nullable=False),  # digest of the stored picture's bytes
        pa.field("phash", pa.uint64(), nullable=False),
        *(pa.field(rule.name, pa.float64(), nullable=True) for rule in RULES),
        pa.field("masked", pa.string(), nullable=True),  # the caption without personal data, null where there is none
        pa.field("personal_kinds", pa.string(), nullable=False),  # what was found, between spaces
        pa.field("language", pa.string(), nullable=False),  # code, or a script's name, or empty: nothing to say
        pa.field("language_confidence", pa.float64(), nullable=False),
        pa.field("licence", pa.string(), nullable=False),
    ],
    metadata={"record": "Features", "record_version": str(FEATURES_VERSION), "rules_version": str(RULES_VERSION)},
)


def versions() -> dict[str, Any]:
    """What features depend on beside the pairs: another value of any of it, and they are measured again."""
    return {
        "features": FEATURES_VERSION,
        "rules": RULES_VERSION,
        "language": detector(),
        "profanity": profanity().digest,
    }


def digest64(data: bytes) -> int:
    """First 8 bytes of SHA-256 as a number."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


def measure(pairs: pa.Table, threads: Executor) -> pa.Table:
    """A table of records.PAIR -> its FEATURES, row for row. DataError names a picture that does not decode."""
    looks = list(threads.map(_look, pairs["image"].to_pylist(), pairs["id"].to_pylist()))
    grey = np.stack([small for _, small in looks]) if looks else np.zeros((0, SIDE_PX, SIDE_PX), np.uint8)
    columns = {name: pairs[name] for name in ("id", "source", "key", "caption", "licence")}
    columns["picture"] = pa.array([digest64(image) for image in pairs["image"].to_pylist()], pa.uint64())
    columns["phash"] = pa.array(perceptual_hashes(grey), pa.uint64())
    columns |= metadata_columns(pairs)
    columns["language"], columns["language_confidence"] = _languages(texts.one_array(pairs["caption"]))
    for name in Look.__dataclass_fields__:
        columns[name] = pa.array([asdict(measured)[name] for measured, _ in looks], pa.float64())
    return pa.table(columns, schema=FEATURES)


def metadata_columns(pairs: pa.Table) -> dict[str, pa.Array]:
    """Columns of all rules that look at sizes and words: no picture is opened and no model asked."""
    captions = texts.one_array(pairs["caption"])
    sizes = np.stack([np.asarray(pairs[name], np.float64) for name in ("width", "height")])
    sources = _source_sizes(texts.one_array(pairs["extra"]), sizes)
    masked = mask_column(captions)
    shorter = sources.min(0) if sources.size else np.zeros(0)
    scores = {
        "side_px": np.where(shorter > 0, shorter, np.nan),
        "aspect": sizes.max(0) / sizes.min(0) if sizes.size else np.zeros(0),
        "caption_words": texts.caption_words(captions),
        "caption_chars": texts.caption_chars(captions),
        "word_repetition": texts.word_repetition(captions),
        "boilerplate": texts.boilerplate(captions),
        "profanity": profanity().counts(captions),
    }
    columns = {name: pa.array(values, pa.float64(), from_pandas=True) for name, values in scores.items()}
    return columns | {"personal_data": masked.count, "masked": masked.caption, "personal_kinds": masked.kinds}


def _source_sizes(extra: pa.Array, stored: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, Any]:
    """(width, height) of the source pictures float64 [2, R], 0 for vector ones; the stored size where none is told."""
    sizes = stored.copy()
    told = pc.match_substring(extra, '"source_').to_numpy(zero_copy_only=False)
    for place in np.flatnonzero(told).tolist():
        facts = json.loads(extra[place].as_py())
        sizes[:, place] = (
            facts.get("source_width", stored[0, place]),
            facts.get("source_height", stored[1, place]),
        )
    return sizes


def _languages(captions: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Without a detector no caption has a language, and the report says so."""
    if detector():
        return language_columns(captions)
    return pa.array([""] * len(captions), pa.string()), pa.array(np.zeros(len(captions)), pa.float64())


def _look(image: bytes, identifier: str) -> tuple[Look, np.ndarray[Any, np.dtype[np.uint8]]]:
    """Scores of the picture, and the picture shrunk to grey [32, 32]."""
    try:
        with Image.open(io.BytesIO(image), formats=("PNG", "JPEG")) as opened:
            picture = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(
            f"the picture of pair {identifier[:12]} does not decode ({error}); run `dalle verify` on its artifact"
        ) from error
    small = picture.convert("L").resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX)
    return look(picture), np.asarray(small)
