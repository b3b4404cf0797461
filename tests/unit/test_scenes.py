"""Scenes are the same for ever, their captions are true of them and can be read back, and the source hands them on."""

import hashlib
import json

import numpy as np
import pytest

from dalle_model.config import IngestConfig
from dalle_model.errors import UsageError
from dalle_model.images import decode_rgb
from dalle_model.scene_checks import agreement
from dalle_model.scenes import AREAS, COLOURS, Group, Statement, coverage, parse_caption, render, scene_at
from dalle_model.sources.registry import open_source

SCENES = [scene_at(0, index) for index in range(500)]


def test_every_caption_reads_back_as_the_statement_it_came_from():
    assert all(parse_caption(scene.caption) == scene.statement for scene in SCENES)


def test_every_scene_makes_its_own_caption_true():
    assert all(all(agreement(scene.statement, scene.things).values()) for scene in SCENES)


def test_all_forms_of_captions_and_all_values_occur():
    statements = [scene.statement for scene in SCENES]
    assert {s.place for s in statements} == {"", "left", "right", "top", "bottom", "centre"}
    assert {s.relation for s in statements} == {"", "left", "right", "top", "bottom"}
    assert {g.count for s in statements for g in s.groups} == {1, 2, 3}
    assert len({(g.colour, g.shape) for s in statements for g in s.groups}) == len(COLOURS) * len(AREAS)


def test_a_scene_depends_on_seed_and_index_alone():
    assert scene_at(0, 7) == SCENES[7] != scene_at(1, 7)


def test_scenes_and_their_pixels_stay_as_they_were_published():
    """If this fails on purpose, raise SCENES_VERSION: stored artifacts would silently mean other pictures."""
    digest = hashlib.sha256()
    for scene in SCENES[:40]:
        digest.update(scene.caption.encode() + render(scene.things, 32).tobytes())
    assert digest.hexdigest() == "a3b5ebdba2fe62988584a2a659818a71f021668928be0a20b4e1fd76709478a6"


@pytest.mark.parametrize(
    "caption",
    [
        "red circle",
        "a red circles",
        "a orange ring",
        "an red ring",
        "two red circle",
        "four red circles",
        "A red circle",
        "a red circle.",
        "a huge red circle",
        "two red circles at the left",
        "two red circles left of a blue ring",
        "two red circles and two blue rings",
        "a red circle and",
        "",
    ],
)
def test_other_sentences_are_no_scenes(caption):
    assert parse_caption(caption) is None


def test_words_of_the_grammar():
    statement = Statement((Group(1, "", "orange", "cross"), Group(1, "small", "red", "ring")), relation="top")
    assert statement.words() == "an orange cross above a small red ring"
    assert Statement((Group(2, "large", "black", "cross"),)).words() == "two large black crosses"


@pytest.mark.parametrize("shape", AREAS)
def test_a_drawn_shape_has_the_area_and_the_centroid_that_are_promised(shape):
    drawn = coverage(shape, 0.52, 0.47, 0.2, 256, (0, 0, 256, 256))
    middle = (np.arange(256) + 0.5) / 256
    assert drawn.sum() / 256**2 / 0.2**2 == pytest.approx(AREAS[shape], rel=4e-3)
    assert (drawn.sum(0) @ middle / drawn.sum(), drawn.sum(1) @ middle / drawn.sum()) == pytest.approx(
        (0.52, 0.47), abs=1e-3
    )


def test_the_source_offers_its_first_scenes_and_their_truth():
    source = open_source(IngestConfig(source="scenes:20", image_px=32))
    rows = list(source.rows(15))
    assert source.count() == 20 and [row.key for row in rows] == [f"{i:08d}" for i in range(15, 20)]
    assert np.array_equal(decode_rgb(rows[0].image), render(SCENES[15].things, 32))
    truth = json.loads(json.dumps(rows[0].extra))["scene"]
    assert truth["things"][0]["x"] == SCENES[15].things[0].x and rows[0].caption == SCENES[15].caption


def test_more_scenes_are_another_source_and_no_number_is_refused():
    few, many = (open_source(IngestConfig(source=f"scenes:{n}")).identity() for n in (20, 21))
    assert few != many
    with pytest.raises(UsageError, match="'-3' is no number from 1"):
        open_source(IngestConfig(source="scenes:-3"))
