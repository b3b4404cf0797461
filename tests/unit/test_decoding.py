"""What decoding makes of good and odd pictures, and what it refuses."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from support.bad_images import corners, encoded, flat_png, photo, png, tiny_webp_of, wide_rgb_png

from dalle_model.decoding import Decoded, DecodeSettings, Reason, Refused, decode
from dalle_model.picture_bytes import without_end

SETTINGS = DecodeSettings(image_px=64)


def pixels(data: bytes, settings: DecodeSettings = SETTINGS) -> np.ndarray:
    result = decode(data, settings)
    assert isinstance(result, Decoded), result
    image = Image.open(io.BytesIO(result.image))
    assert image.mode == "RGB"
    assert image.size == (result.width, result.height)
    return np.asarray(image)


def reason(data: bytes, settings: DecodeSettings = SETTINGS) -> Reason:
    result = decode(data, settings)
    assert isinstance(result, Refused), result
    return result.reason


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_jpeg_comes_out_as_it_was_meant(orientation: int) -> None:
    upright = corners()
    # The inverse of what a viewer does with each orientation (EXIF 2.3, tag 0x0112).
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = pixels(encoded(stored, "JPEG", quality=95, exif=exif))
    assert shown.shape == (48, 64, 3)
    assert np.abs(shown.astype(int) - np.asarray(upright)).mean() < 8


def test_turning_swaps_the_recorded_source_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    result = decode(encoded(photo(160, 120), "JPEG", exif=exif), SETTINGS)
    assert isinstance(result, Decoded)
    assert (result.source_width, result.source_height) == (120, 160)
    assert (result.width, result.height) == (48, 64)


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    grey = Image.fromarray(np.full((32, 32), 0x8080, np.uint16))
    for kind in ("PNG", "TIFF"):
        assert (pixels(encoded(grey, kind)) == 0x80).all()
    assert (pixels(wide_rgb_png()) == 0x80).all()


def test_hidden_pixels_under_alpha_do_not_show() -> None:
    hidden = np.zeros((32, 32, 4), np.uint8)
    hidden[..., 0] = 255
    data = encoded(Image.fromarray(hidden), "PNG")
    assert (pixels(data) == 255).all()
    assert (pixels(data, DecodeSettings(64, background="#102030")) == (0x10, 0x20, 0x30)).all()


def test_alpha_does_not_bleed_when_a_picture_shrinks() -> None:
    half = np.zeros((256, 256, 4), np.uint8)
    half[:, :128] = (0, 0, 255, 255)
    half[:, 128:] = (255, 0, 0, 0)  # invisible red
    shown = pixels(encoded(Image.fromarray(half), "PNG")).astype(int)
    assert shown[:, 40:].min() >= 250
    assert (shown[:, :, 0] <= shown[:, :, 1] + 6).all(), "no red anywhere"


def test_a_transparent_palette_entry_becomes_background() -> None:
    image = Image.new("P", (16, 16), 3)
    image.putpalette([0, 0, 0] * 3 + [200, 0, 0] + [0, 0, 0] * 252)
    assert (pixels(encoded(image, "PNG", transparency=3)) == 255).all()


@pytest.mark.parametrize(
    ("bits", "colour", "hidden", "shown", "grey"),
    [
        (2, 0, b"\x55", b"\xaa", 170), (4, 0, b"\x11", b"\x22", 34), (8, 0, b"\x11", b"\x22", 34),
        (16, 0, b"\x03\xe8", b"\x22\x22", 34), (8, 2, b"\x11" * 3, b"\x22" * 3, 34),
        (16, 2, b"\x03\xe8" * 3, b"\x22\x22" * 3, 34),
    ],
)  # fmt: skip
def test_the_transparent_colour_of_a_png_is_on_the_scale_of_its_pixels(
    bits: int, colour: int, hidden: bytes, shown: bytes, grey: int
) -> None:
    """tRNS counts in the file's own bits (PNG, third edition, 11.3.1.1): what it names is not there."""
    count = 16 if bits >= 8 else 16 * bits // 8
    whole = png(32, 32, bits, colour, (b"\0" + hidden * count + shown * count) * 32)
    key = hidden if bits == 16 else b"".join(bytes([0, value & (2**bits - 1)]) for value in hidden)
    trns = struct.pack(">I", len(key)) + b"tRNS" + key + struct.pack(">I", zlib.crc32(b"tRNS" + key))
    found = pixels(whole[:33] + trns + whole[33:])
    assert found[5, 3].tolist() == [255] * 3 and found[5, -3].tolist() == [grey] * 3


def test_cmyk_white_is_white() -> None:
    assert pixels(encoded(Image.new("CMYK", (32, 32), (0, 0, 0, 0)), "JPEG")).min() >= 254


def test_colours_are_brought_to_srgb_by_the_profile() -> None:
    lab = ImageCms.profileToProfile(
        photo(), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    shown = pixels(encoded(lab, "TIFF")).astype(int)
    assert np.abs(shown - pixels(encoded(photo(), "PNG"))).mean() < 6


def test_a_broken_profile_is_ignored_and_noted() -> None:
    result = decode(encoded(photo(), "PNG", icc_profile=b"no profile" * 20), SETTINGS)
    assert isinstance(result, Decoded)
    assert "bad_icc_profile" in result.notes
    assert result.image == decode(encoded(photo(), "PNG"), SETTINGS).image  # type: ignore[union-attr]


def test_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "PNG", "TIFF"):
        result = decode(encoded(frames[0], kind, save_all=True, append_images=frames[1:]), SETTINGS)
        assert isinstance(result, Decoded)
        assert "first_frame" in result.notes
        assert (np.asarray(Image.open(io.BytesIO(result.image))) == (255, 0, 0)).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_no_metadata_survives(kind: str) -> None:
    exif = Image.Exif()
    exif[0x010E] = "secret description"
    exif.get_ifd(0x8825)[1] = "N"
    result = decode(encoded(photo(), kind, exif=exif, comment=b"secret comment"), SETTINGS)
    assert isinstance(result, Decoded)
    assert "metadata_stripped" in result.notes
    assert b"secret" not in result.image
    clean = Image.open(io.BytesIO(result.image))
    assert not clean.getexif()
    assert not {"exif", "comment", "icc_profile", "dpi"} & clean.info.keys()


def test_a_photograph_stays_jpeg_and_the_rest_becomes_png() -> None:
    for kind, kept_as in (("JPEG", "JPEG"), ("PNG", "PNG"), ("WEBP", "PNG"), ("BMP", "PNG")):
        result = decode(encoded(photo(), kind), SETTINGS)
        assert isinstance(result, Decoded)
        assert Image.open(io.BytesIO(result.image)).format == kept_as
        assert result.format == kind


def test_the_longest_side_is_kept_and_small_pictures_are_not_enlarged() -> None:
    assert pixels(encoded(photo(640, 200), "PNG")).shape == (20, 64, 3)
    assert pixels(encoded(photo(9, 7), "PNG")).shape == (7, 9, 3)


def test_a_large_jpeg_is_as_good_as_a_full_decode() -> None:
    """Scaling inside the DCT saves most of the time and must not change what is seen."""
    image = photo(1280, 960)
    data = encoded(image, "JPEG", quality=95)
    full = np.asarray(Image.open(io.BytesIO(data)).resize((64, 48), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(pixels(data) - full).mean() < 3


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", Reason.EMPTY_FILE),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 2000, Reason.TOO_MANY_BYTES),
        (b"plain text", Reason.UNKNOWN_FORMAT),
        (tiny_webp_of(1200, 1200), Reason.TOO_MANY_PIXELS),
        (png(1200, 1200, 8, 2, b""), Reason.TOO_MANY_PIXELS),
        (png(5000, 1, 8, 2, b""), Reason.ASPECT_TOO_LONG),
        (png(20_000, 20, 8, 2, b""), Reason.SIDE_TOO_LONG),
        (png(100, 100, 8, 2, b"\0" * 301), Reason.BROKEN_IMAGE),
        (encoded(Image.new("F", (4, 4), float("nan")), "TIFF"), Reason.UNSUPPORTED_MODE),
    ],
)
def test_refusals_have_a_reason_from_the_closed_list(data: bytes, expected: Reason) -> None:
    assert reason(data, DecodeSettings(64, max_mpx=1.0, max_bytes=1500)) == expected


def test_the_words_of_a_refusal_are_the_same_every_time() -> None:
    broken = encoded(photo(), "PNG")[:20] + b"rubbish" * 50
    first, second = decode(broken, SETTINGS), decode(bytes(bytearray(broken)), SETTINGS)
    assert isinstance(first, Refused)
    assert first == second
    assert "0x" not in first.detail


def test_twelve_bit_tiff_uses_its_own_range() -> None:
    # Pillow does not write 12 bits: two samples in three bytes, one strip, by hand.
    tags = [(256, 8), (257, 8), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 8), (279, 96)]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    data = b"II*\0" + struct.pack("<I", 8 + 96) + b"\xff" * 96 + directory + b"\0" * 4
    assert (pixels(data) == 255).all()


def test_the_pixel_limit_is_checked_before_anything_is_inflated() -> None:
    refused = decode(flat_png(3000, 3000), DecodeSettings(64, max_mpx=8.9))
    assert refused == Refused(Reason.TOO_MANY_PIXELS, "3000 x 3000 px are 9.0 Mpx, the limit is 8.9", 9.0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_whatever_is_cut_off_is_refused_or_whole(kind: str) -> None:
    """No cut makes a picture that is quietly half empty."""
    data = encoded(photo(200, 160), kind)
    whole = pixels(data).astype(int)
    for tenth in range(1, 10):
        result = decode(data[: len(data) * tenth // 10], SETTINGS)
        if isinstance(result, Decoded):
            assert np.abs(pixels(data[: len(data) * tenth // 10]).astype(int) - whole).mean() < 8, tenth


def test_svg_is_drawn_only_for_a_source_that_is_trusted_to_hold_it() -> None:
    pytest.importorskip("resvg_py", reason="pip install 'dalle-prefect[demo]'")
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 10 10"><rect width="5" height="10" fill="red"/></svg>'
    assert reason(svg) == Reason.UNKNOWN_FORMAT
    shown = pixels(svg, DecodeSettings(64, vector=True))
    assert shown.shape == (64, 64, 3)
    assert (shown[:, :30] == (255, 0, 0)).all()
    assert (shown[:, 34:] == 255).all()
    assert reason(b"<svg", DecodeSettings(64, vector=True)) == Reason.BROKEN_IMAGE


@pytest.mark.parametrize(
    "options", [{}, {"subsampling": 2, "quality": 30}, {"restart_marker_blocks": 3}, {"optimize": True}]
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_that_ends_early_is_broken_though_it_has_an_end_mark(mode: str, options: dict[str, Any]) -> None:
    """Its last rows would be grey, without a word."""
    whole = encoded(photo(90, 70).convert(mode), "JPEG", **options)
    for data in (whole, whole + b"\xff\xd9", whole + b"\0", whole[:-2] + bytes(16)):
        assert isinstance(decode(data, SETTINGS), Decoded)
    opened = Image.open(io.BytesIO(without_end(whole)))
    assert np.array_equal(np.asarray(opened), np.asarray(Image.open(io.BytesIO(whole))))
    for share in (0.3, 0.6, 0.9):
        start = whole.rindex(b"\xff\xda")
        found = decode(whole[: start + int(share * (len(whole) - start))] + b"\xff\xd9", SETTINGS)
        assert found == Refused(Reason.BROKEN_IMAGE, "JPEG: the data end before the last row"), share
    progressive = encoded(photo(90, 70).convert(mode), "JPEG", progressive=True)
    assert without_end(progressive) is progressive
