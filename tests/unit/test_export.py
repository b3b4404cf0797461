"""Export: what went in can be matched with what came out."""

import csv
import json
from pathlib import Path

import pytest
from support.bad_images import encoded, photo
from support.data_steps import Data, write_folder

from dalle_model.config import CurateConfig, IngestConfig
from dalle_model.errors import DataError, UsageError
from tasks.artifacts import Manifest
from tasks.erase_pairs import erase_pairs
from tasks.export import export_pairs
from tasks.forget import erase, forget


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Data, Manifest, Manifest]:
    folder = tmp_path_factory.mktemp("export")
    pictures = {
        f"{n}.{'jpg' if n % 2 else 'png'}": encoded(photo(40, 30, seed=n), "JPEG" if n % 2 else "PNG") for n in range(8)
    }
    pictures["=bad.png"] = b"rubbish"
    lines = [{"file_name": name, "text": f"picture {name}" if name != "3.jpg" else "x"} for name in pictures]
    data = Data(folder)
    pairs = data.ingest(
        IngestConfig(source=f"imagefolder:{write_folder(folder / 'set', pictures, lines)}", rows_per_shard=3)
    )
    return data, pairs, data.curate(CurateConfig(valid_share=0.2), pairs)


def exported(data: Data, manifest: Manifest, place: Path | str) -> dict[str, int]:
    return export_pairs(data.store, manifest, str(place), data.settings)


def lines_of(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def rejected_in(folder: Path) -> list[dict[str, str]]:
    with open(folder / "rejected.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_pairs_artifact_becomes_an_imagefolder_that_can_be_ingested_again(
    made: tuple[Data, Manifest, Manifest], tmp_path: Path
) -> None:
    data, pairs, _ = made
    assert exported(data, pairs, tmp_path / "out") == {"pairs": 8, "rejected": 1, "withdrawn": 0}
    rows = lines_of(tmp_path / "out")
    assert [row["key"] for row in rows] == [f"{n}.{'jpg' if n % 2 else 'png'}" for n in range(8)]
    stored = data.rows(pairs, "pairs")
    for row, pair in zip(rows, stored, strict=True):
        assert (tmp_path / "out" / row["file_name"]).read_bytes() == pair["image"]
        assert (row["id"], row["text"]) == (pair["id"], pair["caption"])
    again = Data(tmp_path / "again").ingest(IngestConfig(source=f"imagefolder:{tmp_path}/out"))
    assert again.rows == 8
    assert again.stats["rejected"] == 0


def test_a_curated_artifact_has_its_splits_and_the_rejects_of_both_steps(
    made: tuple[Data, Manifest, Manifest], tmp_path: Path
) -> None:
    data, _, curated = made
    assert exported(data, curated, tmp_path / "out") == {"pairs": 7, "rejected": 2, "withdrawn": 0}
    splits = {row["id"]: row["split"] for row in data.rows(curated, "curated")}
    assert {row["id"]: row["split"] for row in lines_of(tmp_path / "out")} == splits
    assert [(row["key"], row["reason"], row["score"]) for row in rejected_in(tmp_path / "out")] == [
        ("'=bad.png", "unknown_format", ""),  # no formula for a spreadsheet
        ("3.jpg", "caption_too_short", "1.0"),
    ]


def test_nothing_is_overwritten_and_a_stopped_export_leaves_nothing(
    made: tuple[Data, Manifest, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, pairs, _ = made
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="is a file or not empty"):
        exported(data, pairs, tmp_path / "full")
    (tmp_path / "empty").mkdir()
    assert exported(data, pairs, tmp_path / "empty")["pairs"] == 8

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tasks.export._export_rejected", stopped)
    with pytest.raises(KeyboardInterrupt):
        exported(data, pairs, tmp_path / "stopped")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"]


def test_other_artifacts_are_refused(made: tuple[Data, Manifest, Manifest], tmp_path: Path) -> None:
    data, pairs, _ = made
    with pytest.raises(DataError, match="is of kind model"):
        exported(data, pairs.model_copy(update={"kind": "model"}), tmp_path / "out")


def test_withdrawn_pairs_are_left_out_before_and_after_their_last_bytes_are_erased(tmp_path: Path) -> None:
    pictures = {f"{n}.png": encoded(photo(40, 30, seed=n), "PNG") for n in range(4)}
    lines = [{"file_name": name, "text": f"picture {name}"} for name in pictures]
    data = Data(tmp_path)
    pairs = data.ingest(IngestConfig(source=f"imagefolder:{write_folder(tmp_path / 'set', pictures, lines)}"))
    curated = data.curate(CurateConfig(valid_share=0), pairs)
    forget(data.store, "2.png", data.settings)
    expected = {"pairs": 3, "rejected": 0, "withdrawn": 1}
    assert exported(data, pairs, tmp_path / "before") == exported(data, curated, tmp_path / "curated") == expected
    data.curate(CurateConfig(valid_share=0), pairs)  # a sound set, for which the pairs must stay
    erase_pairs(data.store, data.settings, erase(data.store))
    after = data.store.find(pairs.step, pairs.fingerprint)
    assert after is not None and after.replaces
    assert exported(data, after, tmp_path / "after") == expected
    for place in ("before", "curated", "after"):
        assert [row["key"] for row in lines_of(tmp_path / place)] == ["0.png", "1.png", "3.png"]
        assert len(list((tmp_path / place / "images").iterdir())) == 3
    assert not forget(data.store, "2.png", data.settings).new, (
        "the ledgers do not know the key any more, but its rule is there"
    )
