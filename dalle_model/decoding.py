"""Encoded pictures of unknown origin -> clean RGB pictures, or a reason from a closed list.

``decode`` is pure and runs in a child process (see ``decode_pool``): the limits on memory and time are set there,
because no limit inside Pillow catches them all (a 34-byte WebP may cost 1.7 GB, a JPEG of 0.5 MB may scan for minutes).
The order of the checks is the contract: bytes, magic, header, pixels, one attempt to decode. A second attempt on the
same object is never made: Pillow then returns silent garbage for almost half of the broken files.

This module imports Pillow and nothing heavier, so that a decoding child starts in a few hundredths of a second.
"""

import io
import re
import struct
import warnings
import zlib
from dataclasses import dataclass
from enum import StrEnum

from PIL import AvifImagePlugin, Image, ImageChops, ImageCms, ImageFile

from dalle_model.picture_bytes import sniff, unread, webp_size, without_end


class Reason(StrEnum):
    """Why ingest refused a row. The list is closed: ledgers, funnels and tests count on it."""

    MISSING_FILE = "missing_file"
    OUTSIDE_SOURCE = "outside_source"
    NOT_A_FILE = "not_a_file"
    UNREADABLE_FILE = "unreadable_file"
    BAD_METADATA = "bad_metadata"
    NO_CAPTION = "no_caption"
    CAPTION_NOT_TEXT = "caption_not_text"
    CAPTION_TOO_LONG = "caption_too_long"
    NO_IMAGE = "no_image"
    EMPTY_FILE = "empty_file"
    TOO_MANY_BYTES = "too_many_bytes"
    UNKNOWN_FORMAT = "unknown_format"
    TOO_MANY_PIXELS = "too_many_pixels"
    SIDE_TOO_LONG = "side_too_long"
    ASPECT_TOO_LONG = "aspect_too_long"
    UNSUPPORTED_MODE = "unsupported_mode"
    BROKEN_IMAGE = "broken_image"
    TOO_MUCH_MEMORY = "too_much_memory"
    TOO_SLOW = "too_slow"
    DECODER_DIED = "decoder_died"
    # a URL that was not fetched; `sources.fetching` says which of these are worth another try
    BAD_URL = "bad_url"
    ADDRESS_REFUSED = "address_refused"
    ROBOTS_TXT = "robots_txt"
    X_ROBOTS_TAG = "x_robots_tag"
    TDM_RESERVED = "tdm_reserved"
    HOST_UNKNOWN = "host_unknown"
    TLS_FAILED = "tls_failed"
    HTTP_STATUS = "http_status"
    BAD_RESPONSE = "bad_response"
    TOO_MANY_REDIRECTS = "too_many_redirects"
    FETCH_TIMEOUT = "fetch_timeout"
    UNREACHABLE = "unreachable"
    SERVER_BUSY = "server_busy"
    CUT_OFF = "cut_off"
    KNOWN = "known"  # the pair is in the earlier set already


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """What a picture must satisfy and how it is stored."""

    image_px: int
    background: str = "#ffffff"
    max_bytes: int = 20_000_000
    max_mpx: float = 25.0
    max_side_px: int = 16_384
    max_aspect: float = 20.0
    vector: bool = False  # the source is trusted to hold SVG, which is drawn at image_px


@dataclass(frozen=True, slots=True)
class Decoded:
    """A clean picture. ``source_width`` and ``source_height`` are 0 for a vector picture: it has no pixels of its own."""

    image: bytes
    width: int
    height: int
    source_width: int
    source_height: int
    format: str
    notes: tuple[str, ...] = ()  # what was changed on the way, e.g. "oriented", "first_frame"; counted in the stats


@dataclass(frozen=True, slots=True)
class Refused:
    """A rejection: the reason, the measured value behind it (or None) and words for a person."""

    reason: Reason
    detail: str
    score: float | None = None


_ADDRESS = re.compile(r" <[^>]* at 0x[0-9a-f]+>")
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_PLAIN = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", *_SIXTEEN_BIT)


def decode(data: bytes, settings: DecodeSettings) -> Decoded | Refused:
    """One attempt. Raises MemoryError alone; whatever else a decoder raises becomes ``broken_image``."""
    if not data:
        return Refused(Reason.EMPTY_FILE, "0 bytes", 0)
    if len(data) > settings.max_bytes:
        return Refused(Reason.TOO_MANY_BYTES, f"{len(data)} bytes, the limit is {settings.max_bytes}", len(data))
    if settings.vector:
        return _draw(data, settings)
    kind = sniff(data)
    if kind is None:
        known = unread(data)
        words = f"a {known} file; convert it" if known else f"starts with {data[:8]!r}"
        return Refused(Reason.UNKNOWN_FORMAT, f"{words}; JPEG, PNG, WebP, AVIF, GIF, TIFF and BMP are read")
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    with warnings.catch_warnings():
        # Pillow warns of corrupt EXIF and odd headers: noise here. A bomb is caught by our own pixel limit.
        warnings.simplefilter("ignore")
        Image.MAX_IMAGE_PIXELS = None
        AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # a pool has a process for each processor
        try:
            return _decode_raster(data, kind, settings)
        except MemoryError:
            raise
        except Exception as error:  # seven types come out of Pillow; the closed list has one name for them
            # Pillow names the stream by its address: without it the same file has the same words in every run.
            words = _ADDRESS.sub("", str(error))
            return Refused(Reason.BROKEN_IMAGE, f"{kind}: {type(error).__name__}: {words}"[:300])


def _decode_raster(data: bytes, kind: str, settings: DecodeSettings) -> Decoded | Refused:
    if kind == "WEBP" and (refusal := _refuse_size(*webp_size(data), settings)):
        return refusal  # Pillow allocates the whole picture when it opens a WebP
    endless = without_end(data) if kind == "JPEG" else data
    image: Image.Image = Image.open(io.BytesIO(endless), formats=(kind,))
    width, height = image.size
    if refusal := _refuse_size(width, height, settings):
        return refusal
    if image.mode not in _PLAIN:
        return Refused(
            Reason.UNSUPPORTED_MODE,
            f"pixel mode {image.mode}; 8-bit and 16-bit grey, RGB, CMYK, Lab and palettes are read",
        )
    notes = []
    if _has_frames(image):
        notes.append("first_frame")
    if kind == "JPEG":
        # The DCT scales by 1/2, 1/4, 1/8 for free; it stops above the wanted size, so quality is kept by the resize.
        image.draft(image.mode, _fit(width, height, settings.image_px))
    try:
        image.load()
    except OSError as error:
        if endless is data or "truncated" not in str(error):
            raise
        return Refused(Reason.BROKEN_IMAGE, "JPEG: the data end before the last row")
    if kind == "PNG" and _rows_are_missing(data, image):
        return Refused(Reason.BROKEN_IMAGE, "PNG: the data end before the last row")
    profile, orientation = image.info.get("icc_profile"), _orientation(image)
    if image.mode in _SIXTEEN_BIT:
        notes.append("sixteen_bit")
    if image.info.keys() & {"exif", "xmp", "comment", "XML:com.adobe.xmp", "photoshop"} or len(
        getattr(image, "text", ())
    ):
        notes.append("metadata_stripped")
    if kind == "PNG":
        _set_key(image, data[24])
    picture = _scaled(_plain(image), settings.image_px)
    picture, cms = _in_srgb(picture, profile)
    flat = _on_background(picture, settings.background)
    if cms:
        notes.append(cms)
    if flat is not picture and picture.mode in ("RGBA", "LA"):
        notes.append("alpha_flattened")
    if orientation > 1:
        flat = _oriented(flat, orientation)
        notes.append("oriented")
        if orientation >= 5:
            width, height = height, width
    return Decoded(_encode(flat, kind), flat.width, flat.height, width, height, kind, tuple(notes))


def _refuse_size(width: int, height: int, settings: DecodeSettings) -> Refused | None:
    if width < 1 or height < 1:
        return Refused(Reason.BROKEN_IMAGE, f"{width} x {height} px")
    mpx, side, aspect = width * height / 1e6, max(width, height), max(width, height) / min(width, height)
    size = f"{width} x {height} px"
    if mpx > settings.max_mpx:
        return Refused(Reason.TOO_MANY_PIXELS, f"{size} are {mpx:.1f} Mpx, the limit is {settings.max_mpx:g}", mpx)
    if side > settings.max_side_px:
        return Refused(Reason.SIDE_TOO_LONG, f"{size}, the limit is {settings.max_side_px}", side)
    if aspect > settings.max_aspect:
        return Refused(
            Reason.ASPECT_TOO_LONG, f"{size}, aspect {aspect:.1f}, the limit is {settings.max_aspect:g}", aspect
        )
    return None


def _has_frames(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a later frame is damaged; the first one is what we read
        return True


def _rows_are_missing(data: bytes, image: Image.Image) -> bool:
    """Whether a PNG holds fewer rows than it says. Pillow then leaves the rest black and reports nothing.

    Only looked into when the last row is empty: counting means inflating all pixels a second time.
    """
    width, height, bits, colour, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    last_row = image.crop((0, height - 1, width, height))
    if interlaced or last_row.getbbox(alpha_only=False) is not None:
        return False
    row_bytes = 1 + (width * bits * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour] + 7) // 8
    inflater, found, at = zlib.decompressobj(), 0, 8
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"IDAT":
            found += len(inflater.decompress(data[at + 8 : at + 8 + length], 1 << 20))
            while inflater.unconsumed_tail:
                found += len(inflater.decompress(inflater.unconsumed_tail, 1 << 20))
        at += 12 + length
    return bool(found < height * row_bytes)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8 of a loaded picture; 1 when there is none or it cannot be read."""
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # EXIF is often damaged; the pixels are already loaded and are what counts
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _oriented(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TURNS[orientation])


def _set_key(image: Image.Image, bits: int) -> None:
    """The transparent colour of a PNG (tRNS) on the scale of its pixels as Pillow unpacks them: to 8 bits, grey of 16 alone as it is."""
    key = image.info.get("transparency")
    if image.mode == "RGB" and bits == 16 and isinstance(key, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in key)
    elif image.mode == "L" and bits < 8 and isinstance(key, int):
        image.info["transparency"] = (key & (2**bits - 1)) * 255 // (2**bits - 1)


def _all_but(wide: Image.Image, key: int) -> Image.Image:
    """Alpha of a picture of mode I: 0 where its value is ``key``, else 255."""
    above, below = (wide.point(lambda value, s=sign: value * s - s * key).convert("L") for sign in (1, -1))
    return ImageChops.add(above, below).point([0, *[255] * 255])


def _plain(image: Image.Image) -> Image.Image:
    """L, RGB, RGBA, CMYK or LAB. 16-bit grey is divided by 257, where Pillow's own conversion clips at 255."""
    mode = image.mode
    if mode in _SIXTEEN_BIT:
        wide = image.convert("I")
        low, high = wide.getextrema()
        if not (isinstance(low, int | float) and isinstance(high, int | float)) or low < 0 or high > 65_535:
            raise ValueError(f"values {low} to {high} lie outside 16 bits")
        bits = getattr(image, "tag_v2", {}).get(258, (16,))  # TIFF's BitsPerSample: scanners write 12
        scale = 255 / (2 ** bits[0] - 1) if mode != "I" and 8 < bits[0] <= 16 else 1 / 257
        grey, key = wide.point(lambda value: value * scale + 0.5).convert("L"), image.info.get("transparency")
        return Image.merge("LA", (grey, _all_but(wide, key))).convert("RGBA") if isinstance(key, int) else grey
    if mode in ("P", "PA", "LA", "La", "RGBa"):
        opaque = mode == "P" and "transparency" not in image.info
        return image.convert("RGB" if opaque else "RGBA")
    if "transparency" in image.info and mode in ("1", "L", "RGB"):
        return image.convert("RGBA")
    return (
        image.convert({"1": "L", "RGBX": "RGB", "YCbCr": "RGB", "HSV": "RGB"}[mode])
        if mode in ("1", "RGBX", "YCbCr", "HSV")
        else image
    )


def _fit(width: int, height: int, px: int) -> tuple[int, int]:
    """Size whose longer side is ``px``, or the size itself when it is smaller already."""
    if max(width, height) <= px:
        return width, height
    scale = px / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _scaled(image: Image.Image, px: int) -> Image.Image:
    size = _fit(image.width, image.height, px)
    if size == image.size:
        return image
    # Resized before colour, alpha and turning are dealt with: those then touch few pixels. Pillow multiplies by
    # alpha for the resize, so hidden pixels do not bleed.
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def _in_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, str]:
    """sRGB by the embedded profile. A profile that does not fit is ignored, and that is noted."""
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return _transformed(image, lab, srgb, "RGB"), "lab_to_srgb"
    if profile:
        alpha = image.getchannel("A") if image.mode == "RGBA" else None
        colour = image.convert("RGB") if alpha is not None else image
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            target = _transformed(colour, source, ImageCms.createProfile("sRGB"), "RGB")
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            return (image.convert("RGB") if image.mode == "CMYK" else image), "bad_icc_profile"
        if alpha is not None:
            target.putalpha(alpha)
        return target, "icc_to_srgb"
    return (image.convert("RGB"), "cmyk_without_profile") if image.mode == "CMYK" else (image, "")


def _transformed(image: Image.Image, source: object, target: object, mode: str) -> Image.Image:
    out = ImageCms.profileToProfile(image, source, target, outputMode=mode)  # type: ignore[arg-type]  # accepts profiles as well as paths
    if out is None:
        raise ValueError("colour conversion gave nothing")
    return out


def _on_background(image: Image.Image, background: str) -> Image.Image:
    if image.mode != "RGBA":
        return image.convert("RGB")
    paper = Image.new("RGBA", image.size, background)
    return Image.alpha_composite(paper, image).convert("RGB")


def _encode(image: Image.Image, kind: str) -> bytes:
    """PNG, or JPEG for what was a JPEG: a photograph as PNG is several times larger. No metadata is written."""
    clean = Image.new("RGB", image.size)
    clean.paste(image)
    out = io.BytesIO()
    if kind == "JPEG":
        clean.save(out, "JPEG", quality=95, subsampling=0)
    else:
        clean.save(out, "PNG")
    return out.getvalue()


def _draw(data: bytes, settings: DecodeSettings) -> Decoded | Refused:
    """An SVG of a trusted source, drawn with its longer side at ``image_px``."""
    import resvg_py

    try:
        png = resvg_py.svg_to_bytes(
            svg_string=data.decode(), width=settings.image_px, height=settings.image_px, skip_system_fonts=True
        )
        image = _on_background(Image.open(io.BytesIO(png), formats=("PNG",)), settings.background)
    except (ValueError, OSError) as error:
        return Refused(Reason.BROKEN_IMAGE, f"SVG: {error}"[:300])
    return Decoded(_encode(image, "SVG"), image.width, image.height, 0, 0, "SVG")
