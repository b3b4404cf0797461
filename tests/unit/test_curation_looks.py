"""Rules that look at pictures, on drawn pictures whose faults are known."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from dalle_model.curation.looks import Look, entropy_bits, look


def scenery(seed: int, px: int = 128) -> Image.Image:
    """Soft blobs of several sizes with a little grain: a photograph to these rules."""
    rng = np.random.default_rng(seed)
    layers = ((3, 0.5), (8, 0.3), (24, 0.15), (px, 0.05))
    soft = sum(
        np.asarray(Image.fromarray(rng.integers(0, 255, (k, k, 3), dtype=np.uint8)).resize((px, px), 3), float) * w
        for k, w in layers
    )
    return Image.fromarray(np.clip(soft, 0, 255).astype(np.uint8))


def captioned(picture: Image.Image) -> Image.Image:
    shown = picture.copy()
    font = ImageFont.load_default(size=shown.width // 10)
    ImageDraw.Draw(shown).text((6, shown.height // 2), "SALE today only", fill=(0, 0, 0), font=font)
    return shown


def marked(picture: Image.Image) -> Image.Image:
    veil = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    draw, font, step = ImageDraw.Draw(veil), ImageFont.load_default(size=9), picture.width // 4
    for y in range(-step, picture.height, step):
        for x in range(-step, picture.width, step):
            draw.text((x, y), "stock", fill=(255, 255, 255, 90), font=font)
    return Image.alpha_composite(picture.convert("RGBA"), veil).convert("RGB")


def looks(pictures: list[Image.Image], name: str) -> list[float]:
    return [getattr(look(picture), name) for picture in pictures]


SCENES = [scenery(seed) for seed in range(12)]


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("text_share", captioned),
        ("watermark", marked),
        ("blur", lambda picture: picture.filter(ImageFilter.GaussianBlur(4))),
    ],
)
def test_each_fault_is_told_from_its_absence(name: str, spoil: object) -> None:
    clean, spoilt = looks(SCENES, name), looks([spoil(scene) for scene in SCENES], name)  # type: ignore[operator]
    threshold = {"text_share": 0.02, "watermark": 0.5, "blur": 0.6}[name]  # those named in the config's descriptions
    assert max(clean) < threshold < min(spoilt)


def test_what_the_rules_do_not_see_is_as_the_documentation_says() -> None:
    tilted = captioned(Image.new("RGB", (128, 128), "white")).rotate(35, fillcolor="white")
    assert look(tilted).text_share == 0
    corner = scenery(3)
    ImageDraw.Draw(corner).text((90, 112), "stock", fill="white")
    assert look(corner).watermark < 0.3


def test_blank_pictures_and_one_pixel_are_measured() -> None:
    for size in ((1, 1), (1, 300), (64, 64), (2, 2)):
        found = look(Image.new("RGB", size, "white"))
        assert found == Look(0.0, 1.0, 0.0, 0.0, found.aesthetic)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 40, 3), dtype=np.uint8))
    assert all(0 <= value <= 8 for value in (look(noise).blur, look(noise).watermark, look(noise).aesthetic))


def test_entropy_is_that_of_the_histogram() -> None:
    four = np.zeros(256, np.int64)
    four[:4] = 10
    assert entropy_bits(four) == 2.0
    flat = np.zeros(256, np.int64)
    flat[255] = 4096
    assert entropy_bits(flat) == 0.0
