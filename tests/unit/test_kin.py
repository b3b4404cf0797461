"""Kinship in the curate step: the cluster table, survivors, folds, and evaluation sets that training must not touch."""

from pathlib import Path

import pytest
from PIL import Image, ImageEnhance
from support.bad_images import encoded, photo
from support.data_steps import Data, write_folder

from dalle_model.config import CurateConfig, IngestConfig
from dalle_model.errors import DataError, RefNotFound
from dalle_model.records import CLUSTER
from tasks.artifacts import Manifest
from tasks.contamination import refuse_contaminated
from tasks.stages import CURATE

WHOLE = photo(96, 96, seed=1)


def jpeg(image: Image.Image, quality: int) -> bytes:
    return encoded(image, "JPEG", quality=quality)


def recoloured(image: Image.Image) -> Image.Image:
    """Grey stays as it is, so the perceptual hash hardly moves; colours fade a little."""
    return ImageEnhance.Color(image).enhance(0.9)


PICTURES = {
    "a.png": encoded(WHOLE, "PNG"),
    "b.png": encoded(WHOLE, "PNG", compress_level=1),  # other bytes, equal pixels
    "c.jpg": jpeg(WHOLE, 60),
    "d.png": encoded(WHOLE.resize((200, 200)), "PNG"),  # the largest source
    "e.png": encoded(recoloured(WHOLE), "PNG"),
    **{f"other{n}.png": encoded(photo(96, 96, seed=10 + n), "PNG") for n in range(12)},
}
KIN = ("a.png", "b.png", "c.jpg", "d.png", "e.png")


@pytest.fixture(scope="module")
def kin(tmp_path_factory: pytest.TempPathFactory) -> tuple[Data, Manifest]:
    folder = tmp_path_factory.mktemp("kin")
    write_folder(folder / "set", PICTURES, [{"file_name": name, "text": f"the thing {name}"} for name in PICTURES])
    data = Data(folder)
    return data, data.ingest(IngestConfig(source=f"imagefolder:{folder}/set", rows_per_shard=6))


def by_key(data: Data, pairs: Manifest, manifest: Manifest) -> dict[str, dict[str, object]]:
    key = {row["id"]: row["key"] for row in data.rows(pairs, "pairs")}
    return {key[row["id"]]: row for row in data.rows(manifest, "clusters")}


def test_the_cluster_table_says_which_tier_joined_what_and_who_survives(kin: tuple[Data, Manifest]) -> None:
    data, pairs = kin
    config = CurateConfig(valid_share=0, near_duplicate_bits=6, embedding="thumbnail", max_pairs_per_cluster=1)
    manifest = data.curate(config, pairs)
    assert data.table(manifest, "clusters").schema.equals(CLUSTER, check_metadata=True)
    rows = by_key(data, pairs, manifest)
    assert len(rows) == len(PICTURES)
    assert len({rows[name]["cluster"] for name in KIN}) == 1
    assert len({row["cluster"] for row in rows.values()}) == 13
    assert (rows["d.png"]["tier"], rows["d.png"]["survivor"]) == ("", True), "the largest source survives"
    assert {rows["a.png"]["tier"], rows["b.png"]["tier"]} >= {"bytes"}
    assert all(rows[name]["tier"] and not rows[name]["survivor"] for name in KIN if name != "d.png")
    ledger = {row["key"]: row["reason"] for row in data.rows(manifest, "ledger")}
    assert [ledger[name] for name in KIN] == ["near_duplicate"] * 3 + ["", "near_duplicate"]
    assert manifest.stats["joined_by"]["bytes"] == 1 and manifest.stats["clusters"] == 13


def test_the_embedding_tier_finds_what_hashes_are_not_asked_for(kin: tuple[Data, Manifest]) -> None:
    data, pairs = kin
    rows = by_key(data, pairs, data.curate(CurateConfig(valid_share=0, embedding="thumbnail"), pairs))
    assert len({rows[name]["cluster"] for name in KIN}) == 1
    tiers = {row["tier"]: row["distance"] for row in rows.values()}
    assert tiers.keys() == {"", "bytes", "embedding"}
    assert 0 < tiers["embedding"] < 0.04
    strict = by_key(
        data, pairs, data.curate(CurateConfig(valid_share=0, embedding="thumbnail", embedding_distance=0), pairs)
    )
    assert strict["a.png"]["cluster"] == strict["b.png"]["cluster"] != strict["e.png"]["cluster"]
    rough = by_key(
        data, pairs, data.curate(CurateConfig(valid_share=0, embedding="random", embedding_distance=0.05), pairs)
    )
    assert rough["a.png"]["cluster"] == rough["b.png"]["cluster"] != rough["other1.png"]["cluster"]


def test_each_fold_is_the_test_split_once_and_kin_is_never_on_both_sides(kin: tuple[Data, Manifest]) -> None:
    data, pairs = kin
    tested: list[str] = []
    for fold in range(3):
        config = CurateConfig(near_duplicate_bits=6, embedding="thumbnail", folds=3, fold=fold, valid_share=0.1)
        rows = data.rows(data.curate(config, pairs), "curated")
        sides: dict[str, set[str]] = {}
        for row in rows:
            sides.setdefault(row["cluster"], set()).add(row["split"])
        assert all(len(side) == 1 for side in sides.values())
        tested += [row["id"] for row in rows if row["split"] == "test"]
    assert sorted(tested) == sorted(row["id"] for row in rows)
    with pytest.raises(ValueError, match="fold 3 of 3 folds"):
        CurateConfig(folds=3, fold=3)


def test_a_fold_that_no_cluster_falls_into_is_an_error_that_says_so(tmp_path: Path) -> None:
    """Cross-validation of a tiny set ended in an evaluation that had no pictures."""
    pictures = {f"{n}.png": encoded(photo(64, 64, seed=n), "PNG") for n in range(3)}
    lines = [{"file_name": name, "text": f"picture {name}"} for name in pictures]
    data = Data(tmp_path)
    pairs = data.ingest(IngestConfig(source=f"imagefolder:{write_folder(tmp_path / 'set', pictures, lines)}"))
    tested, empty = 0, 0
    for fold in range(5):
        try:
            made = data.curate(CurateConfig(folds=5, fold=fold, valid_share=0), pairs)
            tested += made.stats["splits"]["test"]
        except DataError as error:
            assert f"fold {fold} of 5 is empty: the 3 kept pairs are 3 clusters of kin" in str(error)
            empty += 1
    assert tested == 3 and empty >= 2


def test_what_touches_an_excluded_set_is_dropped_with_its_kin(kin: tuple[Data, Manifest], tmp_path: Path) -> None:
    data, pairs = kin
    foreign = {
        "x.jpg": jpeg(WHOLE, 40),
        "y.png": encoded(photo(96, 96, seed=12), "PNG"),
        "z.png": encoded(photo(96, 96, seed=99), "PNG"),
    }
    write_folder(tmp_path / "eval", foreign, [{"file_name": name, "text": f"a name of {name}"} for name in foreign])
    evaluation = data.ingest(IngestConfig(source=f"imagefolder:{tmp_path}/eval"))
    data.store.set_ref("benchmark", evaluation)
    config = CurateConfig(
        valid_share=0, embedding="thumbnail", exclude=("benchmark",), exclude_bits=0, embedding_distance=0.03
    )
    manifest = data.curate(config, pairs)
    reasons = {row["key"]: row["reason"] for row in data.rows(manifest, "ledger")}
    assert {key for key, reason in reasons.items() if reason == "touches_evaluation"} == {*KIN, "other2.png"}
    assert manifest.rows == len(PICTURES) - 6
    by_print = data.curate(config.model_copy(update={"exclude": (evaluation.fingerprint[:10],)}), pairs)
    assert by_print.fingerprint == manifest.fingerprint, "a set counts by its content, not by its name"
    chosen = data.curate(CurateConfig(valid_share=0, min_caption_words=4), evaluation)
    again = data.curate(
        config.model_copy(update={"exclude": (chosen.fingerprint,), "embedding": "none", "exclude_bits": 6}), pairs
    )
    assert again.stats["reasons"]["touches_evaluation"] >= 4
    with pytest.raises(RefNotFound):
        data.curate(config.model_copy(update={"exclude": ("nobody",)}), pairs)


def test_a_set_that_training_touches_is_refused_until_it_is_excluded(
    kin: tuple[Data, Manifest], tmp_path: Path
) -> None:
    data, pairs = kin
    write_folder(tmp_path / "eval", {"x.jpg": jpeg(WHOLE, 40)}, [{"file_name": "x.jpg", "text": "seen before"}])
    foreign = data.curate(CurateConfig(valid_share=0), data.ingest(IngestConfig(source=f"imagefolder:{tmp_path}/eval")))
    job = data.job(CURATE, CurateConfig(), {"pairs": pairs})
    seen = data.curate(CurateConfig(valid_share=0, exclude_bits=6), pairs)
    with pytest.raises(DataError, match=r"[45] of 17 training pictures touch the evaluation set .*curate\.exclude"):
        refuse_contaminated(job, seen, foreign)
    clean = data.curate(
        CurateConfig(valid_share=0, near_duplicate_bits=6, exclude_bits=6, exclude=(foreign.fingerprint,)), pairs
    )
    assert refuse_contaminated(job, clean, foreign)["touching"] == 0
