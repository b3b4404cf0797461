"""A saved model's files, and where they may lie: a folder, the Hugging Face hub, or an address that a package fetches.

Safetensors, JSON and one Markdown card: nothing that is executed. The index is written last and holds the hash of every
part, so that a folder half written, or mixed of two models, is refused.
"""

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from dalle_model.errors import DataError, SourceError, UsageError

FILES = ("weights.safetensors", "config.json", "tokenizer.safetensors", "tokenizer.json", "bpe.json", "sampler.json")
CARD, INDEX = "README.md", "model_index.json"
FETCHERS = "dalle_model.fetchers"
"""Entry-point group: a function (uri: str) -> Path of a folder, named by the scheme of the addresses that it fetches."""
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class Hub(Protocol):
    """What is needed of ``huggingface_hub.HfApi`` to publish a folder."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any:
        """Make the repository, or find it."""

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str, allow_patterns: list[str]) -> Any:
        """Commit the files of a folder."""


def write_files(folder: Path, parts: Mapping[str, bytes], card: str) -> None:
    """Write parts, card and, last, the index. The folder is created when absent."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)  # an older index must not vouch for a mixture
    for name, data in parts.items():
        (folder / name).write_bytes(data)
    (folder / CARD).write_text(card, encoding="utf-8")
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}
    (folder / INDEX).write_text(json.dumps({"format": 1, "files": hashes}, indent=1, sort_keys=True))


def read_files(folder: Path) -> tuple[bytes, ...]:
    """The parts in the order of ``FILES``. DataError when one is missing or is not the one that the index names."""
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder} is not a complete model: {', '.join(missing)} missing; save it with save_pretrained")
    parts = {name: (folder / name).read_bytes() for name in FILES}
    if (folder / INDEX).is_file():
        try:
            hashes = json.loads((folder / INDEX).read_bytes())["files"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder / INDEX} is no index of a model; save the model again") from error
        wrong = [name for name, data in parts.items() if hashlib.sha256(data).hexdigest() != hashes.get(name)]
        if wrong:
            raise DataError(f"{folder}: {', '.join(wrong)} differ from {INDEX}; the model was changed or half written")
    return tuple(parts.values())


def locate(place: str | Path, **hub: Any) -> Path:
    """The local folder of a model: a folder itself, what a fetcher brings (``s3://``), or a snapshot of a hub name.

    hub: arguments of ``huggingface_hub.snapshot_download`` such as ``revision``, ``token`` or ``local_files_only``.
    DataError when there is no such folder, SourceError when fetching fails, UsageError for an address nobody fetches.
    """
    text = str(place)
    if Path(place).expanduser().is_dir():
        return Path(place).expanduser()
    scheme, sign, _ = text.partition("://")
    if sign:
        return _fetcher(scheme)(text)
    if isinstance(place, Path) or not _HUB_NAME.fullmatch(text) or text.startswith("."):
        raise DataError(
            f"{text} is no folder; give one that save_pretrained wrote, an s3:// address, or a name/repository"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(text, allow_patterns=[*FILES, CARD, INDEX], **hub))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise SourceError(
            f"{text} is neither a folder here nor a model of the Hugging Face hub that can be fetched: "
            f"{str(error).splitlines()[0]}"
        ) from error


def _fetcher(scheme: str) -> Callable[[str], Path]:
    found = [e for e in importlib.metadata.entry_points(group=FETCHERS) if e.name == scheme]
    if not found:
        raise UsageError(
            f"nothing installed fetches {scheme}:// models; copy the folder here, or install a package with an entry "
            f"point {scheme!r} in {FETCHERS}"
        )
    fetch: Callable[[str], Path] = found[0].load()
    return fetch


def push(folder: Path, repo_id: str, *, private: bool, message: str, hub: Hub | None = None) -> None:
    """Commit a saved model to a repository of the hub, made when absent. SourceError when the hub refuses."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api: Hub = hub or HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=str(folder),
            commit_message=message,
            allow_patterns=[*FILES, CARD, INDEX],
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise SourceError(
            f"the hub did not take {repo_id}: {str(error).splitlines()[0]}; log in with `hf auth login`, check the name"
        ) from error
