"""Rows of a source as a test compares them, and archives for it to read."""

import io
import tarfile
from pathlib import Path
from typing import Any

from dalle_model.config import IngestConfig
from dalle_model.decoding import Refused
from dalle_model.sources.registry import open_source


def seen(source: str, start: int = 0, **config: Any) -> list[tuple[str, Any, str]]:
    """Key, caption, and the reason against each row."""
    rows = open_source(IngestConfig(source=source, **config)).rows(start)
    return [(r.key, r.caption, r.image.reason.value if isinstance(r.image, Refused) else "") for r in rows]


def tar_of(path: Path, members: dict[str, bytes]) -> None:
    """A tar of members by name."""
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
