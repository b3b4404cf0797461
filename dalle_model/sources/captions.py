"""What counts as a caption at all; whether it is a good one is curation's business."""

import codecs
import html
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from html.entities import html5
from typing import Any

from dalle_model.decoding import Reason, Refused
from dalle_model.records import normalise_caption
from dalle_model.sources.base import Row

MAX_CAPTIONS = 100  # of one picture

_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")  # only with its semicolon: AT&T


def _character(found: re.Match[str]) -> str:
    """What a whole reference stands for; itself where its name is unknown (``html.unescape`` makes "¬it;" of "&notit;")."""
    whole = found[0]
    return html.unescape(whole) if whole[1] == "#" else html5.get(whole[1:], whole)


def each_caption(row: Row) -> Iterator[Row]:
    """The row itself; where its caption is a list of captions, one row for each of them."""
    captions = row.caption
    if not isinstance(captions, list):
        yield row
    elif len(captions) > MAX_CAPTIONS:
        refused = Refused(
            Reason.BAD_METADATA, f"{len(captions)} captions of one picture, the limit is {MAX_CAPTIONS}; leave the best"
        )
        yield replace(row, caption="", image=refused)
    else:
        yield from (replace(row, caption=caption) for caption in captions or [None])


def place_of(number: int, captions: Iterable[Any]) -> tuple[int, int]:
    """(record, rows of it that come before) of row ``number``, given the caption of each record."""
    record = 0
    for record, caption in enumerate(captions):
        rows = len(caption) if isinstance(caption, list) and 0 < len(caption) <= MAX_CAPTIONS else 1
        if number < rows:
            return record, number
        number -= rows
    return record + 1, number


def text_of(value: Any) -> Any:
    """A caption that is stored as bytes, as text; what is no UTF-8 stays bytes, which are refused."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    return [text_of(each) for each in value] if isinstance(value, list) else value


def text_in(data: bytes) -> str:
    """The text of a file: UTF-16 behind its mark, else UTF-8. Bytes that are none become lone surrogates, which are refused."""
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return data.decode("utf-16", errors="replace")
    return data.decode("utf-8-sig", errors="surrogateescape")


def check_caption(value: Any, max_chars: int) -> str | Refused:
    """The normalised caption, or why there is none.

    Kept: HTML, any script, right-to-left text. Character references (``&amp;``, ``&#233;``) are what they stand for,
    decoded once: alt texts of the web come with them. Control and format characters (bidi overrides, zero-width) are
    dropped by the normalisation. Refused: what is no text, NUL and lone surrogates (the text was cut or mis-decoded before it
    reached us), nothing visible, more than ``max_chars``.
    """
    if value is None:
        return Refused(Reason.NO_CAPTION, "the row has no caption")
    if not isinstance(value, str):
        return Refused(Reason.CAPTION_NOT_TEXT, f"the caption is a {type(value).__name__}, not a text")
    if len(value) > max_chars:
        return Refused(Reason.CAPTION_TOO_LONG, f"{len(value)} characters, the limit is {max_chars}", len(value))
    if "&" in value:
        value = _ENTITY.sub(_character, value)
    if "\0" in value:
        return Refused(Reason.CAPTION_NOT_TEXT, "the caption holds a NUL")
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        return Refused(
            Reason.CAPTION_NOT_TEXT, "the caption is not valid UTF-8 (lone surrogates); save its file as UTF-8"
        )
    caption = normalise_caption(value)
    return caption or Refused(Reason.NO_CAPTION, "the caption is empty")
