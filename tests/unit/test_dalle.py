"""The transformer: what each position may see, what it costs, how it is stored."""

import math
from pathlib import Path

import pytest
import torch

from dalle_model import dalle
from dalle_model.attention import LayerCache, causal_attention, layer_kinds, rotary_table, rotate, sparse_mask
from dalle_model.config import ModelConfig, TokenizerConfig
from dalle_model.dalle import Dalle, DalleShape, build_dalle, level_map
from dalle_model.errors import DataError
from dalle_model.runtime import Runtime
from dalle_model.tokenizers.fsq import FsqTokenizer
from dalle_model.tokenizers.registry import build_tokenizer

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
    embedded = model.embed_text(torch.zeros(1, 5, dtype=torch.long))[0] - model.position_embed[1:6]
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


# --- the paper's masks ---

PAPER = ModelConfig(dim=32, depth=4, heads=2, mode="paper")


def test_layer_order_is_the_papers() -> None:
    kinds = layer_kinds(64)
    assert kinds[:6] == ["row", "column", "row", "row", "row", "column"]
    assert [i for i, k in enumerate(kinds, 1) if k == "column"] == [i for i in range(1, 64) if (i - 2) % 4 == 0]
    assert kinds[-1] == "conv" and kinds.count("conv") == 1


def seen_by(kind: str, place: int, grid: int = 4, prefix: int = 3) -> set[int]:
    """Image places that the token at ``place`` sees; it must see the whole prefix and nothing later."""
    row = sparse_mask(kind, prefix, grid, kernel=3)[prefix + place]
    assert row[:prefix].all()
    return {int(i) - prefix for i in row.nonzero().flatten() if i >= prefix}


def test_row_mask_reaches_back_to_the_token_above() -> None:
    assert seen_by("row", 9) == {5, 6, 7, 8, 9}
    assert seen_by("row", 2) == {0, 1, 2}


def test_column_mask_sees_its_column_and_its_left_neighbour() -> None:
    assert seen_by("column", 9) == {1, 5, 8, 9}
    assert seen_by("column", 8) == {0, 4, 8}  # no neighbour to the left


def test_conv_mask_is_a_causal_window_that_wraps_around() -> None:
    assert seen_by("conv", 10) == {5, 6, 7, 9, 10}
    assert seen_by("conv", 8) == {3, 4, 5, 7, 8}  # 3 and 7 stand at the other side, a row higher


@pytest.mark.parametrize("kind", ["row", "column", "conv"])
def test_masks_are_causal_and_leave_the_text_alone(kind: str) -> None:
    mask = sparse_mask(kind, 5, 6)
    assert not mask.triu(1).any() and mask.diagonal().all()
    assert torch.equal(mask[:5, :5], torch.ones(5, 5, dtype=torch.bool).tril())


def test_degenerate_grid_makes_every_mask_full() -> None:
    full = torch.ones(7, 7, dtype=torch.bool).tril()
    for kind in ("row", "column", "conv"):
        assert torch.equal(sparse_mask(kind, 6, 1), full)


def test_masked_attention_equals_the_dense_reference_in_values_and_gradients() -> None:
    torch.manual_seed(0)
    seen = sparse_mask("column", 3, 4)
    grads = []
    for reference in (False, True):
        q, k, v = (
            torch.randn(2, 2, 19, 8, generator=torch.Generator().manual_seed(i)).requires_grad_() for i in range(3)
        )
        if reference:
            scores = (q @ k.mT / 8**0.5).masked_fill(~seen, float("-inf"))
            out = scores.softmax(-1) @ v
        else:
            out = causal_attention(q, k, v, seen)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        grads.append((out.detach(), q.grad, k.grad, v.grad))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_paper_mode_decodes_from_the_cache_as_without() -> None:
    model = shaken(PAPER)
    with torch.no_grad():
        expected = model.image_logits(model(TEXT, IMAGE))
        cache = model.new_cache(2, torch.float32, torch.device("cpu"))
        got = [model.prefill(TEXT, cache)] + [model.step(IMAGE[:, p], p, cache) for p in range(8)]
    torch.testing.assert_close(torch.stack(got, 1), expected, rtol=1e-4, atol=1e-5)


def test_paper_positions_are_row_plus_column() -> None:
    model = shaken(PAPER)
    table = model._image_positions()
    torch.testing.assert_close(table[5], model.row_embed[1] + model.column_embed[2])


# --- lattice codes and the second direction ---


def test_level_map_follows_the_quantiser() -> None:
    config = TokenizerConfig(kind="fsq", image_px=8, downsampling=2, fsq_levels=(4, 3), width=8)
    tokenizer = build_tokenizer(config)
    shape = DalleShape.of(tokenizer, text_vocab=9, max_text_tokens=3)
    assert shape.code_levels == (4, 3) and shape.image_vocab == 12
    assert isinstance(tokenizer, FsqTokenizer)
    ids = torch.arange(16).clamp(max=11).view(1, 16)
    points = tokenizer.coordinates_of(ids).flatten(2)[0].T.long()
    rows = level_map(12, shape.code_levels)[ids[0]]
    expected = torch.cat(
        [torch.nn.functional.one_hot(points[:, 0], 4), torch.nn.functional.one_hot(points[:, 1], 3)], 1
    )
    assert torch.equal(rows, expected.float())


def test_image_first_hides_the_caption_from_the_picture() -> None:
    model = shaken()
    before = model(TEXT, IMAGE, image_first=True)
    changed = IMAGE.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 32
    same = (model(TEXT, changed, image_first=True) == before).all(-1).all(0)
    assert same[:5].all() and not same[5:].any()
    text = TEXT.clone()
    text[:, 1] = 9
    same = (model(text, IMAGE, image_first=True) == before).all(-1).all(0)
    assert same[: 9 + 2].all() and not same[9 + 2 :].any()


@pytest.mark.parametrize("length", [128, 150, 257])
def test_attention_in_blocks_equals_attention_at_once_in_values_and_gradients(length: int) -> None:
    torch.manual_seed(length)
    q, k, v = (torch.randn(2, 3, length, 8, requires_grad=True) for _ in range(3))
    out = causal_attention(q, k, v)
    assert "BlockCausalAttention" in str(out.grad_fn.next_functions)  # type: ignore[union-attr]
    weights = torch.randn_like(out)
    got = torch.autograd.grad(out, (q, k, v), weights)
    with torch.no_grad():
        torch.testing.assert_close(out, causal_attention(q, k, v), atol=1e-5, rtol=1e-5)
    scores = (q @ k.mT) * 8**-0.5
    scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -torch.inf)
    expected = torch.autograd.grad(scores.softmax(-1) @ v, (q, k, v), weights)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
