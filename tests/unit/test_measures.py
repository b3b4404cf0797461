"""What evaluate measures: worse drawings score worse, words are told from wrong ones, scenes are judged, all on record."""

import zlib
from dataclasses import replace

import numpy as np
import pytest

from dalle_model.errors import DataError
from dalle_model.features import RandomFeatures
from dalle_model.scenes import render, scene_at
from tasks import measures
from tasks.drawn import Drawn, Repeats
from tasks.figures import better_of, metrics_of
from tasks.findings import Findings, values_of

PX = 32
SCENES = [scene_at(9, index) for index in range(240)]
PICTURES = np.stack([render(scene.things, PX) for scene in SCENES])
CAPTIONS = [scene.caption for scene in SCENES]


def noisy(pictures, sigma):
    noise = np.random.default_rng(0).normal(0, sigma, pictures.shape)
    return np.clip(pictures + noise, 0, 255).astype(np.uint8)


def drawn(made, captions=CAPTIONS, truth=PICTURES):
    n = len(made)
    tokens = made[:, ::4, ::4, 0].reshape(n, 64).astype(np.uint16)
    hit = np.arange(n) % 2 == 0
    return Drawn(
        ids=[f"{i:04d}" for i in range(n)],
        captions=list(captions[:n]),
        truth=truth[:n],
        made=made,
        rebuilt=truth[:n],
        tokens=tokens,
        true_tokens=tokens.astype(np.int64),
        hit=hit,
        rebuilt_hit=hit,
        distance=np.linspace(0, 1, n),
    )


def distances(made, truth):
    into = Findings()
    measures.distributions(into, made, truth, truth, [("tokenizer", RandomFeatures())])
    return into.figures


def test_drawings_equal_to_the_truth_are_at_no_distance_and_worse_ones_further():
    truth = PICTURES[:60]
    perfect, fair, bad = (distances(noisy(truth, s), truth) for s in (0, 20, 80))
    for name in ("frechet_random", "sliced_wasserstein_random", "sliced_wasserstein_tokenizer"):
        assert perfect[name] == pytest.approx(0, abs=1e-6) and perfect[name] < fair[name] < bad[name]
        assert fair[f"{name}_low"] <= fair[name] <= fair[f"{name}_high"]
    assert perfect["recall"] == perfect["coverage"] == 1.0 and bad["coverage"] < 0.2


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_too_few_pictures_have_fewer_figures_and_no_error(count):
    few = PICTURES[:count]
    assert "precision" not in distances(few, few)
    into = Findings()
    measures.scenes(into, drawn(few))
    assert into.figures.get("scene_all", 1.0) == 1.0


def test_variety_is_none_for_equal_drawings_and_one_where_the_caption_has_no_say():
    groups = np.repeat(np.arange(8), 4)
    for repeats, expected in ((np.repeat(PICTURES[:8], 4, axis=0), 0.0), (PICTURES[:32], 1.0)):
        into = Findings()
        measures.variety(into, Repeats(repeats, groups), PICTURES[:60])
        assert into.figures["variety"] == pytest.approx(expected, abs=0.15)


def test_scenes_are_judged_by_attribute_with_interval_ceiling_and_chance():
    made = PICTURES[:61].copy()
    made[:15] = 255
    into = Findings()
    measures.scenes(into, drawn(made, [*CAPTIONS[:60], "woman firefighter"]), "_heldout")
    figures = into.figures
    assert figures["scene_all_heldout"] == figures["scene_count_heldout"] == 0.75
    assert figures["scene_all_heldout_low"] < 0.75 < figures["scene_all_heldout_high"]
    assert figures["scene_all_of_reconstructions_heldout"] == 1.0 and figures["scene_all_chance_heldout"] < 0.1
    assert into.records["scene_all_heldout"].n == 60
    other = Findings()
    measures.scenes(other, drawn(PICTURES[:1], ["woman firefighter"]))
    assert other.figures == {}


class WordJudge:
    """A judge that is right: pictures and captions of a scene are the same vector, drawn from the caption's hash."""

    name, digest = "words", "ab"

    def __init__(self, seen=CAPTIONS):
        self._seen = {picture.tobytes(): caption for picture, caption in zip(PICTURES, seen, strict=True)}

    def captions(self, captions):
        rows = np.stack([np.random.default_rng(zlib.crc32(c.encode())).normal(size=64) for c in captions])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def pictures(self, pictures):
        return self.captions([self._seen[picture.tobytes()] for picture in pictures])


def test_words_fit_their_own_pictures_and_the_mixed_up_ones_stand_at_chance():
    into = Findings()
    measures.agreement(into, WordJudge(), drawn(PICTURES[:120]), CAPTIONS)
    figures = into.figures
    assert figures["agreement"] == figures["agreement_of_originals"] == figures["attribute_agreement"] == 1.0
    assert figures["agreement_of_wrong_captions_low"] < 0.5 < figures["agreement_of_wrong_captions_high"]


def test_of_a_single_caption_nothing_is_said_that_needs_a_second_one():
    into, group = Findings(), drawn(PICTURES[:6], [CAPTIONS[0]] * 6)
    measures.agreement(into, WordJudge(), group, CAPTIONS, "_heldout")
    measures.scenes(into, group, "_heldout")
    assert not [name for name in into.figures if name.startswith("agreement")]
    assert "scene_all_heldout" in into.figures and "scene_all_chance_heldout" not in into.figures
    assert into.protocol["left_out"].startswith(
        "agreement_heldout: there is no second caption to tell it from; scene_all"
    )


def test_the_wrong_caption_of_a_control_is_always_another_one():
    """The first scene's caption stands thrice: beside itself, its drawings would meet the wrong caption, too."""
    into, group = Findings(), drawn(PICTURES[[0, 0, 0, 1]], [*CAPTIONS[:1] * 3, CAPTIONS[1]])
    measures.scenes(into, group)
    measures.agreement(into, WordJudge(), group, CAPTIONS)
    assert into.figures["scene_all"] == 1.0 and into.figures["scene_all_chance"] == 0.0
    assert into.figures["agreement"] == 1.0 and into.figures["agreement_of_wrong_captions"] == 0.0


def test_a_model_that_draws_one_colour_has_figures_and_what_has_none_is_told():
    into, made = Findings(), np.full_like(PICTURES[:12], 200)
    group = drawn(made)
    measures.drawings(into, group)
    measures.distributions(into, made, group.truth, group.rebuilt, [("tokenizer", RandomFeatures())])
    measures.variety(into, Repeats(made, np.repeat([0, 1], 6)), made)
    measures.code_health(into, group, 256)
    measures.scenes(into, group)
    assert into.protocol["left_out"] == "variety: all drawings are one picture" and "variety" not in into.figures
    assert into.figures["code_perplexity_of_drawings"] == pytest.approx(1.0)
    assert into.figures["recall"] == 0.0 and into.figures["scene_all"] == 0.0


def everything():
    into, group = Findings(), drawn(PICTURES[:60])
    measures.drawings(into, group)
    measures.drawings(into, group, "_heldout")
    measures.distributions(into, group.made, group.truth, group.rebuilt, [])
    measures.variety(into, Repeats(group.made[:20], np.repeat([0, 1], 10)), group.made)
    measures.code_health(into, group, 256)
    measures.agreement(into, WordJudge(), group, CAPTIONS)
    measures.scenes(into, group)
    measures.scenes(into, group, "_heldout")
    measures.runs_copied(into, group, group.tokens[::2])
    measures.captions_written(into, CAPTIONS[1:61], group, CAPTIONS[:30], "ab", "_heldout")
    return into


def test_captions_written_from_the_training_set_are_told_from_new_ones():
    into, group = Findings(), drawn(PICTURES[:4])
    written = ["a red circle and a blue star", "never said of any picture here", *CAPTIONS[100:102]]
    measures.captions_written(into, written, group, [written[0], "of no use"], "ab")
    assert into.values["captions_copied"] == {"0000": 1.0, "0001": 0.0, "0002": 0.0, "0003": 0.0}
    assert into.values["caption_runs_copied"]["0000"] == 1.0 and into.values["caption_runs_copied"]["0001"] == 0.0


def test_every_figure_has_an_interval_a_record_and_an_explanation_and_is_the_same_in_every_run():
    into = everything()
    assert into.document() == everything().document()
    for name in into.names():
        record = into.records[name]
        assert into.figures[f"{name}_low"] <= into.figures[name] <= into.figures[f"{name}_high"], name
        assert record.measure and record.n and record.features and record.interval, name
    explained = metrics_of(into.figures, records=into.records)
    assert len(explained) == len(into.names())
    for metric in explained:
        assert metric.meaning and metric.protocol, metric.name
    assert better_of("distance_to_own_picture_heldout") == "lower" and better_of("nobody knows it") is None


def test_a_mean_is_the_mean_of_the_values_that_are_stored_with_it():
    into = everything()
    stored = values_of(into.table())
    assert stored == into.values
    for name, each in stored.items():
        assert np.mean(list(each.values())) == pytest.approx(into.figures[name], rel=1e-7), name
        assert len(each) == into.records[name].n


def test_a_figure_without_its_values_or_stored_twice_is_refused():
    into = Findings(replace(Findings().basis, n=3))
    with pytest.raises(DataError, match="2 values for 3 units"):
        into.mean("share", ["a", "b", "c"], [1.0, 0.0], "share")
    with pytest.raises(DataError, match="stands twice"):
        into.add("share", float("nan"), (0, 1), "share")
    into.add("share", 0.5, (0, 1), "share")
    with pytest.raises(DataError, match="stands twice"):
        into.add("share", 0.5, (0, 1), "share")
