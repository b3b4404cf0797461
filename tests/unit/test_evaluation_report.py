"""What the report says of evaluations that look better, or surer, than they are."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from dalle_model.config import TokenizerConfig
from dalle_model.runtime import Runtime
from dalle_model.tokenizers.registry import build_tokenizer
from tasks.copies import Nearest
from tasks.drawn import Drawn, Easel, Reference, Stopwatch
from tasks.evaluation_report import Evidence, cautions, headlines
from tasks.findings import Findings
from tasks.pictures import PictureSet

PX = 16
NOISE = np.random.default_rng(0).integers(0, 255, (60, PX, PX, 3)).astype(np.uint8)


def drawn(made: "np.ndarray[Any, np.dtype[np.uint8]]", captions: list[str]) -> Drawn:
    n = len(made)
    yes, tokens = np.ones(n, np.bool_), np.zeros((n, 4), np.int64)
    ids = [str(i) for i in range(n)]
    return Drawn(ids, captions, NOISE[:n], made, NOISE[:n], tokens.astype(np.uint16), tokens, yes, yes, np.zeros(n))


def words(n: int) -> list[str]:
    return [f"caption {i}" for i in range(n)]


def test_a_model_that_draws_one_picture_is_called_that():
    group = drawn(np.full_like(NOISE[:20], 7), words(20))
    assert [text.partition(",")[0] for text in cautions(group, None)] == ["All drawings are one and the same picture"]
    assert next(cautions(drawn(NOISE[[0, 1] * 10], words(20)), None)).startswith("Only 2 of 20 drawings are different")
    assert not [*cautions(drawn(NOISE[:20], words(20)), drawn(NOISE[20:40], words(20)))]


def test_a_set_of_one_caption_is_called_that():
    said = [*cautions(drawn(NOISE[:5], words(5)), drawn(NOISE[5:55], ["a red circle"] * 50))]
    assert said == ["The 50 held-out captions are only 1 different text; the figures tell of no others."]


@pytest.mark.parametrize(
    ("n", "captions", "words_of_it"),
    [
        (3, words(3), "only 3 different captions, too few to judge by: the 95 % range is 0.44 to 1.00"),
        (50, ["a red circle"] * 50, "only 1 caption, too few to judge by: the 95 % range is 0.93 to 1.00"),
        (10, words(10), ""),
    ],
)
def test_a_handful_of_captions_gets_no_verdict(n: int, captions: list[str], words_of_it: str) -> None:
    found = Findings()
    for name in ("recognisability_heldout", "copied"):
        found.mean(name, words(n), np.ones(n), "share")
    near = Nearest(*(np.zeros(n, np.int64),) * 2, *(np.zeros(n),) * 2, *(np.zeros(n, np.int64),) * 3)  # type: ignore[arg-type]
    near = replace(near, copied=np.zeros(n, np.bool_))
    group = drawn(NOISE[:n], captions)
    evidence: Any = Evidence(None, None, found, group, group, None, (near,), None)  # type: ignore[arg-type]  # not asked
    first, *_, copies = headlines(evidence, None)
    assert copies.verdict == ("" if words_of_it else "good") and ("too few to judge by" in copies.hint) == bool(
        words_of_it
    )
    assert (first.name, first.value) == ("New compositions", 1.0)
    assert (first.verdict, first.hint) == (
        ("", words_of_it) if words_of_it else ("good", "0.5 or more is the goal; 0.5 is a high goal")
    )


class Dots:
    """Stands in for a painter: a picture whose colour is its index, whatever the caption."""

    def __init__(self) -> None:
        config = TokenizerConfig(image_px=PX, downsampling=4, fsq_levels=(8, 8, 8), width=8, blocks_per_group=1)
        torch.manual_seed(0)
        self.tokenizer = build_tokenizer(config).eval()
        self.runtime = Runtime()
        self.asked: list[tuple[str, int]] = []

    def request(self, caption: str, seed: int, index: int) -> tuple[str, int]:
        self.asked.append((caption, index))
        return caption, index

    def tokens(self, requests: list[tuple[str, int]], batch_size: int, said: Any) -> "np.ndarray[Any, Any]":
        return np.array([[index] for _, index in requests], np.uint16)

    def pictures(self, tokens: "np.ndarray[Any, Any]") -> torch.Tensor:
        return torch.from_numpy(tokens.astype(np.float32) / 255).view(-1, 1, 1, 1).expand(-1, 3, PX, PX)


def test_a_caption_that_is_there_three_times_is_drawn_thrice_and_each_of_its_pictures_is_its_own() -> None:
    rows = pa.table({"id": ["a", "a", "b", "c"], "caption": ["dot", "dot", "disc", "dot"]})
    images = np.stack([np.full((PX, PX, 3), value, np.uint8) for value in (200, 1, 90, 2)])
    pictures, painter = PictureSet(rows, images), Dots()
    job: Any = type("J", (), {"config": type("C", (), {"seed": 0, "batch_size": 4}), "progress": lambda *_: None})()
    easel = Easel(job, painter, Stopwatch(), 4)  # type: ignore[arg-type]
    group = easel.draw(pictures, np.arange(4), Reference(pictures), 0)
    assert painter.asked == [("dot", 0), ("dot", 1), ("disc", 0), ("dot", 2)]
    assert group.ids == ["a", "a#2", "b", "c"]
    assert group.hit.tolist() == [True, True, False, True]  # the first is nearest to the second's picture
    painter.asked.clear()
    again = easel.repeat(group)
    assert [index for caption, index in painter.asked if caption == "dot"] == [1, 2, 3, 2, 3, 4, 3, 4, 5]
    assert len(again.made) == 16
