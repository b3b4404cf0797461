"""What a step leaves behind: objects, a manifest that names them, and the reference that travels between tasks."""

import builtins
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from dalle_model.config import canonical_json
from dalle_model.errors import CorruptObject, DataError

MANIFEST_SCHEMA = 1


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ObjectRef(_Value):
    """One immutable object of an artifact. ``role`` says what it is to the artifact, e.g. ``pairs`` or ``sheet.kept``."""

    key: str
    sha256: str
    bytes: int
    rows: int = 0
    role: str


class InputRef(_Value):
    """An input of a step as its manifest records it."""

    name: str
    kind: str
    step: str
    fingerprint: str
    manifest_sha256: str


class ArtifactRef(_Value):
    """All that crosses a task boundary: a few hundred bytes of JSON that say where an artifact is and what it is."""

    kind: str
    step: str
    fingerprint: str
    uri: str  # of the manifest
    manifest_sha256: str
    rows: int
    bytes: int

    def as_input(self, name: str) -> InputRef:
        """What the manifest of a step that reads this artifact says of it."""
        return InputRef(
            name=name,
            kind=self.kind,
            step=self.step,
            fingerprint=self.fingerprint,
            manifest_sha256=self.manifest_sha256,
        )


class Manifest(_Value):
    """The proof that a step is done: what it read and every object it made, in order.

    ``facts`` holds time stamps, host, device and durations: it is stored beside the hashed part and never in it,
    so that equal work has an equal ``sha256`` wherever and whenever it ran. ``replaces`` names the hashes that this
    manifest had before withdrawn pairs were erased from its objects; what was made from it then is still made from it.
    """

    schema_version: int = MANIFEST_SCHEMA
    kind: str
    step: str
    step_version: int
    fingerprint: str
    config: dict[str, Any]
    inputs: tuple[InputRef, ...]
    objects: tuple[ObjectRef, ...]
    rows: int
    stats: dict[str, Any]
    replaces: tuple[str, ...] = ()
    facts: dict[str, Any] = Field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Bytes of all objects."""
        return sum(o.bytes for o in self.objects)

    @property
    def sha256(self) -> str:
        """Hash of the canonical JSON of everything but ``facts``."""
        return hashlib.sha256(canonical_json(self._body())).hexdigest()

    def answers_to(self, sha256: str) -> bool:
        """Whether a reference with this hash means this artifact: as it is, or as it was before pairs were erased."""
        return sha256 in (self.sha256, *self.replaces)

    def _body(self) -> dict[str, Any]:
        body = self.model_dump(mode="json", exclude={"facts"})
        if not self.replaces:  # as in manifests of earlier releases
            del body["replaces"]
        return body

    def to_bytes(self) -> builtins.bytes:
        """The stored form: the hashed body, its hash, and the facts."""
        return canonical_json({"body": self._body(), "sha256": self.sha256, "facts": self.facts})

    @classmethod
    def from_bytes(cls, data: builtins.bytes, where: str) -> "Manifest":
        """Parse and verify. Raises CorruptObject when the text is damaged or its hash differs, DataError when the schema is newer."""
        try:
            envelope = json.loads(data)
            body, recorded = envelope["body"], envelope["sha256"]
            found = hashlib.sha256(canonical_json(body)).hexdigest()
            # Before anything in it is believed: a flipped bit may also be in the number of the schema.
            if found != recorded:
                raise CorruptObject(f"{where} hashes to {found[:12]}, but records {str(recorded)[:12]}; it was altered")
            version = body["schema_version"]
            if version != MANIFEST_SCHEMA:
                raise DataError(
                    f"{where} has manifest schema {version}; this program reads {MANIFEST_SCHEMA}. Use the release that wrote it"
                )
            return cls(**body, facts=envelope["facts"])
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptObject(
                f"{where} is not a readable manifest ({type(error).__name__}); run `dalle verify` and restore it from a backup"
            ) from error

    def ref(self, uri: str) -> ArtifactRef:
        """The reference under which other steps know this artifact."""
        return ArtifactRef(
            kind=self.kind,
            step=self.step,
            fingerprint=self.fingerprint,
            uri=uri,
            manifest_sha256=self.sha256,
            rows=self.rows,
            bytes=self.bytes,
        )

    def objects_of(self, role: str) -> tuple[ObjectRef, ...]:
        """Objects of one role, in order."""
        return tuple(o for o in self.objects if o.role == role)

    def object_of(self, role: str) -> ObjectRef:
        """The one object of a role; DataError when there is none or several."""
        found = self.objects_of(role)
        if len(found) != 1:
            raise DataError(
                f"artifact {self.step} {self.fingerprint[:12]} has {len(found)} objects of role {role!r}, expected one"
            )
        return found[0]


class Part(_Value):
    """A receipt: one finished piece of a long step, committed under ``parts/<fingerprint>/<n>.json``."""

    objects: tuple[ObjectRef, ...] = ()
    stats: dict[str, Any] = Field(default_factory=dict)


def fingerprint(step: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Address of a step's artifact: what is done, by which version, with which settings, to which inputs.

    ``config`` is JSON-ready; ``inputs`` maps input names to fingerprints (or to a source's content digest).
    """
    key = {"step": step, "version": version, "config": dict(config), "inputs": dict(inputs)}
    return hashlib.sha256(canonical_json(key)).hexdigest()
