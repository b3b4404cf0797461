"""Small records that prove themselves: canonical JSON beside its own hash, used for receipts and names."""

import hashlib
import json
from typing import Any

from dalle_model.config import canonical_json
from dalle_model.errors import CorruptObject


def seal(body: dict[str, Any]) -> bytes:
    """The stored form of a record."""
    return canonical_json({"body": body, "sha256": hashlib.sha256(canonical_json(body)).hexdigest()})


def unseal(data: bytes, where: str) -> dict[str, Any]:
    """The record of its stored form. Raises CorruptObject when a byte differs."""
    try:
        envelope = json.loads(data)
        body = envelope["body"]
        intact = isinstance(body, dict) and seal(body) == data
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        raise CorruptObject(f"{where} is damaged: its bytes do not fit the hash it holds")
    return dict(body)
