"""Contact sheets: a grid of pictures with a short label under each, as one PNG.

The same input gives the same bytes on every machine with the same Pillow: the font is a package, Source Sans Pro (OFL). It
has the letters of Latin, Greek and Cyrillic; Pillow's own has those of English, and "Häuser" was "H□user". Other scripts
(CJK, Arabic, ...) are boxes here; the HTML pages beside the sheets show them in the reader's fonts.
"""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from dalle_model.errors import DataError

_PAPER = (255, 255, 255)
_INK = (32, 32, 32)
_GREY = (224, 224, 224)
_GAP_PX = 6
_FONT_PX = 12
_LINE_PX = 13
_TITLE_PX = 26


Tile = bytes | npt.NDArray[np.uint8] | None
"""An encoded picture, a uint8 [H, W, 3] array, or None for a grey tile that shows its label."""


@dataclass(frozen=True)
class Section:
    """A block of a sheet under its own title (empty: no title line). One label per picture."""

    title: str
    images: Sequence[Tile]
    labels: Sequence[str]


def contact_sheet(
    images: Sequence[Tile], labels: Sequence[str], columns: int = 8, px: int = 96, *, max_bytes: int = 200_000
) -> bytes:
    """Pictures with labels -> PNG bytes. ``px`` is the side of a tile; pictures keep their aspect."""
    return sectioned_sheet([Section("", images, labels)], columns, (px, px), max_bytes=max_bytes)


def sectioned_sheet(
    sections: Sequence[Section], columns: int, tile_px: tuple[int, int], *, max_bytes: int = 200_000
) -> bytes:
    """Sections one below the other -> PNG bytes. ``tile_px`` is (width, height); pictures keep their aspect.

    Up to two lines of label stand under each tile. A sheet above ``max_bytes`` is stored with 256 and then with 64
    colours: it is shown in a web page, not measured. Raises DataError when pictures and labels do not pair up.
    """
    for section in sections:
        if len(section.images) != len(section.labels):
            raise DataError(
                f"a contact sheet needs one label per picture, got {len(section.images)} pictures and {len(section.labels)} labels"
            )
    columns = max(1, min(columns, max((len(s.images) for s in sections), default=1)))
    font = _font(_FONT_PX)
    tile_w, tile_h = tile_px[0] + _GAP_PX, tile_px[1] + 2 * _LINE_PX + _GAP_PX
    heights = [(_TITLE_PX if s.title else 0) + max(-(-len(s.images) // columns), 1) * tile_h for s in sections]
    sheet = Image.new("RGB", (max(columns * tile_w + _GAP_PX, 240), sum(heights) + _GAP_PX), _PAPER)
    top = _GAP_PX
    for section, height in zip(sections, heights, strict=True):
        _section(sheet, section, top, columns, tile_px, font)
        top += height
    return _png(sheet, max_bytes)


def _font(px: int) -> ImageFont.FreeTypeFont:
    with as_file(files("font_source_sans_pro") / "files" / "SourceSansPro-Regular.ttf") as path:
        # Basic layout: the better one is a library that one machine has and another has not.
        return ImageFont.truetype(str(path), px, layout_engine=ImageFont.Layout.BASIC)


def _section(
    sheet: Image.Image, section: Section, top: int, columns: int, tile_px: tuple[int, int], font: ImageFont.FreeTypeFont
) -> None:
    draw = ImageDraw.Draw(sheet)
    if section.title:
        draw.text((_GAP_PX, top + 3), section.title, fill=_INK, font=_font(_FONT_PX + 2))
        top += _TITLE_PX
    if not section.images:
        draw.text((_GAP_PX, top), "nothing to show", fill=_INK, font=font)
    width, height = tile_px
    for number, (picture, label) in enumerate(zip(section.images, section.labels, strict=True)):
        left = _GAP_PX + (number % columns) * (width + _GAP_PX)
        above = top + (number // columns) * (height + 2 * _LINE_PX + _GAP_PX)
        _tile(sheet, picture, left, above, tile_px)
        for line, text in enumerate(_lines(label, font, width)):
            draw.text((left, above + height + 1 + line * _LINE_PX), text, fill=_INK, font=font)


def _tile(sheet: Image.Image, picture: Tile, left: int, top: int, tile_px: tuple[int, int]) -> None:
    width, height = tile_px
    if picture is None:
        draw = ImageDraw.Draw(sheet)
        draw.rectangle((left, top, left + width - 1, top + height - 1), fill=_GREY)
        x, y, reach = left + width // 2, top + height // 2, min(width, height) // 6
        draw.line((x - reach, y - reach, x + reach, y + reach), fill=_PAPER, width=3)
        draw.line((x + reach, y - reach, x - reach, y + reach), fill=_PAPER, width=3)
        return
    image = Image.open(io.BytesIO(picture)).convert("RGB") if isinstance(picture, bytes) else Image.fromarray(picture)
    scale = min(width / image.width, height / image.height)
    # Enlarged pictures keep hard pixels: a sheet must not flatter what it shows.
    resample = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    shown = image.resize(size, resample) if size != image.size else image
    sheet.paste(shown, (left + (width - size[0]) // 2, top + (height - size[1]) // 2))


def _lines(label: str, font: ImageFont.FreeTypeFont, px: int) -> list[str]:
    """The label in at most two lines no wider than a tile; a newline in it begins the second line."""
    first, _, second = label.partition("\n")
    lines = [line for part in (first, second) for line in _wrapped(part, font, px)]
    return [lines[0], _wrapped(second, font, px)[0]] if second and len(lines) > 2 else lines[:2]


def _wrapped(text: str, font: ImageFont.FreeTypeFont, px: int) -> list[str]:
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())[:200]
    per_line = max(4, int(px / max(font.getlength(plain) / max(len(plain), 1), 1)))
    lines = textwrap.wrap(plain, per_line)[:2]
    if len(lines) == 2 and len(" ".join(lines)) < len(plain):
        lines[1] = lines[1][: max(per_line - 1, 1)].rstrip() + "…"
    return [_fitted(line, font, px) for line in lines]


def _fitted(text: str, font: ImageFont.FreeTypeFont, px: int) -> str:
    while len(text) > 1 and font.getlength(text) > px + _GAP_PX // 2:
        text = text[:-2].rstrip("…") + "…" if len(text) > 2 else text[:-1]
    return text


def _png(sheet: Image.Image, max_bytes: int) -> bytes:
    out = io.BytesIO()
    # So many colours take more bytes than that: packing them in full to find out is the dearest part of a sheet.
    for colours in (0, 256, 64) if sheet.getcolors(max_bytes // 2) else (256, 64):
        out = io.BytesIO()
        # The tree is a tenth of median cut's time for a tenth more error. The highest level of packing takes twice as
        # long for a hundredth of the bytes.
        stored = sheet.quantize(colours, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE) if colours else sheet
        stored.save(out, "PNG", compress_level=6)
        if out.tell() <= max_bytes:
            break
    return out.getvalue()
