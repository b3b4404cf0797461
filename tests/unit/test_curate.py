"""Curation: scores, verdicts, duplicates, splits, and the artifact."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from support.bad_images import encoded, photo
from support.data_steps import Data, write_folder

from dalle_model.config import CurateConfig, IngestConfig
from dalle_model.curation.clusters import held_out
from dalle_model.curation.embeddings import Thumbnails
from dalle_model.curation.features import FEATURES, measure
from dalle_model.curation.rules import PRESETS, RULES, checks, rules_of
from dalle_model.errors import DataError, UsageError
from dalle_model.records import CURATED, LEDGER, SCORE
from tasks.artifacts import Manifest
from tasks.stages import INGEST
from tasks.store import Store


@pytest.mark.parametrize("preset", PRESETS)
def test_of_preset_and_own_threshold_the_stricter_one_counts(preset: str) -> None:
    by_knob = {check.knob: check for check in checks(CurateConfig(preset=preset, min_caption_words=2, max_aspect=1.5))}
    assert by_knob["min_caption_words"].low == max(2, PRESETS[preset].get("min_caption_words", 0))
    assert by_knob["max_aspect"].high == 1.5
    assert by_knob["min_side_px"].low == PRESETS[preset].get("min_side_px", 16)
    assert ("max_foreign" in by_knob) == (preset != "none"), "the published sets keep English"


def test_every_threshold_of_a_preset_is_one_of_the_config() -> None:
    for preset in PRESETS.values():
        assert preset.keys() <= CurateConfig.model_fields.keys()


# ------------------------------------------------------------------------------------------------------- the step

PICTURES = {
    "good1.png": encoded(photo(64, 64, seed=1), "PNG"),
    "good2.png": encoded(photo(64, 64, seed=2), "PNG"),
    "good3.png": encoded(photo(64, 64, seed=3), "PNG"),
    "again1.jpg.png": encoded(photo(64, 64, seed=1), "PNG", compress_level=1),  # other bytes, same pixels
    "small.png": encoded(photo(20, 9, seed=4), "PNG"),
    "long.png": encoded(photo(100, 20, seed=5), "PNG"),
    "blank.png": encoded(Image.new("RGB", (64, 64), "white"), "PNG"),
}
LINES = [
    ("good1.png", "a red thing", "kept"),
    ("good1.png", "a red thing", "duplicate"),
    ("again1.jpg.png", "a red thing", "duplicate"),
    ("good1.png", "another name for it", "kept"),
    ("small.png", "a small one", "side_too_small"),
    ("long.png", "a long one", "aspect_too_long"),
    ("blank.png", "nothing at all", "blank_image"),
    ("good2.png", "x", "caption_too_short"),
    ("good2.png", "y" * 1001, "caption_too_long"),
    ("good2.png", "dog dog dog dog", "repeated_word"),
    ("good2.png", "two", "kept"),
    *(("good3.png", f"name number {n}", "placeholder") for n in range(9)),
]


@pytest.fixture(scope="module")
def dirty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Data, Manifest]:
    folder = tmp_path_factory.mktemp("dirty")
    write_folder(folder / "set", PICTURES, [{"file_name": name, "text": text} for name, text, _ in LINES])
    data = Data(folder)
    return data, data.ingest(IngestConfig(source=f"imagefolder:{folder}/set", rows_per_shard=6))


def test_each_row_meets_the_reason_it_deserves(dirty: tuple[Data, Manifest]) -> None:
    data, pairs = dirty
    manifest = data.curate(CurateConfig(valid_share=0), pairs)
    ledger = data.rows(manifest, "ledger")
    expected = [outcome for _, _, outcome in LINES]
    # Of three equal pairs the smallest id survives, whichever line that is.
    found = [row["reason"] or "kept" for row in ledger]
    assert sorted(found[:3]) == sorted(expected[:3])
    assert min(row["id"] for row in ledger[:3]) == next(row["id"] for row in ledger[:3] if row["kept"])
    assert found[3:] == expected[3:]
    words = {row["reason"]: (row["rule"], row["score"], row["detail"]) for row in ledger if not row["kept"]}
    assert words["side_too_small"] == ("side_px", 9.0, "curate.min_side_px = 16")
    assert words["aspect_too_long"] == ("aspect", pytest.approx(64 / 13), "curate.max_aspect = 3")
    assert words["placeholder"] == ("captions_per_picture", None, "curate.max_captions_per_picture = 8")
    assert manifest.stats["funnel"][0] == ["pairs", 20]
    assert manifest.stats["funnel"][-1] == ["placeholder", 3]
    assert manifest.stats["reasons"] == {reason: expected.count(reason) for reason in manifest.stats["reasons"]}
    assert sum(manifest.stats["reasons"].values()) + manifest.rows == 20


def test_the_artifact_holds_what_others_read(dirty: tuple[Data, Manifest]) -> None:
    data, pairs = dirty
    manifest = data.curate(CurateConfig(valid_share=0), pairs)
    for role, schema in (("curated", CURATED), ("ledger", LEDGER), ("scores", SCORE), ("features", FEATURES)):
        assert data.table(manifest, role).schema.equals(schema, check_metadata=True), role
    shards = pairs.objects_of("pairs")
    for row in data.rows(manifest, "curated"):
        source = pq_row(data.store, shards[row["shard"]], row["row"])
        assert (source["id"], source["caption"]) == (row["id"], row["caption"])
        assert row["weight"] == 1.0
    scores = data.rows(manifest, "scores")
    by_rule = {rule.name for rule in rules_of(CurateConfig())}
    assert len(scores) == 20 * len(by_rule)
    assert {row["rule"] for row in scores} == by_rule > {rule.name for rule in RULES}
    rejected_by_score = {row["id"] for row in scores if not row["passed"]}
    assert {row["id"] for row in data.rows(manifest, "ledger") if row["rule"] in by_rule} <= rejected_by_score
    assert {"language", "nsfw", "image_text_agreement"} <= manifest.stats["not_checked"].keys()


def pq_row(store: Store, obj: object, row: int) -> dict[str, object]:
    import io

    import pyarrow.parquet as pq

    return pq.read_table(io.BytesIO(store.read(obj))).slice(row, 1).to_pylist()[0]  # type: ignore[arg-type]


def test_other_thresholds_measure_nothing_again(dirty: tuple[Data, Manifest], monkeypatch: pytest.MonkeyPatch) -> None:
    data, pairs = dirty
    first = data.curate(CurateConfig(valid_share=0), pairs)

    def refuse(*_: object) -> None:
        raise AssertionError("pictures were decoded again")

    monkeypatch.setattr("tasks.curate.measure", refuse)
    second = data.curate(
        CurateConfig(valid_share=0, min_side_px=5, min_caption_chars=1, max_captions_per_picture=0), pairs
    )
    assert second.objects_of("features") == first.objects_of("features")
    assert second.rows == first.rows + 1 + 1 + 9


def test_rules_can_be_switched_off(dirty: tuple[Data, Manifest]) -> None:
    data, pairs = dirty
    open_config = CurateConfig(
        valid_share=0, min_side_px=1, max_aspect=100, min_caption_chars=0, max_caption_chars=10_000, max_word_repetition=1,
        min_entropy_bits=0, drop_duplicates=False, max_captions_per_picture=0,
    )  # fmt: skip
    manifest = data.curate(open_config, pairs)
    assert manifest.rows == 20
    assert manifest.stats["reasons"] == {}


def test_equal_pictures_share_a_cluster(dirty: tuple[Data, Manifest]) -> None:
    data, pairs = dirty
    manifest = data.curate(CurateConfig(valid_share=0), pairs)
    cluster = {row["caption"]: row["cluster"] for row in data.rows(manifest, "curated")}
    assert cluster["a red thing"] == cluster["another name for it"] != cluster["two"]
    assert manifest.stats["clusters"] == 2


def test_held_out_captions_take_their_picture_along(tmp_path: Path) -> None:
    captions = [f"person number {n}" for n in range(40)]
    pictures = {f"{n}.png": encoded(photo(40, 40, seed=n), "PNG") for n in range(40)}
    lines = [{"file_name": f"{n}.png", "text": text} for n, text in enumerate(captions)]
    lines += [{"file_name": f"{n}.png", "text": f"second name {n}"} for n in range(40)]
    data = Data(tmp_path)
    pairs = data.ingest(IngestConfig(source=f"imagefolder:{write_folder(tmp_path / 'set', pictures, lines)}"))
    rows = data.rows(data.curate(CurateConfig(holdout_pattern="^person", holdout_every=4, seed=5), pairs), "curated")
    split = {row["caption"]: row["split"] for row in rows}
    expected = [n for n in range(40) if held_out(captions[n], 4)]
    assert 4 <= len(expected) <= 18
    assert [n for n in range(40) if split[captions[n]] == "heldout"] == expected
    assert [n for n in range(40) if split[f"second name {n}"] == "heldout"] == expected, (
        "the same picture under another name"
    )


def test_nothing_left_names_the_reason_and_the_threshold(dirty: tuple[Data, Manifest]) -> None:
    data, pairs = dirty
    with pytest.raises(
        DataError,
        match=r"none of 20 pairs survives curation: 20 are dropped as side_too_small \(curate\.min_side_px = 500\)",
    ):
        data.curate(CurateConfig(min_side_px=500), pairs)
    with pytest.raises(
        DataError, match=r"no training pair is left of 3 kept ones \(3 valid\); lower curate\.valid_share \(0\.99\)"
    ):
        data.curate(CurateConfig(valid_share=0.99), pairs)
    with pytest.raises(DataError, match=r"take another curate\.fold than 0 or more than 2 curate\.folds"):
        data.curate(CurateConfig(valid_share=0.99, folds=2), pairs)
    with pytest.raises(UsageError, match="no regular expression"):
        data.curate(CurateConfig(holdout_pattern="("), pairs)


def dying_at_the_third(commit: Callable[..., None]) -> Callable[..., None]:
    count = 0

    def dying(*arguments: object) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        commit(*arguments)

    return dying


def test_the_manifest_does_not_depend_on_workers_or_on_a_stop_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "set", PICTURES, [{"file_name": name, "text": text} for name, text, _ in LINES])
    config = CurateConfig(valid_share=0, near_duplicate_bits=6)
    manifests = []
    for workers in (1, 3):
        data = Data(tmp_path / str(workers), workers)
        pairs = data.ingest(IngestConfig(source=f"imagefolder:{folder}", rows_per_shard=4))
        if workers == 3:
            with monkeypatch.context() as patch:
                patch.setattr(Store, "commit_part", dying_at_the_third(Store.commit_part))
                with pytest.raises(KeyboardInterrupt):
                    data.curate(config, pairs)
        manifests.append(data.curate(config, pairs))
    assert manifests[0].sha256 == manifests[1].sha256


def test_curating_a_set_that_grew_measures_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CurateConfig(valid_share=0.2, embedding="thumbnail", near_duplicate_bits=4)
    data, fresh = Data(tmp_path / "grown", workers=1), Data(tmp_path / "fresh", workers=1)
    sources = []
    for name, numbers in (("old", range(12)), ("new", range(10, 17))):
        pictures = {f"{n:03d}.png": encoded(photo(40, 30, seed=n), "PNG") for n in numbers}
        lines = [{"file_name": key, "text": f"picture {key}"} for key in pictures]
        source = f"imagefolder:{write_folder(tmp_path / name, pictures, lines)}"
        sources.append(IngestConfig(source=source, image_px=32, rows_per_shard=5))
    pairs = {}
    for store in (data, fresh):
        base = store.ingest(sources[0])
        if store is data:
            data.curate(config, base)
        pairs[id(store)] = store.run(INGEST, sources[1], {"pairs": base})
    embedded, measured = [], []
    thumbnails = Thumbnails.of

    def embed(self: Thumbnails, pictures: Sequence[bytes]) -> np.ndarray[Any, Any]:
        embedded.append(len(pictures))
        return thumbnails(self, pictures)

    def look(table: pa.Table, threads: Executor) -> pa.Table:
        measured.append(table.num_rows)
        return measure(table, threads)

    monkeypatch.setattr(Thumbnails, "of", embed)
    monkeypatch.setattr("tasks.curate.measure", look)
    grown = data.curate(config, pairs[id(data)])
    assert (sum(measured), sum(embedded)) == (5, 5), "12 of 17 pairs were known"
    assert data.curate(config, pairs[id(data)]).sha256 == grown.sha256 and sum(measured) == 5
    scratch = fresh.curate(config, pairs[id(fresh)])
    assert sum(measured) == 5 + 17
    assert scratch.sha256 == grown.sha256, "manifest and objects are those of a curation from scratch"
