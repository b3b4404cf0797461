"""Figures find their interval, their direction and their explanation by name."""

from tasks.figures import metrics_of


def test_bounds_become_the_interval_of_their_figure():
    (metric,) = metrics_of({"recognisability": 0.7, "recognisability_low": 0.6, "recognisability_high": 0.8})
    assert (metric.value, metric.low, metric.high, metric.better) == (0.7, 0.6, 0.8, "higher")


def test_a_figure_named_like_a_bound_of_nothing_stays():
    assert [m.name for m in metrics_of({"frequency_low": 1.0})] == ["frequency low"]


def test_the_split_in_a_name_is_told_in_words():
    valid, heldout = metrics_of({"loss_image_valid": 4.0, "recognisability_heldout": 0.3})
    assert (valid.name, valid.unit, valid.better) == ("loss image, validation", "nats", "lower")
    assert "kept out of training" in heldout.meaning


def test_unknown_figures_are_shown_without_a_claim():
    (metric,) = metrics_of({"new_thing": 1.0}, previous={"new_thing": 2.0})
    assert (metric.better, metric.meaning, metric.previous, metric.protocol) == ("", "", 2.0, "")
