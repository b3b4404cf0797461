"""The checker believes a perfect picture, bears blur and noise, and is not fooled by another caption's picture."""

import numpy as np
import pytest
from PIL import Image

from dalle_model.scene_checks import ATTRIBUTES, agreement, measure, shares, verdicts
from dalle_model.scenes import COLOURS, RADII, SHAPES, Thing, parse_caption, render, scene_at

SCENES = [scene_at(3, index) for index in range(500)]
CAPTIONS = [scene.caption for scene in SCENES]


def drawn(px, count=500):
    return np.stack([render(scene.things, px) for scene in SCENES[:count]])


def softened(pictures, factor):
    """What a tokenizer does at its worst: detail below ``factor`` pixels is lost."""
    px = pictures.shape[1]
    small = [Image.fromarray(p).resize((px // factor,) * 2, Image.Resampling.BOX) for p in pictures]
    return np.stack([np.asarray(s.resize((px, px), Image.Resampling.BICUBIC)) for s in small])


def share(pictures, name="all", captions=CAPTIONS):
    return float(np.mean(shares(captions[: len(pictures)], pictures)[name]))


@pytest.mark.parametrize("px", [32, 64])
def test_a_perfect_renderer_meets_every_attribute_of_500_captions(px):
    found = [measure(render(scene.things, px)) for scene in SCENES]
    said = [agreement(scene.statement, things) for scene, things in zip(SCENES, found, strict=True)]
    assert [caption for caption, verdict in zip(CAPTIONS, said, strict=True) if not all(verdict.values())] == []
    assert {name for verdict in said for name in verdict} == set(ATTRIBUTES)
    # Beside the caption of the next scene, the checker says what is true of this one.
    others = [parse_caption(caption) for caption in CAPTIONS[1:] + CAPTIONS[:1]]
    measured = [agreement(other, things) for other, things in zip(others, found, strict=True)]
    truth = [agreement(other, scene.things) for other, scene in zip(others, SCENES, strict=True)]
    assert sum(a != b for a, b in zip(measured, truth, strict=True)) <= 5
    assert np.mean([v["all"] for v in measured]) < 0.03 and np.mean([v["binding"] for v in measured]) < 0.1


def test_blur_and_noise_of_a_tokenizer_hardly_matter():
    pictures = softened(drawn(64, 100), 2)
    noise = np.random.default_rng(0).normal(0, 8, pictures.shape)
    assert share(np.clip(pictures + noise, 0, 255).astype(np.uint8)) >= 0.97


def test_the_more_is_lost_the_fewer_captions_are_met():
    kept = [share(softened(drawn(64, 50), factor)) for factor in (1, 4, 8, 16)]
    assert kept == sorted(kept, reverse=True) and kept[0] == 1.0 and kept[-1] < 0.2


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_measured_as_it_was_drawn(shape, colour):
    for name, radius in RADII.items():
        (found,) = measure(render([Thing(colour, shape, name, 0.4, 0.61, radius)], 64))
        assert (found.colour, found.shape, found.size) == (colour, shape, name)
        assert (found.x, found.y, found.radius) == pytest.approx((0.4, 0.61, radius), abs=0.01)


RED = Thing("red", "circle", "small", 0.25, 0.5, 0.09)
BLUE = Thing("blue", "square", "small", 0.75, 0.5, 0.09)


@pytest.mark.parametrize(
    ("caption", "wrong"),
    [
        ("a small red circle left of a small blue square", set()),
        ("a red circle right of a blue square", {"relation"}),
        ("a red circle above a blue square", {"relation"}),
        ("a large red circle and a blue square", {"size"}),
        ("a red circle and two blue squares", {"count", "colour", "shape", "binding"}),
        ("a red circle at the left", {"count"}),
        ("a green circle and a blue square", {"colour", "binding"}),
        ("a red circle and a blue ring", {"shape", "binding"}),
    ],
)
def test_each_untruth_is_found_by_its_name(caption, wrong):
    said = verdicts(caption, render([RED, BLUE], 64))
    assert {name for name, met in said.items() if not met} == (wrong | {"all"} if wrong else set())


def test_swapped_colours_are_found_by_binding():
    said = verdicts("a blue circle and a red square", render([RED, BLUE], 64))
    assert not said["binding"] and not said["all"] and said["count"]


@pytest.mark.parametrize("level", [0, 128, 255])
def test_an_empty_picture_meets_nothing(level):
    said = verdicts("two red circles", np.full((64, 64, 3), level, np.uint8))
    assert not any(said.values())


def test_pure_noise_meets_nothing():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert not verdicts("a red circle and a blue square", noise)["all"]


def test_other_captions_are_not_judged():
    assert verdicts("woman firefighter", render([RED], 32)) is None
    assert shares(["woman firefighter"], render([RED], 32)[None]) == {}
