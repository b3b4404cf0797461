"""The transformer: what each position may see, what it costs, how it is stored."""

import math
from pathlib import Path

import pytest
import torch

from dalle_model import dalle
from dalle_model.attention import LayerCache, causal_attention, rotary_table, rotate
from dalle_model.config import ModelConfig
from dalle_model.dalle import Dalle, DalleShape, build_dalle
from dalle_model.errors import DataError
from dalle_model.runtime import Runtime

SHAPE = DalleShape(text_vocab=20, max_text_tokens=5, image_vocab=32, grid=3)
CONFIG = ModelConfig(dim=32, depth=2, heads=2)
TEXT = torch.tensor([[3, 4, 5, 0, 0], [7, 0, 0, 0, 0]])
IMAGE = torch.arange(18).view(2, 9)


def shaken(config: ModelConfig = CONFIG) -> Dalle:
    """A model whose zero-initialised parts are not zero, so that tests see through every path."""
    model = build_dalle(config, SHAPE, Runtime().generator(0)).eval()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.1)
    return model


def test_fresh_weights_are_a_pure_function_of_the_seed() -> None:
    a, b = (build_dalle(CONFIG, SHAPE, Runtime(seed=4).generator(1)).state_dict() for _ in range(2))
    other = build_dalle(CONFIG, SHAPE, Runtime(seed=5).generator(1)).state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], other[k]) for k in a)


def test_first_loss_is_the_logarithm_of_the_vocabulary() -> None:
    model = build_dalle(CONFIG, SHAPE, Runtime().generator(0))
    logits = model.image_logits(model(TEXT, IMAGE))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), IMAGE.flatten())
    assert loss.item() == pytest.approx(math.log(SHAPE.image_vocab), rel=1e-6)


def test_each_modality_has_logits_of_its_own_vocabulary_only() -> None:
    model = shaken()
    hidden = model(TEXT, IMAGE)
    assert hidden.shape == (2, 5 + 9, 32)
    assert model.text_logits(hidden).shape == (2, 5, 20)
    assert model.image_logits(hidden).shape == (2, 9, 32)


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_no_position_sees_itself_or_the_future(norm: str) -> None:
    model = shaken(ModelConfig.model_validate({"dim": 32, "depth": 2, "heads": 2, "norm": norm}))
    before = model(TEXT, IMAGE)
    for place in range(9):
        changed = IMAGE.clone()
        changed[:, place] = (changed[:, place] + 1) % 32
        same = (model(TEXT, changed) == before).all(-1).all(0)
        assert same[: 5 + place + 1].all()
        assert not same[5 + place + 1 :].any()
    changed = TEXT.clone()
    changed[:, 2] = 9
    same = (model(changed, IMAGE) == before).all(-1).all(0)
    assert same[:3].all() and not same[3:].any()


def test_every_padded_position_has_its_own_embedding() -> None:
    model = shaken()
    embedded = model.embed_text(torch.zeros(1, 5, dtype=torch.long))[0, 1:] - model.position_embed[1:6]
    torch.testing.assert_close(embedded, model.pad_embed)


def test_attention_forms_agree() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 17, 8) for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(causal_attention(q, k, v), expected)


def test_rotary_scores_depend_on_the_distance_only() -> None:
    torch.manual_seed(0)
    table = rotary_table(4, 5, 16)
    q, k = torch.randn(1, 1, 16), torch.randn(1, 1, 16)

    def score(i: int, j: int) -> float:
        at = lambda x, p: rotate(x, table[:, p : p + 1])  # noqa: E731
        return float((at(q, i) * at(k, j)).sum())

    place = lambda r, c: 4 + 5 * r + c  # noqa: E731
    assert score(place(2, 3), place(1, 1)) == pytest.approx(score(place(4, 4), place(3, 2)), rel=1e-4)
    assert score(3, 1) == pytest.approx(score(2, 0), rel=1e-4)
    assert score(place(2, 3), place(1, 1)) != pytest.approx(score(place(2, 3), place(1, 2)), rel=1e-2)


def test_cached_steps_equal_the_whole_forward() -> None:
    model = shaken()
    with torch.no_grad():
        expected = model.image_logits(model(TEXT, IMAGE))
        cache = model.new_cache(2, torch.float32, torch.device("cpu"))
        got = [model.prefill(TEXT, cache)]
        for place in range(8):
            got.append(model.step(IMAGE[:, place], place, cache))
    torch.testing.assert_close(torch.stack(got, 1), expected, rtol=1e-4, atol=1e-5)
    assert isinstance(cache.layers[0], LayerCache) and cache.length == 5 + 9


def test_saved_model_is_the_same_model(tmp_path: Path) -> None:
    model = shaken()
    dalle.save(model, tmp_path / "m")
    again = dalle.load(tmp_path / "m")
    assert torch.equal(again(TEXT, IMAGE), model(TEXT, IMAGE))
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["config.json", "weights.safetensors"]


def test_weights_of_another_shape_are_refused() -> None:
    weights, _ = dalle.dalle_to_bytes(shaken())
    _, config = dalle.dalle_to_bytes(shaken(ModelConfig(dim=64, depth=2, heads=2)))
    with pytest.raises(DataError, match="one artifact"):
        dalle.dalle_from_bytes(weights, config)
