"""What evaluate measures beside recognisability: worse drawings score worse, copies are found, scenes are judged."""

import numpy as np
import pytest

from dalle_model.features import RandomFeatures
from dalle_model.scenes import render, scene_at
from tasks.figures import metrics_of
from tasks.measures import CopyDetector, distributions, scenes, share, variety

PX = 32
SCENES = [scene_at(9, index) for index in range(240)]
PICTURES = np.stack([render(scene.things, PX) for scene in SCENES])
CAPTIONS = [scene.caption for scene in SCENES]


def noisy(pictures, sigma):
    noise = np.random.default_rng(0).normal(0, sigma, pictures.shape)
    return np.clip(pictures + noise, 0, 255).astype(np.uint8)


def test_drawings_equal_to_the_truth_are_at_no_distance_and_worse_ones_further():
    truth = PICTURES[:60]
    perfect, fair, bad = (distributions(noisy(truth, s), truth, truth, RandomFeatures()).figures for s in (0, 20, 80))
    for name in ("frechet_random", "sliced_wasserstein_random", "sliced_wasserstein_tokenizer"):
        assert perfect[name] == pytest.approx(0, abs=1e-6) and perfect[name] < fair[name] < bad[name]
        assert fair[f"{name}_low"] <= fair[name] <= fair[f"{name}_high"]
    assert perfect["recall"] == perfect["coverage"] == 1.0 and bad["coverage"] < 0.2


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_too_few_pictures_have_fewer_figures_and_no_error(count):
    few = PICTURES[:count]
    assert "precision" not in distributions(few, few, few, RandomFeatures()).figures
    assert scenes(CAPTIONS[:count], few, few).figures.get("scene_all", 1.0) == 1.0


def test_planted_copies_are_found_and_fresh_pictures_are_not():
    training = np.concatenate([PICTURES[:200], PICTURES[:20]])  # with duplicates, as data has them
    detector = CopyDetector(training)
    fresh, planted = PICTURES[200:], noisy(PICTURES[:40], 3)
    assert detector.copied(planted).all()
    assert detector.copied(fresh).mean() <= 0.15, "about the quantile, 0.05"
    assert detector.threshold > 0


def test_variety_is_none_for_equal_drawings_and_one_where_the_caption_has_no_say():
    groups = np.repeat(np.arange(8), 4)
    assert variety(np.repeat(PICTURES[:8], 4, axis=0), groups, PICTURES[:60]).figures == {"variety": 0.0}
    assert variety(PICTURES[:32], groups, PICTURES[:60]).figures["variety"] == pytest.approx(1.0, abs=0.15)


def test_scenes_are_judged_by_attribute_with_interval_ceiling_and_chance():
    drawn = PICTURES[:60].copy()
    drawn[:15] = 255
    captions = [*CAPTIONS[:60], "woman firefighter"]
    measured = scenes(captions, np.concatenate([drawn, drawn[:1]]), PICTURES[:61], "_heldout")
    figures = measured.figures
    assert figures["scene_all_heldout"] == figures["scene_count_heldout"] == 0.75
    assert figures["scene_all_heldout_low"] < 0.75 < figures["scene_all_heldout_high"]
    assert figures["scene_all_of_reconstructions_heldout"] == 1.0 and figures["scene_all_chance_heldout"] < 0.1
    assert measured.protocol["captions_that_say_it"]["all"] == 60


def test_other_captions_have_no_scene_figures():
    assert scenes(["woman firefighter"], PICTURES[:1], PICTURES[:1]).figures == {}


def test_every_figure_is_explained():
    drawn = PICTURES[:20]
    figures = {
        **distributions(drawn, drawn, drawn, RandomFeatures()).figures,
        **variety(drawn, np.repeat([0, 1], 10), drawn).figures,
        **share("copied", np.array([True, False])),
        **scenes(CAPTIONS[:60], PICTURES[:60], PICTURES[:60]).figures,
        **scenes(CAPTIONS[:60], PICTURES[:60], PICTURES[:60], "_heldout").figures,
    }
    for metric in metrics_of(figures):
        assert metric.meaning, metric.name


def test_figures_are_the_same_in_every_run():
    drawn = noisy(PICTURES[:30], 20)
    once, again = (distributions(drawn, PICTURES[:30], drawn, RandomFeatures()) for _ in range(2))
    assert once == again
