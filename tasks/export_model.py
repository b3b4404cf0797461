"""A model artifact as a folder that ``TextToImage.from_pretrained`` reads, here or in a bucket; and back from a bucket."""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dalle_model.captions import CaptionTokenizer
from dalle_model.config import SamplerConfig
from dalle_model.dalle import dalle_from_bytes
from dalle_model.errors import DataError, SourceError, UsageError
from dalle_model.model_card import CardFacts
from dalle_model.pretrained import CARD, FILES, INDEX, read_files
from dalle_model.text_to_image import TextToImage
from dalle_model.tokenizers.registry import tokenizer_from_bytes
from tasks.artifacts import Manifest
from tasks.s3_client import StoreOptions
from tasks.settings import Settings
from tasks.store import Store

_MAX_BYTES = 1 << 40


def text_to_image(store: Store, manifest: Manifest) -> TextToImage:
    """The complete model of an artifact. DataError for an artifact of another kind, and for a generator without prompts."""
    if manifest.kind != "model":
        raise DataError(f"{manifest.step} {manifest.fingerprint[:12]} is of kind {manifest.kind}, not a model")
    if not manifest.objects_of("bpe"):
        raise DataError(
            f"model {manifest.fingerprint[:12]} of stage {manifest.step} reads no prompts: it can be generated from and evaluated, no more; name a model of stage fit (`dalle ls --kind model` shows them)"
        )
    read = {role: store.read(manifest.object_of(role)) for role in ("weights", "config", "sampler", "bpe")}
    tokenizer = (store.read(manifest.object_of(f"tokenizer.{role}")) for role in ("weights", "config"))
    CaptionTokenizer.from_json(read["bpe"])
    return TextToImage(
        dalle_from_bytes(read["weights"], read["config"]),
        tokenizer_from_bytes(*tokenizer),
        read["bpe"],
        SamplerConfig.model_validate(json.loads(read["sampler"])),
    )


def card_facts(store: Store, manifest: Manifest) -> CardFacts:
    """Data, settings and figures of a model from its lineage, as far as the store still holds it."""
    line = {m.kind: m for m in _lineage(store, manifest)}
    data: dict[str, Any] = {}
    if pairs := line.get("pairs"):
        data |= {"Source": pairs.config["config"].get("source", "?"), "Pairs ingested": pairs.rows}
        data |= {f"Rejected at ingest: {reason}": n for reason, n in (pairs.stats.get("reasons") or {}).items()}
    if curated := line.get("curated"):
        data["Pairs after curation"] = curated.rows
        data |= {f"Split {split}": rows for split, rows in (curated.stats.get("splits") or {}).items()}
        data |= {f"Licence {name or '(not stated)'}": n for name, n in (curated.stats.get("licences") or {}).items()}
    data["Trained on rows"] = manifest.stats.get("trained_on", manifest.rows)
    for kind in ("pairs", "curated", "tokenizer", "tokens", "model"):
        if kind in line:
            data[f"Fingerprint of the {kind}"] = line[kind].fingerprint
    if start := next((i for i in manifest.inputs if i.kind == "model"), None):
        data["Weights started from model"] = start.fingerprint
    metrics = {k: f"{v:.4g}" for k, v in manifest.stats.items() if k.startswith("loss_") and _is_number(v)}
    if evaluation := _evaluation(store, manifest):
        metrics |= _with_intervals(evaluation.stats)
        data["Fingerprint of the evaluation"] = evaluation.fingerprint
    settings = {m.step: m.config["config"] for m in (*line.values(), *([evaluation] if evaluation else []))}
    return CardFacts(f"Model {manifest.fingerprint[:12]}", data, metrics, settings)


def _lineage(store: Store, manifest: Manifest) -> Iterator[Manifest]:
    """The artifact and what it was made from; of two artifacts of one kind the nearer comes last."""
    for used in manifest.inputs:
        if used.kind == "model":  # where the weights started: told by the settings, its data are not ours
            continue
        found = store.find(used.step, used.fingerprint)
        if found is not None:
            yield from _lineage(store, found)
    yield manifest


def _evaluation(store: Store, manifest: Manifest) -> Manifest | None:
    """The newest evaluation of a model, None without one."""
    found = (store.find(known.step, known.fingerprint) for known in store.artifacts() if known.step == "evaluate")
    ours = [m for m in found if m is not None and any(i.fingerprint == manifest.fingerprint for i in m.inputs)]
    return max(ours, key=lambda m: float(m.facts.get("started_at", 0)), default=None)


def _with_intervals(stats: Mapping[str, Any]) -> dict[str, str]:
    """Figures as text; one that has a lower and an upper bound is told with them, as the report does."""
    numbers = {name: float(value) for name, value in stats.items() if _is_number(value)}
    told = {}
    for name, value in numbers.items():
        ends = [name.removesuffix(end) for end in ("_low", "_high") if name.endswith(end)]
        if ends and ends[0] in numbers:
            continue
        low, high = numbers.get(f"{name}_low"), numbers.get(f"{name}_high")
        told[name] = f"{value:.4g}" if low is None or high is None else f"{value:.4g} [{low:.4g}, {high:.4g}]"
    return told


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def export_model(store: Store, manifest: Manifest, place: str, settings: Settings) -> dict[str, int]:
    """Write the model to a new folder or to ``s3://bucket/prefix``; returns {"files", "bytes"}.

    Raises UsageError when the folder holds something already, DataError for an artifact that is no model.
    """
    model, facts = text_to_image(store, manifest), card_facts(store, manifest)
    remote = place.startswith("s3://")
    folder = Path(tempfile.gettempdir()) if remote else Path(place)
    if not remote:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{folder} is a file or not empty; name a new folder, so that nothing is overwritten")
        folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".model-", dir=None if remote else folder.parent) as scratch:
        built = Path(scratch) / "model"
        model.save_pretrained(built, facts)
        sizes = [path.stat().st_size for path in built.iterdir()]
        if remote:
            upload(built, place, settings)
        else:
            built.rename(folder)  # onto an empty folder this works too
    return {"files": len(sizes), "bytes": sum(sizes)}


def upload(folder: Path, uri: str, settings: Settings) -> None:
    """Put a saved model under ``s3://bucket/prefix``, the index last: a reader never takes half of it for a model."""
    bucket = Store.open(uri, options=StoreOptions(endpoint_url=settings.endpoint_url))
    for name in (*FILES, CARD, INDEX):
        path = folder / name
        bucket.backend.put(name, path, hashlib.sha256(path.read_bytes()).hexdigest())


def fetch_model(uri: str) -> Path:
    """The local folder of a model that lies under ``s3://bucket/prefix``; kept and checked by its index.

    ``TextToImage.from_pretrained`` finds this by the entry point ``s3``. SourceError when there is no model, DataError
    when its parts are not those of the index.
    """
    settings = Settings()
    bucket = Store.open(uri, options=StoreOptions(endpoint_url=settings.endpoint_url))
    index = bucket.load(INDEX)
    if index is None:
        raise SourceError(f"{uri} holds no {INDEX}; write a model there with `dalle export MODEL {uri}`")
    folder = settings.spool.parent / "models" / hashlib.sha256(uri.encode() + index).hexdigest()
    if (folder / INDEX).is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".model-", dir=folder.parent) as scratch:
        built = Path(scratch) / "model"
        built.mkdir()
        for name in (*FILES, CARD):
            blocks = bucket.backend.blocks(name, _MAX_BYTES)
            if blocks is None and name != CARD:
                raise SourceError(f"{uri} lacks {name}; export the model there again")
            with open(built / name, "wb") as file:
                file.writelines(blocks or ())
        (built / INDEX).write_bytes(index)
        read_files(built)  # compared with the index, so that what is kept is whole
        try:
            built.rename(folder)
        except OSError:  # another process was faster; the same index names the same bytes
            if not (folder / INDEX).is_file():
                raise
    return folder
