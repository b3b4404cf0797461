"""Markdown that Prefect's two user interfaces show alike: text from outside, tables, paths and pictures.

What each of them does was seen in a browser, Prefect 3.8: the older one never breaks a line in a table's cell, so a
long text there leaves the page, and stretches a picture to no more than its own width; the newer one breaks lines, sets
wide margins around pictures, and scales them down in a table. Both show PNG, JPEG and WebP as data URIs.
"""

import io
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from tasks.curves import number
from tasks.pages import data_uri, shown

MAX_PICTURE_BYTES = 150_000  # encoded; a third more as base64


@dataclass(frozen=True)
class Card:
    """One markdown artifact. ``key`` (lower case, digits, dashes) is the same at every run of the step."""

    key: str
    description: str
    markdown: str


def key_of(*parts: str) -> str:
    """An artifact key as Prefect wants it: ``fit_tokenizer``, ``sheet.kept`` -> ``fit-tokenizer-sheet-kept``."""
    text = "-".join(parts).lower()
    return "-".join(re.findall("[a-z0-9]+", text))


def escaped(text: object) -> str:
    """Text that markdown shows as it is: a backslash before every ASCII mark (Prefect's older UI shows character
    references literally, the newer one does not; both take backslashes). Line ends become spaces, so that a caption
    cannot leave its table cell; hidden characters are named.
    """
    line = " ".join(shown(str(text)).split())
    return "".join(f"\\{c}" if c in string.punctuation else c for c in line)


def small_picture(image: bytes, limit: int = MAX_PICTURE_BYTES) -> bytes:
    """The picture itself when it has at most ``limit`` bytes, else a JPEG that does: quality gives first, then size."""
    if len(image) <= limit and data_uri(image):
        return image
    with Image.open(io.BytesIO(image)) as opened:
        picture = opened.convert("RGB")
    for side in (1600, 1280, 1024, 800, 640, 480, 320):
        picture.thumbnail((side, side * 4), Image.Resampling.LANCZOS)
        for quality in (88, 75):
            out = io.BytesIO()
            picture.save(out, "JPEG", quality=quality, subsampling=0)
            if out.tell() <= limit:
                return out.getvalue()
    return out.getvalue()


def plain(value: Any) -> str:
    """A number with a few digits; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return number(value)


def size(num_bytes: int) -> str:
    """Bytes in the largest unit that they fill."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes} B"


def paths(named: Sequence[tuple[str, str]]) -> str:
    """Long paths in a fenced block, which scrolls; in a line or a table they would run off the page."""
    lines = [f"{name}  {' '.join(path.split())}" for name, path in named]
    return "\n".join(("```", *lines, "```"))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Cells as they are, so escaped by the caller; ``right``: columns set flush right. Keep cells short."""
    rule = ["---:" if i in right else "---" for i in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))
