"""The complete model in a folder."""

from pathlib import Path

import numpy as np
import pytest

from dalle_model.captions import CaptionTokenizer, train_bpe
from dalle_model.config import ModelConfig, SamplerConfig, TokenizerConfig
from dalle_model.dalle import DalleShape, build_dalle
from dalle_model.errors import DataError, UsageError
from dalle_model.runtime import Runtime
from dalle_model.text_to_image import FILES, TextToImage
from dalle_model.tokenizers.registry import build_tokenizer


def small(image_vocab_levels: tuple[int, ...] = (8, 8)) -> TextToImage:
    tokenizer = build_tokenizer(
        TokenizerConfig(image_px=16, downsampling=4, fsq_levels=image_vocab_levels, width=8, blocks_per_group=1),
        Runtime().generator(1),
    )
    bpe = train_bpe(["red heart", "clown face"] * 3, 280)
    shape = DalleShape.of(tokenizer, CaptionTokenizer.from_json(bpe).vocab_size, 6)
    model = build_dalle(ModelConfig(dim=32, depth=1, heads=2), shape, Runtime().generator(2))
    return TextToImage(model, tokenizer, bpe, SamplerConfig(temperature=0.8))


def test_saved_model_draws_the_same_pictures(tmp_path: Path) -> None:
    model = small()
    model.save_pretrained(tmp_path / "model")
    again = TextToImage.from_pretrained(tmp_path / "model")
    first, second = (m.draw(["red heart", "clown face"], n=3, seed=5) for m in (model, again))
    assert first.shape == (2, 3, 16, 16, 3) and first.dtype == np.uint8
    assert np.array_equal(first, second)
    assert again.fingerprint == model.fingerprint and again.sampler == model.sampler
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == sorted(FILES)


def test_a_picture_is_the_same_drawn_alone() -> None:
    model = small()
    together = model.draw(["red heart", "clown face"], n=2)
    assert np.array_equal(model.draw(["clown face"], n=1)[0, 0], together[1, 0])
    assert len({p.tobytes() for p in together.reshape(4, -1)}) == 4


def test_parts_that_do_not_fit_are_refused() -> None:
    a, b = small(), small((4, 4))
    with pytest.raises(DataError, match="one model artifact"):
        TextToImage(a.model, b.tokenizer, a.bpe, a.sampler)


def test_incomplete_folder_names_what_is_missing(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path)
    (tmp_path / "bpe.json").unlink()
    with pytest.raises(DataError, match=r"bpe\.json missing"):
        TextToImage.from_pretrained(tmp_path)


def test_no_pictures_asked_for_is_an_error() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        small().draw(["red heart"], n=0)


def test_untrained_model_captions_without_failing() -> None:
    model = small()
    words = model.caption(model.draw(["red heart"], n=2)[0])
    assert len(words) == 2
