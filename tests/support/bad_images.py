"""A folder of rubbish that calls itself pictures, with the outcome that ingest owes to each file.

Everything is made here from a few lines of code: no file of the corpus comes from elsewhere.
"""

import io
import json
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

KEPT = "kept"
ANY = "kept or rejected"  # both are right: the file is damaged in a way that decoders may survive


@dataclass(frozen=True)
class BadFile:
    """A file, or something else at its path, and the reason it must be rejected with (or KEPT, ANY)."""

    name: str
    data: bytes
    outcome: str


def photo(width: int = 160, height: int = 120, seed: int = 0) -> Image.Image:
    """Smooth colours with some noise: compresses like a photograph."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def corners() -> Image.Image:
    """Four flat quarters: red, green over blue, white. Shows how a picture was turned."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:24, :32], pixels[:24, 32:], pixels[24:, :32], pixels[24:, 32:] = (
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (255, 255, 255),
    )
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG from raw filtered rows, which may be fewer than the header promises."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def flat_png(width: int, height: int) -> bytes:
    """A valid RGBA PNG of one colour: megapixels in kilobytes."""
    packer = zlib.compressobj(9)
    row = b"\0" + b"\x40\x80\xc0\xff" * width
    body = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts
    )


def tiny_webp_of(width: int, height: int) -> bytes:
    """A lossless WebP of one colour in a few dozen bytes whatever its size in pixels."""
    small = bytearray(encoded(Image.new("RGBA", (16, 16), (10, 20, 30, 255)), "WEBP", lossless=True))
    at = small.index(b"VP8L") + 8
    assert small[at] == 0x2F
    bits = int.from_bytes(small[at + 1 : at + 5], "little")
    bits = (bits & ~0xFFFFFFF) | (width - 1) | ((height - 1) << 14)
    small[at + 1 : at + 5] = bits.to_bytes(4, "little")
    return bytes(small)


def scan_bomb(side: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated: small in bytes and pixels, minutes of decoding."""
    data = encoded(Image.new("RGB", (side, side), (90, 120, 200)), "JPEG", progressive=True, quality=30)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + b"\xff\xd9"


def wide_rgb_png() -> bytes:
    """16-bit RGB, every sample 0x8080."""
    row = b"\0" + b"\x80\x80" * 3 * 32
    return png(32, 32, 16, 2, row * 32)


def corpus() -> list[BadFile]:
    """Files that are regular files. See ``build`` for the rest."""
    whole_jpeg, whole_png = encoded(photo(), "JPEG", quality=90), encoded(photo(), "PNG")
    files = [
        BadFile("good.jpg", whole_jpeg, KEPT),
        BadFile("good.png", whole_png, KEPT),
        BadFile("png_called.jpg", whole_png, KEPT),
    ]
    for n in range(1, 21):
        for whole, kind in ((whole_jpeg, "jpg"), (whole_png, "png")):
            files.append(
                BadFile(f"cut_{n:02d}.{kind}", whole[: len(whole) * n // 21], ANY if n > 1 else "broken_image")
            )
    files += _not_pictures(whole_png) + _modes() + _turned() + _large() + _many_frames() + _profiles(whole_png)
    return files


def _not_pictures(whole_png: bytes) -> list[BadFile]:
    noise = np.random.default_rng(1).bytes(4000)
    text_bomb = PngImagePlugin.PngInfo()
    text_bomb.add_text("bomb", "a" * 80_000_000, zip=True)
    return [
        BadFile("empty.png", b"", "empty_file"),
        BadFile("one_byte.png", b"\x89", "unknown_format"),
        BadFile("text.jpg", b"this is no picture\n" * 20, "unknown_format"),
        BadFile("page.png", b"<!doctype html><title>404</title>", "unknown_format"),
        BadFile("vector.png", b'<svg xmlns="http://www.w3.org/2000/svg"/>', "unknown_format"),
        BadFile("archive.png", b"PK\x03\x04" + noise, "unknown_format"),
        BadFile("postscript.png", b"%!PS-Adobe-3.0 EPSF-3.0\n{} loop\n", "unknown_format"),
        BadFile("icon.png", encoded(photo(32, 32), "ICO"), "unknown_format"),
        BadFile("noise.jpg", b"\xff\xd8\xff\xe0" + noise, "broken_image"),
        BadFile("noise.webp", b"RIFF\xff\x0f\0\0WEBP" + noise, "broken_image"),
        BadFile("noise.gif", b"GIF89a" + noise, ANY),
        BadFile("noise.tif", b"II*\0" + noise, "broken_image"),
        BadFile("noise.bmp", b"BM" + noise, "broken_image"),
        BadFile("text_bomb.png", encoded(photo(8, 8), "PNG", pnginfo=text_bomb), "broken_image"),
        BadFile(
            "flipped.png",
            whole_png[:200] + bytes(b ^ 0xFF for b in whole_png[200:260]) + whole_png[260:],
            "broken_image",
        ),
        BadFile("missing_rows.png", png(100, 100, 8, 2, (b"\0" + b"\x80" * 300) * 3), "broken_image"),
        BadFile("zero_px.png", png(0, 10, 8, 2, b""), "broken_image"),
        BadFile("heavy.png", whole_png + b"\0" * 20_000_000, "too_many_bytes"),
    ]


def _modes() -> list[BadFile]:
    grey16 = Image.fromarray(np.full((32, 32), 0x8080, np.uint16))
    hidden = np.zeros((32, 32, 4), np.uint8)
    hidden[..., 0] = 255  # red, fully transparent: must come out as background
    palette = photo().quantize(16)
    nan = Image.fromarray(np.full((8, 8), np.nan, np.float32))
    return [
        BadFile("grey16.png", encoded(grey16, "PNG"), KEPT),
        BadFile("grey16.tif", encoded(grey16, "TIFF"), KEPT),
        BadFile("rgb16.png", wide_rgb_png(), KEPT),
        BadFile("grey.png", encoded(photo().convert("L"), "PNG"), KEPT),
        BadFile("one_bit.png", encoded(photo().convert("1"), "PNG"), KEPT),
        BadFile("hidden.png", encoded(Image.fromarray(hidden), "PNG"), KEPT),
        BadFile("grey_alpha.png", encoded(photo().convert("LA"), "PNG"), KEPT),
        BadFile("palette.png", encoded(palette, "PNG"), KEPT),
        BadFile("palette_alpha.png", encoded(palette, "PNG", transparency=3), KEPT),
        BadFile("cmyk.jpg", encoded(photo().convert("CMYK"), "JPEG"), KEPT),
        BadFile("cmyk.tif", encoded(photo().convert("CMYK"), "TIFF"), KEPT),
        BadFile(
            "lab.tif",
            encoded(
                ImageCms.profileToProfile(
                    photo(), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
                ),
                "TIFF",
            ),
            KEPT,
        ),
        BadFile("float.tif", encoded(nan, "TIFF"), "unsupported_mode"),
        BadFile("int32.tif", encoded(Image.fromarray(np.full((8, 8), -5, np.int32)), "TIFF"), "broken_image"),
        BadFile("lossy.webp", encoded(photo(), "WEBP"), KEPT),
        BadFile("plain.bmp", encoded(photo(), "BMP"), KEPT),
        BadFile("one_px.png", encoded(photo(1, 1), "PNG"), KEPT),
        BadFile("progressive.jpg", encoded(photo(), "JPEG", progressive=True), KEPT),
    ]


def _turned() -> list[BadFile]:
    files = []
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        exif[0x010E] = "secret description"
        files.append(BadFile(f"turned_{orientation}.jpg", encoded(corners(), "JPEG", quality=95, exif=exif), KEPT))
    exif = Image.Exif()
    exif[0x0112] = 77
    files.append(BadFile("turned_wrong.jpg", encoded(corners(), "JPEG", exif=exif), KEPT))
    files.append(
        BadFile("exif_noise.jpg", encoded(corners(), "JPEG", exif=b"Exif\0\0" + b"II*\0\xff\xff\xff\xff" * 9), KEPT)
    )
    return files


def _large() -> list[BadFile]:
    return [
        BadFile("mpx88.png", flat_png(9400, 9400), "too_many_pixels"),
        BadFile("mpx88.webp", tiny_webp_of(9400, 9400), "too_many_pixels"),
        BadFile("mpx400.png", png(20_000, 20_000, 8, 6, b"\0"), "too_many_pixels"),
        BadFile("line.png", encoded(Image.new("L", (1, 3000)), "PNG"), "aspect_too_long"),
        BadFile("ribbon.png", encoded(Image.new("L", (17_000, 1)), "PNG"), "side_too_long"),
        BadFile("mpx24.png", flat_png(4900, 4900), KEPT),
    ]


def _many_frames() -> list[BadFile]:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "green", "blue")]
    more = {"save_all": True, "append_images": frames[1:]}
    return [
        BadFile(f"frames.{ext}", encoded(frames[0], kind, **more), KEPT)
        for ext, kind in (("gif", "GIF"), ("png", "PNG"), ("webp", "WEBP"), ("tif", "TIFF"))
    ]


def _profiles(whole_png: bytes) -> list[BadFile]:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return [
        BadFile("profile.png", encoded(photo(), "PNG", icc_profile=srgb), KEPT),
        BadFile("profile_noise.png", encoded(photo(), "PNG", icc_profile=b"no profile" * 20), KEPT),
        BadFile("profile_of_rgb_on_cmyk.jpg", encoded(photo().convert("CMYK"), "JPEG", icc_profile=srgb), KEPT),
    ]


def build(folder: Path) -> dict[str, str]:
    """Write the corpus with its metadata.jsonl; returns the outcome owed to each ``file_name``."""
    folder.mkdir(parents=True)
    owed = {}
    for file in corpus():
        (folder / file.name).write_bytes(file.data)
        owed[file.name] = file.outcome
    owed |= _special_files(folder)
    lines = [json.dumps({"file_name": name, "text": f"a picture called {name}"}) for name in owed]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return owed


def _special_files(folder: Path) -> dict[str, str]:
    outside = folder.parent / f"{folder.name}-outside.png"
    outside.write_bytes(encoded(photo(), "PNG"))
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    (folder / "out.png").symlink_to(outside)
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "dangling.png").symlink_to("nothing.png")
    (folder / "link.png").symlink_to("good.png")
    return {
        "pipe.png": "not_a_file",
        "folder.png": "not_a_file",
        "out.png": "outside_source",
        "device.png": "outside_source",
        "loop.png": "unreadable_file",
        "dangling.png": "missing_file",
        "link.png": KEPT,
        "missing.png": "missing_file",
        f"../{folder.name}-outside.png": "outside_source",
        str(outside): "outside_source",
        "/etc/passwd": "outside_source",
        "x" * 300 + ".png": "unreadable_file",
        "nul\0.png": "bad_metadata",
        "": "bad_metadata",
    }
