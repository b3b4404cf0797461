"""What every section of the config is: frozen, strict, hashable by its canonical JSON, and fit for a form."""

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict


def canonical_json(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8, no NaN. Hashes are taken over this."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _for_forms(schema: dict[str, Any]) -> None:
    """What a form made from the JSON schema needs: titles in words, and the bounds where a person reads them."""
    schema["title"] = schema["title"].removesuffix("Config")
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    for name, knob in schema.get("properties", {}).items():
        knob.setdefault("title", name.replace("_", " ").capitalize())
        if bounds := [f"{text} {knob[key]:,}" for key, text in words.items() if key in knob]:
            knob["description"] = f"{knob.get('description', '')} Allowed: {', '.join(bounds)}.".lstrip()


class Section(BaseModel):
    """Base of all config sections."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=False, json_schema_extra=_for_forms)

    def digest(self) -> str:
        """SHA-256 of the canonical JSON of this section."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json"))).hexdigest()
