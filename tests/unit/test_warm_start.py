"""Text alone, and starting from a trained model: what is taken over, what stays fresh, what is refused."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dalle_model.captions import CaptionTokenizer, train_bpe
from dalle_model.config import ModelConfig, OptimConfig, TrainConfig
from dalle_model.dalle import IMAGE_PARTS, Dalle, DalleShape, build_dalle, dalle_from_bytes, dalle_to_bytes
from dalle_model.describing import continue_captions
from dalle_model.errors import DataError, UsageError
from dalle_model.objectives import DalleObjective
from dalle_model.runtime import Runtime
from dalle_model.text_objective import TextObjective, text_loss
from dalle_model.token_batches import TokenRows, pad_text
from dalle_model.training import fit
from dalle_model.warm_start import start_from

OLD = CaptionTokenizer.from_json(train_bpe(["red heart", "clown face", "blue heart"] * 3, 290))
NEW = CaptionTokenizer.from_json(train_bpe(["red apple", "clown car", "blue heart"] * 3, 285))
CAPTIONS = ["red heart", "clown face", "blue heart", "red clown"]


def built(mode: str = "modern", words: CaptionTokenizer = OLD, seed: int = 0, **shape: object) -> Dalle:
    given = {"text_vocab": words.vocab_size, "max_text_tokens": 6, "image_vocab": 12, "grid": 2, "code_levels": (4, 3)}
    config = ModelConfig.model_validate({"dim": 32, "depth": 2, "heads": 2, "mode": mode})
    model = build_dalle(config, DalleShape.model_validate(given | shape), Runtime(seed=seed).generator(0))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(seed + p.numel())) * 0.1)
    return model.eval()


def rows_of(words: CaptionTokenizer = OLD) -> TokenRows:
    text = pad_text([words.encode(c) for c in CAPTIONS], 6)
    return TokenRows(text, np.zeros((len(text), 4), np.uint16), np.ones(len(text), np.float32))


@pytest.mark.parametrize("mode", ["modern", "paper"])
def test_text_objective_is_the_cross_entropy_of_captions_and_moves_nothing_of_the_picture(mode: str) -> None:
    model, runtime, rows = built(mode), Runtime(), rows_of()
    text = torch.from_numpy(rows.text.astype(np.int64))
    logits = model.text_logits(model(text, torch.zeros(4, 4, dtype=torch.long)))
    wanted = [(i, t) for i, row in enumerate(text) for t in range(6) if t == 0 or row[t - 1] != 0]
    expected = F.cross_entropy(logits[tuple(zip(*wanted, strict=True))], text[tuple(zip(*wanted, strict=True))])
    assert text_loss(model, rows, runtime) == pytest.approx(expected.item(), rel=1e-5)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optim = OptimConfig(steps=60, batch_size=4, micro_batch_size=3, lr=5e-3, warmup_steps=5, log_every=60)
    objective = TextObjective(model, rows, TrainConfig(optim=optim, objective="text"), runtime)
    batch = objective.batch(0)
    parts = [{"text": batch["text"][s], "num_text": batch["num_text"]} for s in (slice(0, 3), slice(3, 4))]
    whole = objective.loss(model, batch, 0).total
    torch.testing.assert_close(sum(objective.loss(model, p, 0).total for p in parts), whole)
    fit(objective, optim, runtime)
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert not [k for k in moved if k.split(".")[0] in IMAGE_PARTS] and "blocks.0.attention.qkv.weight" in moved
    assert text_loss(model, rows, runtime) < 0.7 < expected.item()  # four captions: ln 4 nats over about three tokens
    assert OLD.decode(continue_captions(model, [OLD.encode("blue")], runtime)[0].tolist()) == "blue heart"


def test_same_vocabulary_takes_over_every_weight() -> None:
    source, model = built(seed=1), built(seed=2)
    source.directions = ("text_to_image", "text")
    start = start_from(model, source, OLD, OLD)
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in model.state_dict().items())
    assert (start.known_tokens, start.spelled_tokens, start.fresh) == (OLD.vocab_size, 0, ())


def test_another_vocabulary_is_spelled_by_the_old_one() -> None:
    source, model = built(seed=1), built(words=NEW, seed=2)
    start = start_from(model, source, NEW, OLD)
    assert start.spelled_tokens > 0 and start.known_tokens + start.spelled_tokens == NEW.vocab_size
    ids = {w: (NEW.encode(w), OLD.encode(w)) for w in ("heart", "apple")}
    assert [len(i) for i in ids["heart"]] == [1, 1] and len(ids["apple"][0]) < len(ids["apple"][1])
    for table in ("text_embed", "text_head"):
        new, old = (getattr(m, table).weight for m in (model, source))
        assert torch.equal(new[ids["heart"][0][0]], old[ids["heart"][1][0]])
        torch.testing.assert_close(new[ids["apple"][0][0]], old[ids["apple"][1]].mean(0))
    assert torch.equal(model.image_head.weight, source.image_head.weight)


@pytest.mark.parametrize("mode", ["modern", "paper"])
def test_a_model_of_text_alone_leaves_the_picture_fresh(mode: str) -> None:
    source, model = built(mode, seed=1, image_vocab=8, code_levels=()), built(mode, seed=2)
    source.directions = ("text",)
    fresh = {k: v.clone() for k, v in model.state_dict().items()}
    start = start_from(model, source, OLD, OLD)
    after = model.state_dict()
    assert {n.split(".")[0] for n in start.fresh} == {k.split(".")[0] for k in fresh} & set(IMAGE_PARTS)
    assert all(torch.equal(after[name], fresh[name]) for name in start.fresh)
    text = torch.tensor([[3, 4, 0, 0, 0, 0]])
    assert torch.equal(model(text, None), source(text, None))
    assert torch.equal(after["position_embed"][7:], fresh["position_embed"][7:])


def test_what_does_not_fit_is_refused_with_both_values() -> None:
    with pytest.raises(DataError, match=r"model\.mode is modern, the model to start from has paper"):
        start_from(built(), built("paper"), OLD, OLD)
    with pytest.raises(DataError, match="6 text positions, the model to start from has 5"):
        start_from(built(), built(max_text_tokens=5), OLD, OLD)
    with pytest.raises(DataError, match="encode with the tokenizer"):
        start_from(built(), built(image_vocab=8, code_levels=()), OLD, OLD)


def test_a_model_knows_what_it_was_trained_for() -> None:
    model = built()
    model.directions = TrainConfig(objective="text").directions
    again = dalle_from_bytes(*dalle_to_bytes(model))
    again.require("text")
    with pytest.raises(UsageError, match="trained for text, not for text to image"):
        again.require("text_to_image")
    assert TrainConfig(image_first_share=0.2).directions == ("text_to_image", "text", "image_to_text")
    built().require("image_to_text")  # not known: nothing is refused


def test_fine_tuning_starts_where_the_model_was() -> None:
    source, fresh, runtime = built(seed=1), built(seed=2), Runtime()
    optim = OptimConfig(steps=1, batch_size=4, warmup_steps=0, log_every=1, lr=1e-9)
    start_from(fresh, source, OLD, OLD)  # before either is trained: an update moves even the last bits
    losses = []
    for start in (source, fresh):
        config = TrainConfig(optim=optim, condition_dropout=0.0)
        losses.append(fit(DalleObjective(start, rows_of(), config, runtime), optim, runtime).curve[0]["loss"])
    assert losses[0] == losses[1]
