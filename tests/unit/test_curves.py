"""Curves: the same layout as SVG and PNG, whatever the numbers are."""

import io
import math
import re
from itertools import pairwise

import pytest
from PIL import Image

from tasks.curves import MAX_POINTS, Curve, Series, curve_png, curve_svg, curves_of, number


def line(name: str = "image valid", n: int = 50, scale: float = 1.0) -> Series:
    return Series(name, tuple((float(i), scale * math.exp(-i / 20)) for i in range(n)))


def coordinates(svg: str) -> list[tuple[float, float]]:
    path = re.search(r'class="line [^"]*" d="M([^"]*)"', svg)
    assert path
    return [(float(x), float(y)) for x, y in (point.split() for point in path[1].split("L"))]


def test_a_falling_loss_falls_on_the_picture():
    points = coordinates(curve_svg(Curve("Loss", (line(),))))
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert [y for _, y in points] == sorted(y for _, y in points)  # down is larger


@pytest.mark.parametrize(
    "values",
    [[1.0], [0.0, 0.0, 0.0], [-3.0, 5.0], [1e-9, 1e9], [math.nan, 1.0, math.inf, 2.0], [5e-324, 1.0], [1e12, 1e12 + 1]],
)
def test_odd_values_stay_inside_the_frame(values):
    curve = Curve("Odd", (Series("odd", tuple((float(i), v) for i, v in enumerate(values))),), (("line", 3.0),))
    for x, y in coordinates(curve_svg(curve, width=400, height=200)):
        assert 0 <= x <= 400 and 0 <= y <= 200
    assert curve_png([curve])


def test_nothing_to_draw_draws_nothing():
    empty = Curve("Empty", (Series("nan", ((0.0, math.nan),)),))
    assert curve_svg(empty) == ""
    assert curve_png([empty]) == b""


def test_long_series_are_thinned_and_keep_their_last_point():
    series = line(n=100_000)
    points = coordinates(curve_svg(Curve("Long", (series,))))
    assert len(points) <= MAX_POINTS
    assert number(series.points[-1][1]) in curve_svg(Curve("Long", (series,)))


def test_reference_lines_are_drawn_with_their_names():
    svg = curve_svg(Curve("Loss", (line(scale=8),), (("learned nothing (ln 4096)", 8.3178),)))
    assert "learned nothing (ln 4096) 8.318" in svg


def test_names_from_outside_are_escaped():
    assert "<script" not in curve_svg(Curve("<script>", (line("<script>"),), (("<script>", 1.0),), unit="<script>"))


def test_labels_of_lines_that_end_together_do_not_cover_each_other():
    svg = curve_svg(Curve("Loss", tuple(line(f"line {i}") for i in range(5))))
    heights = sorted(float(y) for y in re.findall(r'class="label[^"]*" x="[^"]*" y="([^"]*)"', svg))
    assert min(b - a for a, b in pairwise(heights)) >= 15


def test_a_training_table_becomes_one_plot_of_losses_and_one_of_each_other_column():
    table = {
        "step": [1, 2, 3],
        "image_loss": [3.0, 2.0, 1.0],
        "valid_image_loss": [3.0, None, 1.5],
        "lr": [0.1, 0.2, 0.1],
        "constant": [1.0, 1.0, 1.0],
        "empty": [None, None, math.nan],
    }
    loss, lr = curves_of(table, [("ln 8", 2.08)])
    assert [s.name for s in loss.series] == ["image", "image valid"]
    assert loss.series[1].points == ((1.0, 3.0), (3.0, 1.5))
    assert loss.references == (("ln 8", 2.08),)
    assert [s.name for s in lr.series] == ["lr"]


def test_the_png_is_a_picture_and_the_same_each_time():
    curves = [Curve("One", (line(),)), Curve("Two", (line(),))]
    png = curve_png(curves)
    assert png == curve_png(curves)
    assert Image.open(io.BytesIO(png)).size == (1640, 1304)


@pytest.mark.parametrize(
    ("value", "text"),
    [(3, "3"), (12345, "12,345"), (0.123456, "0.1235"), (1234.5, "1,234"), (2e-7, "2.00e-07"), (math.nan, "nan")],
)
def test_figures_are_short(value, text):
    assert number(value) == text
