"""The picture of a codebook's use shows what the ids hold."""

import io

import numpy as np
import pytest
from PIL import Image

from dalle_model.code_pictures import _DEAD, _HEAD_PX, _SIDE_PX, code_usage_picture
from dalle_model.errors import DataError


def _heat_map(picture: bytes) -> np.ndarray:  # type: ignore[type-arg]
    sheet = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
    return sheet[_HEAD_PX : _HEAD_PX + _SIDE_PX, 24 : 24 + _SIDE_PX]


def test_dead_codes_are_red_and_frequent_ones_dark() -> None:
    ids = np.zeros((10, 4), np.int64)
    ids[:, 1:] = [1, 2, 3]
    ids[0] = 0
    picture = code_usage_picture(ids, 16)
    cells = _heat_map(picture)[32::64, 32::64].reshape(16, 3)  # 4 x 4 codes, 64 px each
    assert [tuple(c) == _DEAD for c in cells.tolist()] == [False] * 4 + [True] * 12
    assert cells[0].sum() < cells[1].sum()
    assert code_usage_picture(ids, 16) == picture


@pytest.mark.parametrize("vocab", [2, 512, 65536])
def test_any_vocabulary_fits_the_picture(vocab: int) -> None:
    ids = np.random.default_rng(0).integers(0, vocab, (3, 64))
    assert Image.open(io.BytesIO(code_usage_picture(ids, vocab))).size[0] < 1000


def test_ids_of_no_square_grid_are_refused() -> None:
    with pytest.raises(DataError, match="square grid"):
        code_usage_picture(np.zeros((2, 5), np.int64), 8)
