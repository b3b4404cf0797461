"""Everything curation measures of a pair, once: scores of all rules, and the hashes that find duplicates.

Features depend on the pair alone, not on thresholds, so they are stored and shared by all later choices.
"""

import hashlib
import io
import json
from concurrent.futures import Executor
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from dalle_model.curation.hashes import SIDE_PX, perceptual_hashes
from dalle_model.curation.rules import RULES, RULES_VERSION, Record
from dalle_model.errors import DataError

FEATURES_VERSION = 1

FEATURES = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("picture", pa.uint64(), nullable=False),  # digest of the stored picture's bytes
        pa.field("phash", pa.uint64(), nullable=False),
        *(pa.field(rule.name, pa.float64(), nullable=True) for rule in RULES),
    ],
    metadata={"record": "Features", "record_version": str(FEATURES_VERSION), "rules_version": str(RULES_VERSION)},
)


def digest64(data: bytes) -> int:
    """First 8 bytes of SHA-256 as a number."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


def measure(pairs: pa.Table, threads: Executor) -> pa.Table:
    """A table of records.PAIR -> its FEATURES, row for row. DataError names a picture that does not decode."""
    looks = list(threads.map(_look, pairs["image"].to_pylist(), pairs["id"].to_pylist()))
    grey = np.stack([small for _, small in looks]) if looks else np.zeros((0, SIDE_PX, SIDE_PX), np.uint8)
    columns: dict[str, Any] = {name: pairs[name] for name in ("id", "source", "key", "caption")}
    columns["picture"] = pa.array([digest64(image) for image in pairs["image"].to_pylist()], pa.uint64())
    columns["phash"] = pa.array(perceptual_hashes(grey), pa.uint64())
    records = [
        _record(*row)
        for row in zip(*(pairs[n].to_pylist() for n in ("caption", "width", "height", "extra")), looks, strict=True)
    ]
    for rule in RULES:
        columns[rule.name] = pa.array([rule.score(record) for record in records], pa.float64())
    return pa.table(columns, schema=FEATURES)


def _look(
    image: bytes, identifier: str
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.uint8]]]:
    """Grey histogram [256] and the picture shrunk to grey [32, 32]."""
    try:
        with Image.open(io.BytesIO(image), formats=("PNG", "JPEG")) as opened:
            grey = opened.convert("L")
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(
            f"the picture of pair {identifier[:12]} does not decode ({error}); run `dalle verify` on its artifact"
        ) from error
    small = grey.resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX)
    return np.array(grey.histogram(), np.int64), np.asarray(small)


def _record(caption: str, width: int, height: int, extra: str, look: tuple[Any, Any]) -> Record:
    facts = json.loads(extra)
    return Record(
        caption, width, height, int(facts.get("source_width", width)), int(facts.get("source_height", height)), look[0]
    )
