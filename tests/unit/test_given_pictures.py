"""Pictures and masks that a person gives to the commands for one picture: of any usual kind and shape."""

import io
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dalle_model.errors import DataError, SourceError
from flows.drawing import mask_at, picture_at
from tasks.export_model import text_to_image


def saved(folder: Path, image: Image.Image, name: str, **options: Any) -> Path:
    image.save(folder / name, **options)
    return folder / name


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.gif", "a.tiff", "a.bmp", "a.jpg"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_every_kind_that_ingest_reads_is_read(tmp_path: Path, name: str, mode: str) -> None:
    """A WebP ended with: bytes of a stored picture do not decode, run `dalle verify`."""
    image = Image.new("RGB", (9, 7), "white")
    image.paste("black", (0, 0, 9, 3))
    path = saved(tmp_path, image.convert("RGB" if mode in ("P", "1") and name in ("a.webp", "a.jpg") else mode), name)
    read = picture_at(path)
    assert read.shape == (7, 9, 3) and read[0].mean() < 20 and read[6].mean() > 235


def test_pictures_are_upright_on_white_and_of_eight_bits(tmp_path: Path) -> None:
    turned = Image.new("RGB", (8, 4), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    assert picture_at(saved(tmp_path, turned, "turned.jpg", exif=exif)).shape == (8, 4, 3)
    hidden = Image.new("RGBA", (4, 4), (255, 0, 0, 0))  # red that nobody sees
    assert (picture_at(saved(tmp_path, hidden, "hidden.png")) == 255).all()
    grey = Image.fromarray(np.full((4, 4), 128 * 257, np.uint16))
    assert np.abs(picture_at(saved(tmp_path, grey, "grey.png")).astype(int) - 128).max() <= 1


def test_what_is_no_picture_is_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "words.png").write_text("no picture")
    with pytest.raises(DataError, match=r"words.png cannot be read \(unknown format\)"):
        picture_at(tmp_path / "words.png")
    png = io.BytesIO()
    Image.new("1", (1, 1)).save(png, "PNG")
    header = b"IHDR" + struct.pack(">II", 30_000, 30_000) + png.getvalue()[24:29]
    huge = png.getvalue()[:12] + header + struct.pack(">I", zlib.crc32(header)) + png.getvalue()[33:]
    (tmp_path / "huge.png").write_bytes(huge)
    with pytest.raises(DataError, match=r"900\.0 Mpx, the limit is 200"):
        picture_at(tmp_path / "huge.png")
    with pytest.raises(SourceError, match="is not a file"):
        picture_at(tmp_path)


def test_a_mask_is_cut_to_a_square_like_the_picture_and_keeps_thin_lines(tmp_path: Path) -> None:
    """It was squeezed: what a person marked lay elsewhere in the picture. Thin lines fell between the pixels."""
    wide = np.zeros((40, 100), np.uint8)
    wide[:, :30] = 255  # lies outside of the square middle, columns 30 to 70
    wide[20:, 30:] = 255
    marked = mask_at(saved(tmp_path, Image.fromarray(wide), "wide.png"), 8)
    assert marked.shape == (8, 8) and not marked[:4].any() and marked[4:].all()
    line = np.zeros((1000, 1000), np.uint8)
    line[501, 3] = 255
    thin = mask_at(saved(tmp_path, Image.fromarray(line), "line.png"), 8)
    assert np.argwhere(thin).tolist() == [[4, 0]]
    assert mask_at(saved(tmp_path, Image.fromarray(wide[:, 30:70] // 255 * 255).resize((4, 4)), "small.png"), 8)[
        4:
    ].all()


def test_what_is_erased_in_a_mask_is_drawn_anew(tmp_path: Path) -> None:
    erased = Image.new("RGBA", (8, 8), "black")
    erased.paste((0, 0, 0, 0), (0, 4, 8, 8))
    marked = mask_at(saved(tmp_path, erased, "erased.png"), 8)
    assert not marked[:4].any() and marked[4:].all()


def test_a_generator_without_prompts_is_named_as_such() -> None:
    """It was: artifact fit-generator has 0 objects of role 'sampler', expected one."""
    gan: Any = SimpleNamespace(kind="model", step="fit-generator", fingerprint="ab" * 32, objects_of=lambda role: ())
    with pytest.raises(DataError, match="reads no prompts"):
        text_to_image(None, gan)  # type: ignore[arg-type]
