"""The judge of words and pictures: it learns what words mean, is the same in every run, and knows its rivals."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import tasks.judge
from dalle_model.captions import CaptionTokenizer, train_bpe
from dalle_model.config import EvaluateConfig, OptimConfig
from dalle_model.dual_encoder import (
    PX,
    ContrastiveObjective,
    build_dual_encoder,
    caption_ids,
    dual_encoder_to_bytes,
    judge_from_bytes,
    one_word_apart,
    preference,
    small,
)
from dalle_model.errors import DataError
from dalle_model.optim import unreached_peak
from dalle_model.runtime import Runtime
from dalle_model.scenes import COLOURS, SHAPES, Thing, render
from dalle_model.training import fit
from tasks.artifacts import ObjectRef, Part

WORDS = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]


def scene(caption: str, seed: int):
    colour, shape = caption.split()
    x, y = np.random.default_rng(seed).uniform(0.3, 0.7, 2)
    return render([Thing(colour, shape, "", float(x), float(y), 0.2)], 32)


def trained(steps: int):
    captions = [WORDS[i % len(WORDS)] for i in range(350)]
    pictures = np.stack([scene(caption, i) for i, caption in enumerate(captions)])
    bpe = train_bpe(captions, 300)
    optim = OptimConfig(steps=steps, batch_size=64, lr=2e-3, warmup_steps=5, log_every=50, checkpoint_every=1000)
    network = build_dual_encoder(Runtime().generator(3))
    ids = caption_ids(CaptionTokenizer.from_json(bpe), captions)
    fit(ContrastiveObjective(network, small(pictures), ids, optim, Runtime()), optim, Runtime())
    return dual_encoder_to_bytes(network), bpe


pytestmark = pytest.mark.xdist_group("dual encoder")  # one process trains the judge


@pytest.fixture(scope="module")
def judge():
    return judge_from_bytes(*trained(60), Runtime())


def test_it_learns_words_from_their_pictures_and_chance_stays_chance(judge) -> None:
    fresh = np.stack([scene(caption, 1000 + i) for i, caption in enumerate(WORDS)])
    images, captions = judge.pictures(fresh), judge.captions(WORDS)
    assert preference(images, captions, WORDS).mean() > 0.9
    order = np.random.default_rng(0).permutation(len(WORDS))
    assert preference(images[order], captions, WORDS).mean() == pytest.approx(0.5, abs=0.12)
    assert np.linalg.norm(images, axis=1) == pytest.approx(np.ones(len(WORDS)))


def test_the_same_data_makes_the_same_judge_and_others_another_hash(judge) -> None:
    first, again, longer = trained(3), trained(3), trained(4)
    assert first == again
    digests = {judge_from_bytes(*made, Runtime()).digest for made in (first, again, longer)}
    assert len(digests) == 2 and judge.digest not in digests
    with pytest.raises(DataError, match="evaluate again"):
        judge_from_bytes(first[0][:-9], first[1], Runtime())


def test_its_pictures_have_its_own_size_whatever_model_it_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models of other picture sizes share the judge of their data: which is evaluated first must not count."""
    kept: dict[int, Part] = {}
    read: list[int] = []
    made = (ObjectRef(key="w", sha256="0" * 64, bytes=1, role=tasks.judge.ROLES[0]), ObjectRef(key="b", sha256="1" * 64, bytes=1, role=tasks.judge.ROLES[1]))  # fmt: skip
    store = SimpleNamespace(
        parts=lambda key: kept, commit_part=lambda key, n, part: kept.update({n: part}), missing=lambda objects: []
    )
    job: Any = SimpleNamespace(config=EvaluateConfig(), store=store, runtime=Runtime(), read=lambda obj: obj.key)
    monkeypatch.setattr(tasks.judge, "load_pictures", lambda job, curated, rows, px, name: read.append(px))
    monkeypatch.setattr(tasks.judge, "_train", lambda job, pictures, shared: made)
    monkeypatch.setattr(tasks.judge, "judge_from_bytes", lambda weights, bpe, runtime: (weights, bpe))
    curated: Any = SimpleNamespace(fingerprint="c")
    rows: Any = None
    for _ in range(2):
        assert tasks.judge.trained_judge(job, curated, rows) == (("w", "b"), made)
    assert read == [PX]


def test_pictures_of_any_size_and_empty_captions_are_judged(judge) -> None:
    large = np.repeat(np.repeat(scene("red circle", 1)[None], 3, axis=1), 3, axis=2)
    assert judge.pictures(large) == pytest.approx(judge.pictures(large[:, ::3, ::3]), abs=1e-5)
    assert judge.pictures(large[:, ::6, ::6]).shape == (1, 64)
    assert np.isfinite(judge.captions(["", "red circle " * 100])).all()
    assert judge.of(torch.zeros(2, 3, 32, 32)).shape == (2, 64)


def test_equal_captions_are_no_rivals() -> None:
    same = np.eye(2)[[0, 0, 1]]
    assert preference(same, same, ["a", "a", "b"]).tolist() == [1.0, 1.0, 1.0]
    assert preference(same[:2], same[:2], ["a", "a"]).tolist() == [0.5, 0.5]


def test_captions_one_word_apart_are_found_and_no_others() -> None:
    known = ["a red circle", "a blue circle", "a red square", "a blue square", "red circle", "a red circle"]
    assert one_word_apart(["a red circle", "one", "a green circle"], known) == [
        ["a blue circle", "a red square"],
        [],
        ["a blue circle", "a red circle"],
    ]


@pytest.mark.parametrize(("steps", "warmup"), [(3, 0), (10, 2), (100, 20), (1000, 20)])
def test_no_length_that_a_user_sets_ends_inside_the_warm_up(
    steps: int, warmup: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[OptimConfig] = []
    monkeypatch.setattr(tasks.judge, "train", lambda job, objective, optim, runtime, data: used.append(optim))
    job: Any = SimpleNamespace(config=EvaluateConfig(judge_steps=steps), runtime=Runtime(), put=lambda *a, **k: None)
    pictures: Any = SimpleNamespace(rows={"caption": pa.array(WORDS[:2])}, images=np.zeros((2, PX, PX, 3), np.uint8))
    tasks.judge._train(job, pictures, "shared")
    assert used[0].warmup_steps == warmup and unreached_peak(used[0]) == ""
