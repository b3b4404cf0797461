"""The other directions of the same weights: picture to words, scores of words, and text alone."""

import math

import numpy as np
import pytest
import torch

from dalle_model.captions import CaptionTokenizer, train_bpe
from dalle_model.config import ModelConfig, OptimConfig, SamplerConfig, TokenizerConfig, TrainConfig
from dalle_model.dalle import Dalle, DalleShape, build_dalle
from dalle_model.describing import continue_captions, describe, score_captions
from dalle_model.errors import DataError, UsageError
from dalle_model.objectives import DalleObjective
from dalle_model.runtime import Runtime
from dalle_model.sampling import Request, draw
from dalle_model.text_to_image import TextToImage
from dalle_model.token_batches import TokenRows
from dalle_model.tokenizers.registry import build_tokenizer
from dalle_model.training import fit

SHAPE = DalleShape(text_vocab=20, max_text_tokens=5, image_vocab=32, grid=3)
TEXT = torch.tensor([[1, 2, 0, 0, 0], [3, 0, 0, 0, 0], [4, 5, 6, 0, 0], [7, 8, 1, 2, 9]])
IMAGE = torch.randint(32, (4, 9), generator=torch.Generator().manual_seed(1))


def shaken(mode: str = "modern") -> Dalle:
    """Weights that make every path count, and captions of several lengths."""
    config = ModelConfig.model_validate({"dim": 32, "depth": 2, "heads": 2, "mode": mode})
    model = build_dalle(config, SHAPE, Runtime().generator(0)).eval()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.2)
    return model


@torch.no_grad()
def written_without_cache(model: Dalle, begun: list[int], image: torch.Tensor | None) -> list[int]:
    """The reference: the whole sequence anew for every token, the most probable one each time."""
    text = torch.zeros(1, 5, dtype=torch.long)
    first = image is not None
    for place in range(5):
        logits = model.text_logits(model(text, image, image_first=first), image_first=first)[0, place]
        text[0, place] = begun[place] if place < len(begun) else int(logits.argmax())
        if text[0, place] == 0:
            break
    return [int(t) for t in text[0]]


def test_captions_from_the_cache_equal_those_without() -> None:
    model = shaken()
    expected = [written_without_cache(model, [], image[None]) for image in IMAGE]
    assert describe(model, IMAGE, Runtime()).tolist() == expected
    assert len({tuple(row) for row in expected}) > 1


@pytest.mark.parametrize("mode", ["modern", "paper"])
def test_text_goes_on_from_beginnings_of_any_length_as_without_a_cache(mode: str) -> None:
    model = shaken(mode)
    begun = [[], [3], [4, 5, 6, 7], [7, 8]]
    expected = [written_without_cache(model, b, None) for b in begun]
    assert continue_captions(model, begun, Runtime()).tolist() == expected


@pytest.mark.parametrize("mode", ["modern", "paper"])
def test_text_alone_is_the_beginning_of_the_whole_sequence(mode: str) -> None:
    model = shaken(mode)
    torch.testing.assert_close(model(TEXT, None), model(TEXT, IMAGE)[:, :5], rtol=1e-5, atol=1e-5)


def test_a_row_does_not_depend_on_the_others() -> None:
    model, sampler, runtime = shaken(), SamplerConfig(temperature=1.0, top_p=0.9), Runtime()
    images, keys = IMAGE.repeat(5, 1)[:19], [str(i) for i in range(19)]
    together = describe(model, images, runtime, sampler, keys)
    assert torch.equal(describe(model, images[17:18], runtime, sampler, keys[17:18]), together[17:18])
    assert len({tuple(row) for row in together[0::4].tolist()}) > 1  # the same picture under other keys
    scores = score_captions(model, TEXT.repeat(3, 1), IMAGE.repeat(3, 1), runtime)
    assert torch.equal(score_captions(model, TEXT[1:2], IMAGE[1:2], runtime)[0], scores[9])


@torch.no_grad()
def test_score_is_the_sum_over_the_caption_and_its_end() -> None:
    model = shaken()
    for image in (IMAGE[:1], None):
        log_p = model.text_logits(model(TEXT[:1], image, image_first=image is not None), image is not None)[0]
        expected = sum(float(log_p[i].log_softmax(-1)[t]) for i, t in enumerate((1, 2, 0)))
        assert score_captions(model, TEXT[:1], image, Runtime()).item() == pytest.approx(expected, rel=1e-5)


def test_a_full_beginning_and_missing_keys_are_refused() -> None:
    with pytest.raises(DataError, match=r"5 tokens, the model's text has 5; shorten it to 4"):
        continue_captions(shaken(), [[1] * 5], Runtime())
    with pytest.raises(UsageError, match="0 keys for 4 rows"):
        describe(shaken(), IMAGE, Runtime(), SamplerConfig())


@pytest.mark.parametrize("image_first", [False, True])
def test_what_is_asked_for_has_the_greater_weight(image_first: bool) -> None:
    model, rows = (
        shaken(),
        TokenRows(TEXT.numpy().astype(np.uint16), IMAGE.numpy().astype(np.uint16), np.ones(4, np.float32)),
    )
    objective = DalleObjective(model, rows, TrainConfig(text_loss_share=0.125, condition_dropout=0.0), Runtime())
    batch = objective.batch(0) | {"image_first": image_first}
    loss = objective.loss(model, batch, 0)
    of_text = 0.875 if image_first else 0.125
    wanted = of_text * loss.terms["loss_text"] + (1 - of_text) * loss.terms["loss_image"]
    torch.testing.assert_close(loss.total.detach(), wanted)


def test_every_direction_learns_on_a_tiny_set() -> None:
    """Four pictures, each with its own caption: the same weights draw, caption, score, and go on from a first word."""
    runtime = Runtime()
    text = TEXT.numpy().astype(np.uint16)
    image = IMAGE.numpy().astype(np.uint16)
    optim = OptimConfig(steps=120, batch_size=8, lr=5e-3, optimizer="muon", warmup_steps=5, log_every=120)
    train = TrainConfig(optim=optim, image_first_share=0.5, condition_dropout=0.0, text_loss_share=0.5)
    model = build_dalle(ModelConfig(dim=32, depth=2, heads=2), SHAPE, runtime.generator(0))
    before = score_captions(model, TEXT, None, runtime)
    assert before[1].item() == pytest.approx(-2 * math.log(20), rel=1e-5)  # two tokens, the end included
    fit(DalleObjective(model, TokenRows(text, image, np.ones(4, np.float32)), train, runtime), optim, runtime)
    assert torch.equal(describe(model, IMAGE, runtime), TEXT)
    scores = torch.stack([score_captions(model, TEXT, IMAGE[i].expand(4, -1), runtime) for i in range(4)])
    assert scores.argmax(1).tolist() == [0, 1, 2, 3]
    assert torch.equal(continue_captions(model, [[1], [3], [4], [7]], runtime), TEXT)
    alone = score_captions(model, TEXT, None, runtime)
    assert (alone > -2 * math.log(4)).all()  # four captions: about ln 4 nats each
    requests = [Request(tuple(int(t) for t in row if t), "k") for row in text]
    assert (draw(model, requests, SamplerConfig(temperature=0.0), runtime) == image).mean() > 0.9


def test_the_library_captions_scores_and_continues() -> None:
    bpe = train_bpe(["red heart", "clown face"] * 3, 280)
    words = CaptionTokenizer.from_json(bpe)
    tokenizer = build_tokenizer(
        TokenizerConfig(image_px=16, downsampling=4, fsq_levels=(8, 8), width=8, blocks_per_group=1),
        Runtime().generator(1),
    )
    shape = DalleShape.of(tokenizer, words.vocab_size, 8)
    network = build_dalle(ModelConfig(dim=32, depth=1, heads=2), shape, Runtime().generator(2))
    with torch.no_grad():
        network.text_head.weight.normal_(generator=torch.Generator().manual_seed(0))
    model = TextToImage(network, tokenizer, bpe, SamplerConfig(temperature=0.8))
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    assert model.caption(images) == [model.caption(images[i : i + 1])[0] for i in range(2)]
    assert len(set(model.caption(images[[0, 0, 0, 0]], sampler=SamplerConfig()))) > 1
    grid = np.stack([model.score_text(images[i : i + 1], ["red heart", "clown"]) for i in range(2)])
    np.testing.assert_array_equal(model.score_text(images, ["red heart", "clown"]), np.diagonal(grid))
    assert model.score_text(None, ["red heart"]).shape == (1,)
    texts = model.continue_text(["red", ""], n=3)
    assert [len(t) for t in texts] == [3, 3] and all(t.startswith("red") for t in texts[0])
    assert model.continue_text(["red"], n=3)[0] == texts[0]
    with pytest.raises(UsageError, match=r"uint8 \[B, 16, 16, 3\]"):
        model.caption(images[:, :8])
    with pytest.raises(UsageError, match="2 pictures and 3 texts"):
        model.score_text(images, ["a", "b", "c"])
