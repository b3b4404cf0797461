"""Pictures between bytes, uint8 arrays and float tensors."""

import numpy as np
import pytest
import torch
from support.bad_images import encoded, photo

from dalle_model.errors import DataError
from dalle_model.images import decode_rgb, encode_png, square, stack_squares, to_float, to_uint8


def test_png_bytes_and_arrays_are_inverses() -> None:
    image = np.asarray(photo(20, 10))
    assert (decode_rgb(encode_png(image)) == image).all()


def test_broken_bytes_are_a_data_error_that_says_what_to_do() -> None:
    with pytest.raises(DataError, match="dalle verify"):
        decode_rgb(b"\x89PNG\r\n\x1a\n")


def test_square_takes_the_centre() -> None:
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = 200
    assert (square(image, 10) == 200).all()
    assert (square(image.transpose(1, 0, 2), 10) == 200).all()


def test_shrinking_averages_and_enlarging_keeps_the_mean() -> None:
    board = np.indices((64, 64)).sum(0)[..., None] % 2 * np.full(3, 255)
    assert np.abs(square(board.astype(np.uint8), 32).astype(int) - 128).max() <= 1
    small = np.asarray(photo(8, 8))
    assert square(small, 64).shape == (64, 64, 3)
    assert abs(square(small, 64).mean() - small.mean()) < 2


def test_a_square_of_the_right_size_is_untouched() -> None:
    image = np.asarray(photo(16, 16))
    assert (square(image, 16) == image).all()


def test_pictures_of_many_shapes_stack() -> None:
    stack = stack_squares([encoded(photo(30, 20), "PNG"), encoded(photo(7, 9), "JPEG")], 16)
    assert stack.shape == (2, 16, 16, 3)
    assert stack.dtype == np.uint8


def test_float_tensors_are_chw_in_zero_to_one_and_go_back_exactly() -> None:
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3) * 2
    images[0, 0, 0] = (0, 128, 255)
    floats = to_float(images)
    assert floats.shape == (2, 3, 4, 4)
    assert floats.dtype == torch.float32
    assert floats[0, :, 0, 0].tolist() == pytest.approx([0, 128 / 255, 1])
    assert (to_uint8(floats) == images).all()
    assert (to_uint8(floats.bfloat16().clamp(0, 1)).astype(int) - images).max() <= 1
    assert to_float(torch.from_numpy(images)).equal(floats)


def test_values_outside_are_clipped() -> None:
    assert to_uint8(torch.tensor([-1.0, 0.5, 2.0]).reshape(1, 3, 1, 1)).ravel().tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    "wrong", [np.zeros((4, 4, 3), np.uint8), np.zeros((1, 4, 4, 3), np.float32), np.zeros((1, 3, 4, 4), np.uint8)]
)
def test_other_shapes_and_types_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(DataError, match="expected uint8"):
        to_float(wrong)
