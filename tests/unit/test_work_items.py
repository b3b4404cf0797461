"""How a batch is cut into pieces: the same pictures are the same pieces, whatever stands beside them in the list."""

from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_model.config import GenerateConfig
from tasks.prompts import Prompt
from tasks.work_items import Piece, items_of, pieces

_PROMPTS = st.lists(
    st.builds(
        Prompt, st.text("abc", min_size=1, max_size=4), st.sampled_from([None, 1, 5]), st.sampled_from([None, 7])
    ),
    min_size=1,
    max_size=60,
    unique=True,
)


def _cut(prompts: list[Prompt], rows: int = 16, **config: object) -> list[Piece]:
    return pieces(items_of(prompts, GenerateConfig(**config)), rows, {"sampler": {}}, "model")


@settings(max_examples=60)
@given(_PROMPTS, st.integers(1, 20))
def test_every_picture_is_in_one_piece_in_order(prompts: list[Prompt], rows: int) -> None:
    cut = _cut(prompts, rows, n=3)
    assert [i for piece in cut for i in piece.items] == items_of(prompts, GenerateConfig(n=3))
    assert all(1 <= len(piece.items) <= rows for piece in cut)
    assert len({piece.key for piece in cut}) == len(cut)
    made = [(i.prompt, i.negative, i.seed, i.index) for piece in cut for i in piece.items]
    assert len(set(made)) == len(made)


def test_a_picture_that_two_rows_ask_for_is_made_once_and_found_under_the_tags_of_both() -> None:
    rows = [Prompt("a", n=2, tags=("x",)), Prompt("b", n=1), Prompt("a", n=1, tags=("y", "x"))]
    assert [(i.prompt, i.index, i.tags) for i in items_of(rows, GenerateConfig())] == [
        ("a", 0, ("x", "y")),
        ("a", 1, ("x",)),
        ("b", 0, ()),
    ]


def test_one_more_prompt_anywhere_leaves_all_but_a_few_pieces_as_they_were() -> None:
    prompts = [Prompt(f"prompt number {n}") for n in range(1000)]
    before = {piece.key for piece in _cut(prompts, 64, n=2)}
    assert 1000 * 2 / 64 <= len(before) <= 1000 * 2 / 64 * 4
    for place in (0, 500, 1000):
        grown = [*prompts[:place], Prompt("a new one"), *prompts[place:]]
        after = {piece.key for piece in _cut(grown, 64, n=2)}
        assert 1 <= len(after - before) <= 4  # the piece around it, and those up to the next border


def test_whatever_decides_a_picture_is_in_the_key_of_its_piece() -> None:
    items = items_of([Prompt("a")], GenerateConfig(n=1))
    plain = pieces(items, 8, {"sampler": {"top_k": 0}}, "model")[0].key
    assert pieces(items, 8, {"sampler": {"top_k": 0}}, "model")[0].key == plain
    others = [
        pieces(items, 8, {"sampler": {"top_k": 1}}, "model"),
        pieces(items, 8, {"sampler": {"top_k": 0}}, "another model"),
        *(
            pieces(items_of([prompt], GenerateConfig(n=1)), 8, {"sampler": {"top_k": 0}}, "model")
            for prompt in (Prompt("b"), Prompt("a", seed=1), Prompt("a", tags=("t",)), Prompt("a", negative="b"))
        ),
    ]
    keys = {cut[0].key for cut in others}
    assert plain not in keys and len(keys) == len(others)
