"""What must hold of duplicates, clusters and splits for any data."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_model.config import CurateConfig
from dalle_model.curation.clusters import SPLITS, captions_per_picture, cluster, first_of_each, split_of
from dalle_model.curation.hashes import near_pairs, perceptual_hashes
from dalle_model.curation.rules import PRESETS, checks
from dalle_model.curation.selection import Outside, select
from dalle_model.curation.what_if import not_judged, what_if
from dalle_model.errors import DataError

numbers = st.integers(0, 2**64 - 1)


def u64(values: object) -> np.ndarray:
    return np.array(values, np.uint64)


def noisy_hashes(seed: int, centres: int, copies: int, bits: int) -> np.ndarray:
    """Distinct hashes around some centres, each with up to ``bits`` bits flipped."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 2**64, centres, dtype=np.uint64).repeat(copies)
    for _ in range(bits):
        base ^= np.uint64(1) << rng.integers(0, 64, len(base), dtype=np.uint64)
    return np.unique(base)


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(0, 12), st.integers(0, 12))
def test_near_pairs_are_exactly_those_of_comparing_all_with_all(seed: int, flipped: int, bits: int) -> None:
    hashes = noisy_hashes(seed, 12, 8, flipped)
    found = {
        tuple(sorted(pair))
        for left, right in near_pairs(hashes, bits)
        for pair in zip(left.tolist(), right.tolist(), strict=True)
    }
    distance = np.bitwise_count(hashes[:, None] ^ hashes[None, :])
    wanted = {(i, j) for i, j in zip(*np.nonzero(distance <= bits), strict=True) if i < j}
    assert found == {(int(i), int(j)) for i, j in wanted}


def test_many_hashes_take_near_linear_work() -> None:
    rng = np.random.default_rng(0)
    hashes = np.unique(rng.integers(0, 2**64, 60_000, dtype=np.uint64))
    assert sum(len(left) for left, _ in near_pairs(hashes, 6)) == 0


def brute_clusters(pictures: np.ndarray, hashes: np.ndarray, bits: int) -> list[int]:
    """By flooding, the slow and plain way."""
    kin = (np.bitwise_count(hashes[:, None] ^ hashes[None, :]) <= bits) | (pictures[:, None] == pictures[None, :])
    reach = kin.copy()
    while True:
        further = (reach.astype(int) @ kin.astype(int)) > 0
        if (further == reach).all():
            return [int(pictures[row].min()) for row in reach]
        reach = further


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.integers(0, 8))
def test_clusters_are_the_connected_components(seed: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    distinct = noisy_hashes(seed, 6, 6, 5)
    pick = rng.integers(0, len(distinct), 50)  # equal pictures have equal hashes
    pictures = rng.permutation(len(distinct)).astype(np.uint64)[pick]
    assert cluster(pictures, distinct[pick], bits).tolist() == brute_clusters(pictures, distinct[pick], bits)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), numbers), max_size=40), st.randoms(use_true_random=False)
)
def test_survivors_do_not_depend_on_the_order(rows: list[tuple[int, int, int]], random: object) -> None:
    def survivors(order: list[int]) -> set[tuple[int, int, int]]:
        picked = [rows[i] for i in order]
        a, b, rank = (u64([row[k] for row in picked]) for k in range(3))
        kept = first_of_each([a, b], rank)
        return {row for row, keep in zip(picked, kept, strict=True) if keep}

    order = list(range(len(rows)))
    straight = survivors(order)
    random.shuffle(order)  # type: ignore[attr-defined]
    assert survivors(order) == straight
    assert len(straight) == len({row[:2] for row in rows})
    assert all(row[2] == min(r[2] for r in rows if r[:2] == row[:2]) for row in straight)


@given(
    st.lists(numbers, min_size=1, max_size=60, unique=True), st.integers(0, 1000), st.floats(0, 0.5), st.floats(0, 0.4)
)
def test_adding_pairs_never_moves_others(clusters: list[int], seed: int, valid: float, test: float) -> None:
    half = clusters[: len(clusters) // 2]
    assert (
        split_of(u64(half), valid, test, seed).tolist()
        == split_of(u64(clusters), valid, test, seed).tolist()[: len(half)]
    )
    twice = split_of(u64(clusters + clusters), valid, test, seed).tolist()
    assert twice[: len(clusters)] == twice[len(clusters) :], "a cluster is on one side"


def test_splits_have_their_shares_and_more_validation_moves_no_test_row() -> None:
    clusters = np.arange(20_000, dtype=np.uint64)
    split = split_of(clusters, 0.1, 0.05, 3)
    shares = np.bincount(split, minlength=4) / len(split)
    assert shares == pytest.approx([0.85, 0.1, 0.05, 0], abs=0.01)
    more = split_of(clusters, 0.2, 0.05, 3)
    assert ((split == SPLITS.index("test")) == (more == SPLITS.index("test"))).all()
    assert (split != split_of(clusters, 0.1, 0.05, 4)).any()


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=40))
def test_captions_per_picture_counts_different_ones(rows: list[tuple[int, int]]) -> None:
    pictures, captions = u64([r[0] for r in rows]), u64([r[1] for r in rows])
    distinct = first_of_each([pictures, captions], np.arange(len(rows), dtype=np.uint64))
    expected = [len({c for p, c in rows if p == picture}) for picture, _ in rows]
    assert captions_per_picture(pictures, distinct).tolist() == expected


def test_small_changes_of_a_picture_move_few_bits_and_other_pictures_many() -> None:
    rng = np.random.default_rng(0)
    smooth = np.repeat(np.repeat(rng.integers(0, 255, (40, 8, 8)), 4, 1), 4, 2).astype(np.uint8)
    noisy = np.clip(smooth.astype(int) * 0.9 + 12 + rng.normal(0, 3, smooth.shape), 0, 255).astype(np.uint8)
    before, after = perceptual_hashes(smooth), perceptual_hashes(noisy)
    assert np.bitwise_count(before ^ after).max() <= 6
    others = np.bitwise_count(before[:, None] ^ before[None, :])[~np.eye(40, dtype=bool)]
    assert others.min() > 12
    assert before.tolist() == perceptual_hashes(smooth).tolist()


def kept_by(tables: list[pa.Table], config: CurateConfig, outside: Outside) -> npt.NDArray[np.bool_]:
    try:
        return select(tables, config, outside).kept
    except DataError as error:
        assert "survives curation" in str(error)
        return np.zeros(sum(map(len, tables)), bool)


@settings(max_examples=8)
@given(
    st.integers(0, 2**32),
    st.sampled_from(sorted(PRESETS)),
    st.sampled_from([{}, {"max_pairs_per_cluster": 1, "near_duplicate_bits": 4}, {"drop_duplicates": False}]),
)
def test_what_if_says_what_curation_with_that_threshold_does(seed: int, preset: str, more: dict[str, Any]) -> None:
    rng, count = np.random.default_rng(seed), 80
    given = {"min_caption_words": 2, "max_word_repetition": 0.9, "max_captions_per_picture": 2, **more}
    config = CurateConfig(valid_share=0, preset=preset, policy_file="own list", nsfw_model="a model", **given)
    values = [0.1, 0.3, 0.8, 0.9, 1, 2, 3, 5, 6, 200, 250, 900]
    scores = {
        test.rule: np.where(
            rng.random(count) < 0.9, np.where(np.isfinite(test.low), 400, 0), rng.choice([np.nan, *values], count)
        )
        for test in checks(config)
    }
    table = pa.table(
        {
            "id": [f"{n:064x}" for n in rng.integers(0, 2**62, count)],
            "caption": [f"caption {n}" for n in rng.integers(0, 4, count)],
            "picture": rng.integers(0, 20, count, dtype=np.uint64),
            "phash": rng.integers(0, 2**4, count, dtype=np.uint64),
            **{name: pa.array(column, pa.float64(), from_pandas=True) for name, column in scores.items()},
        }
    )
    withdrawn = pa.array(rng.choice(table["id"].to_numpy(zero_copy_only=False), 6))
    outside = Outside(removed=lambda part: pa.compute.is_in(part["id"], withdrawn).to_numpy())
    tables = [table.slice(0, 25), table.slice(25)]
    now = kept_by(tables, config, outside)
    moves = what_if(tables, config, removed=outside.removed)
    assert {move.knob for move in moves} >= {test.knob for test in checks(config)} | {"drop_duplicates"}
    for move in moves:
        integer = CurateConfig.model_fields[move.knob].annotation is not float
        value = int(move.threshold) if integer else move.threshold
        other = CurateConfig.model_validate(config.model_dump() | {move.knob: value})
        after = kept_by(tables, other, outside)
        expected = (after.sum(), (after & ~now).sum(), (now & ~after).sum())
        assert (move.kept, move.gained, move.lost) == expected, move


def test_what_if_says_what_it_does_not_judge() -> None:
    assert not_judged(CurateConfig(embedding="thumbnail")) == ""
    assert not_judged(CurateConfig(embedding="thumbnail", max_pairs_per_cluster=1)) == "curate.max_pairs_per_cluster"
    assert "curate.exclude" in not_judged(CurateConfig(exclude=("x",)))
