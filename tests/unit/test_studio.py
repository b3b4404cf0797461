"""One model at work: finishing, varying, choosing and checking pictures, and why they look as they do."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from dalle_model.captions import CaptionTokenizer, train_bpe
from dalle_model.config import ModelConfig, SamplerConfig, TokenizerConfig
from dalle_model.dalle import DalleShape, build_dalle
from dalle_model.errors import UsageError
from dalle_model.explaining import explain, heat
from dalle_model.runtime import Runtime
from dalle_model.studio import ClipScorer, Studio, agreement, kept_tokens
from dalle_model.text_to_image import TextToImage
from dalle_model.tokenizers.registry import build_tokenizer

pytestmark = pytest.mark.xdist_group("transformers")  # the first use of a model imports for seconds

GRID = 4


def studio(mode: str = "modern") -> Studio:
    tokenizer = build_tokenizer(
        TokenizerConfig(image_px=16, downsampling=4, fsq_levels=(8, 8), width=8, blocks_per_group=1),
        Runtime().generator(1),
    )
    bpe = train_bpe(["red heart", "clown face"] * 3, 280)
    shape = DalleShape.of(tokenizer, CaptionTokenizer.from_json(bpe).vocab_size, 6)
    config = ModelConfig.model_validate({"dim": 32, "depth": 2, "heads": 2, "mode": mode})
    model = build_dalle(config, shape, Runtime().generator(2)).eval()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.2)
    return Studio(TextToImage(model, tokenizer, bpe, SamplerConfig(temperature=0.9)))


def picture(seed: int = 0, px: int = 40) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(seed).integers(0, 256, (px, px, 3), dtype=np.uint8)


def test_a_completed_picture_begins_with_the_tokens_of_the_given_one() -> None:
    s = studio()
    given = s.tokens_of(picture())[:6]
    tokens = s.draw_tokens("red heart", 3, given=given)
    assert (tokens[:, :6] == np.array(given)).all() and len(np.unique(tokens[:, 6:], axis=0)) == 3
    made = s.complete(picture(), "red heart", keep=6 / 16, n=3)
    assert np.array_equal(made, s.pictures(tokens)) and made.shape == (3, 16, 16, 3)
    assert np.array_equal(s.complete(picture(), "red heart", keep=6 / 16, n=1)[0], made[0])


def test_one_text_is_one_picture_however_it_is_written() -> None:
    """In batches prompts are NFC with single spaces; here and in Python they were taken as they came."""
    s = studio()
    wanted = s.draw("red h\u00e9art")
    assert np.array_equal(s.draw(" red  he\u0301art\n"), wanted)
    plain = s.parts.draw(["red h\u00e9art"])
    assert np.array_equal(s.parts.draw(["red\u200b he\u0301art "]), plain)


def test_a_mask_keeps_what_comes_before_it_and_must_end_at_the_raster_tail() -> None:
    mask = np.zeros((16, 16), dtype=bool)
    mask[7:, :] = True  # one line of pixels reaches into the second row of tokens
    assert kept_tokens(mask, GRID) == 4
    mask[4:8, 8:] = True
    mask[4:8, :8] = False
    assert kept_tokens(mask, GRID) == 6
    mask[12:, 12:] = False
    with pytest.raises(UsageError, match="row 3, column 3"):
        kept_tokens(mask, GRID)
    with pytest.raises(UsageError, match="mask is empty"):
        kept_tokens(np.zeros((16, 16), dtype=bool), GRID)
    with pytest.raises(UsageError, match=r"\[16, 15\]"):
        kept_tokens(np.ones((16, 15), dtype=bool), GRID)


@pytest.mark.parametrize("keep", [0.0, 1.0])
def test_nothing_or_everything_kept_is_refused(keep: float) -> None:
    with pytest.raises(UsageError, match="of 16 image tokens would be kept"):
        studio().complete(picture(), "red heart", keep=keep)


def test_variations_take_the_models_own_words_where_none_are_given() -> None:
    s = studio()
    made, words = s.vary(picture(px=16), n=2, strength=0.5)
    assert words == s.caption(picture(px=16)[None])[0]
    assert np.array_equal(made, s.complete(picture(px=16), words, 0.5, 2))
    s.parts.model.directions = ("text_to_image", "text")
    assert s.vary(picture(), n=1, prompt="clown face")[1] == "clown face"
    with pytest.raises(UsageError, match="say with --prompt what the picture shows"):
        s.vary(picture())


def test_a_score_per_token_counts_the_end_only_where_the_prompt_was_not_cut() -> None:
    s = studio()
    shown = s.draw("red heart", 2)
    for prompt, tokens in (("red heart", 3), ("red heart clown face red heart clown face", 6)):
        whole = s.parts.score_text(shown, [prompt], runtime=s.runtime)
        np.testing.assert_allclose(s.score(prompt, shown), whole / tokens, rtol=1e-6)


def test_best_of_is_the_best_by_the_scorer_and_keeps_the_index_of_each_picture() -> None:
    s = studio()
    everything = s.draw("red heart", 6)
    best, scores, indices = s.best_of("red heart", 6, keep=3)
    wanted = s.score("red heart", everything)
    assert np.array_equal(best, everything[indices]) and np.allclose(scores, np.sort(wanted)[::-1][:3])
    _, _, brightest = s.best_of("red heart", 6, scorer=lambda _, p: p.mean((1, 2, 3)).astype(np.float32))
    assert brightest[0] == everything.mean((1, 2, 3)).argmax()
    with pytest.raises(UsageError, match="keep is 7 of 6"):
        s.best_of("red heart", 6, keep=7)


def test_the_loop_keeps_resamples_and_flags() -> None:
    s = studio()
    scores = s.score("red heart", s.draw("red heart", 8))
    best = int(scores.argmax())
    easy = s.loop("red heart", n=4, rounds=2, threshold=-100.0)
    assert easy[0].verdict == "kept" and easy[0].index == int(scores[:4].argmax())  # one round was enough
    hard = s.loop("red heart", n=4, keep=2, rounds=2, threshold=0.0)
    assert [c.verdict for c in hard] == ["flagged"] * 2 and hard[0].index == best
    assert hard[0].score == pytest.approx(float(scores[best]), abs=1e-5)
    assert hard[0].words == s.caption(hard[0].picture[None])[0]
    assert agreement("a red heart", "red heart") == pytest.approx(0.8) and agreement("", "") == 1.0


@pytest.mark.parametrize("mode", ["modern", "paper"])
def test_an_explanation_holds_shares_of_attention_and_the_likelihood_of_the_picture(mode: str) -> None:
    s = studio(mode)
    tokens = s.draw_tokens("red heart", 1)[0]
    why = explain(s.parts.model, s.words, "red heart", tokens, Runtime())
    assert why.words == ["red", "heart"] and why.attention.shape == (2, GRID, GRID)
    assert (why.attention > 0).all() and (why.attention.sum(0) < 1).all()
    text = torch.tensor([[*s.prompt_ids("red heart"), *[0] * 6][:6]])
    image = torch.from_numpy(tokens[None].astype(np.int64))
    with torch.no_grad():
        log_p = s.parts.model.image_logits(s.parts.model(text, image)).log_softmax(-1)
    wanted = -log_p.gather(2, image.unsqueeze(2)).sum()
    assert why.surprise.sum() == pytest.approx(float(wanted), rel=1e-4)
    shown = heat(picture(px=16), why.surprise, px=64)
    assert shown.shape == (64, 64, 3) and shown.std() > 0


def test_clip_from_a_folder_ranks_and_a_folder_without_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a folder with CLIP"):
        ClipScorer(str(tmp_path / "none"))
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = CaptionTokenizer.from_json(train_bpe(["red heart"] * 3, 270))
    text = transformers.CLIPTextConfig(**small, vocab_size=300, max_position_embeddings=12, eos_token_id=1)
    vision = transformers.CLIPVisionConfig(**small, image_size=32, patch_size=8)
    torch.manual_seed(0)
    transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    ).save_pretrained(tmp_path)
    transformers.PreTrainedTokenizerFast(tokenizer_object=words._tokenizer, pad_token="[PAD]").save_pretrained(tmp_path)
    scorer = ClipScorer(str(tmp_path))
    pictures = np.stack([np.asarray(Image.fromarray(picture(i)).resize((16, 16))) for i in range(3)])
    scores = scorer("red heart", pictures)
    assert scores.shape == (3,) and (np.abs(scores) <= 1.0001).all()
    assert np.allclose(scorer("red heart", pictures[1:2]), scores[1:2], atol=1e-5)
