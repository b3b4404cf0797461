"""Contact sheets."""

import io

import numpy as np
import pytest
from PIL import Image
from support.bad_images import encoded, photo

from dalle_model.errors import DataError
from dalle_model.sheets import _font, contact_sheet


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def test_the_same_pictures_give_the_same_bytes() -> None:
    tiles = [encoded(photo(seed=n), "PNG") for n in range(5)]
    assert contact_sheet(tiles, list("abcde")) == contact_sheet(tiles, list("abcde"))
    assert contact_sheet(tiles, list("abcde")) != contact_sheet(tiles, list("abcdf"))


def test_every_picture_has_its_place() -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    tiles = [np.full((8, 8, 3), colour, np.uint8) for colour in colours]
    seen = set(opened(contact_sheet(tiles, ["", "", ""], columns=2, px=32)).get_flattened_data())
    assert set(colours) <= seen


def test_what_cannot_be_shown_is_a_grey_tile_with_its_label() -> None:
    sheet = opened(contact_sheet([None], ["broken_image\nphoto.jpg"], px=96))
    pixels = np.asarray(sheet)
    assert (pixels == (224, 224, 224)).all(-1).sum() > 5000
    assert (pixels[102:] < 100).any(), "the label is drawn below the tile"


def test_an_empty_sheet_is_still_a_picture() -> None:
    assert opened(contact_sheet([], [])).width >= 100


def test_sheets_stay_small_enough_for_a_web_page() -> None:
    noise = [np.random.default_rng(n).integers(0, 255, (96, 96, 3), dtype=np.uint8) for n in range(48)]
    photos = [encoded(photo(96, 96, seed=n), "PNG") for n in range(48)]
    assert len(contact_sheet(photos, ["photo"] * 48)) <= 200_000
    assert len(contact_sheet(noise, ["noise"] * 48)) < 600_000  # the worst there is


@pytest.mark.parametrize("label", ["", "a" * 5000, "line\nbreak", "‮ right to left", "\ud800 lone", "火 🔥", "\0\x07"])
def test_any_label_can_be_drawn(label: str) -> None:
    assert opened(contact_sheet([None] * 2, [label, "x"]))


def test_a_label_never_runs_into_the_next_tile() -> None:
    wide = opened(contact_sheet([None, None], ["W" * 300, ""], columns=2, px=64))
    right = np.asarray(wide)[72:, 6 + 64 + 6 :]
    assert (right == 255).all()


def test_labels_and_pictures_must_pair_up() -> None:
    with pytest.raises(DataError, match="1 pictures and 2 labels"):
        contact_sheet([None], ["a", "b"])


def test_labels_have_the_letters_of_latin_greek_and_cyrillic() -> None:
    font = _font(24)
    box = bytes(font.getmask("\U0010fffe"))
    for text in ("äöüßÉçñ", "łąęźżğışőđ", "ướựạặẩ", "жщыэюяїґ", "αβγδέώ", "–—“”„«»…€"):
        assert [c for c in text if bytes(font.getmask(c)) == box] == []
