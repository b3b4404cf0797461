"""Contact sheets: a grid of pictures with a short label under each, as one PNG.

The same input gives the same bytes on every machine with the same Pillow: the font is the one inside Pillow.
"""

import io
import textwrap
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from dalle_model.errors import DataError

_PAPER = (255, 255, 255)
_INK = (32, 32, 32)
_GREY = (224, 224, 224)
_GAP_PX = 6
_FONT_PX = 11
_LINE_PX = 13


def contact_sheet(
    images: Sequence[bytes | npt.NDArray[np.uint8] | None],
    labels: Sequence[str],
    columns: int = 8,
    px: int = 96,
    *,
    max_bytes: int = 200_000,
) -> bytes:
    """Pictures (encoded bytes, uint8 [H, W, 3], or None for a grey tile that shows its label) -> PNG bytes.

    ``px`` is the side of a tile; pictures keep their aspect. Up to two lines of label stand under each tile.
    A sheet above ``max_bytes`` is stored with 256 and then with 64 colours: it is shown in a web page, not measured.
    """
    if len(images) != len(labels):
        raise DataError(
            f"a contact sheet needs one label per picture, got {len(images)} pictures and {len(labels)} labels"
        )
    columns = max(1, min(columns, len(images) or 1))
    font = ImageFont.load_default(size=_FONT_PX)
    tile_w, tile_h = px + _GAP_PX, px + 2 * _LINE_PX + _GAP_PX
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (max(columns * tile_w + _GAP_PX, 240), max(rows, 1) * tile_h + _GAP_PX), _PAPER)
    draw = ImageDraw.Draw(sheet)
    if not images:
        draw.text((_GAP_PX, _GAP_PX), "nothing to show", fill=_INK, font=font)
    for number, (picture, label) in enumerate(zip(images, labels, strict=True)):
        left = _GAP_PX + (number % columns) * tile_w
        top = _GAP_PX + (number // columns) * tile_h
        _tile(sheet, picture, left, top, px)
        for line, text in enumerate(_lines(label, font, px)):
            draw.text((left, top + px + 1 + line * _LINE_PX), text, fill=_INK, font=font)
    return _png(sheet, max_bytes)


def _tile(sheet: Image.Image, picture: bytes | npt.NDArray[np.uint8] | None, left: int, top: int, px: int) -> None:
    if picture is None:
        ImageDraw.Draw(sheet).rectangle((left, top, left + px - 1, top + px - 1), fill=_GREY)
        ImageDraw.Draw(sheet).line(
            (left + px // 3, top + px // 3, left + 2 * px // 3, top + 2 * px // 3), fill=_PAPER, width=3
        )
        ImageDraw.Draw(sheet).line(
            (left + 2 * px // 3, top + px // 3, left + px // 3, top + 2 * px // 3), fill=_PAPER, width=3
        )
        return
    image = Image.open(io.BytesIO(picture)).convert("RGB") if isinstance(picture, bytes) else Image.fromarray(picture)
    scale = px / max(image.size)
    # Enlarged pictures keep hard pixels: a sheet must not flatter what it shows.
    resample = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    shown = image.resize(size, resample) if size != image.size else image
    sheet.paste(shown, (left + (px - size[0]) // 2, top + (px - size[1]) // 2))


def _lines(label: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, px: int) -> list[str]:
    """The label in at most two lines no wider than a tile."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in label).split())[:200]
    per_line = max(4, int(px / max(font.getlength(plain) / max(len(plain), 1), 1)))
    lines = textwrap.wrap(plain, per_line)[:2]
    if len(lines) == 2 and len(" ".join(lines)) < len(plain):
        lines[1] = lines[1][: max(per_line - 1, 1)].rstrip() + "…"
    return [_fitted(line, font, px) for line in lines]


def _fitted(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, px: int) -> str:
    while len(text) > 1 and font.getlength(text) > px + _GAP_PX - 1:
        text = text[:-2].rstrip("…") + "…" if len(text) > 2 else text[:-1]
    return text


def _png(sheet: Image.Image, max_bytes: int) -> bytes:
    for colours in (0, 256, 64):
        out = io.BytesIO()
        stored = sheet.quantize(colours, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE) if colours else sheet
        stored.save(out, "PNG", optimize=True)
        if out.tell() <= max_bytes:
            break
    return out.getvalue()
