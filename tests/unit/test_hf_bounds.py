"""Data sets of Hugging Face's formats: a row that is too large costs itself and no memory."""

import json
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.bad_images import encoded, photo
from support.source_rows import seen, tar_of

from dalle_model.config import IngestConfig
from dalle_model.decoding import Refused
from dalle_model.errors import SourceError
from dalle_model.sources.huggingface_tars import split_archives
from dalle_model.sources.parquet_records import value_within
from dalle_model.sources.registry import open_source

datasets = pytest.importorskip("datasets")
PNG, OTHER = encoded(photo(40, 30), "PNG"), encoded(photo(40, 30, seed=1), "PNG")
GIANT = 4_000_001


@pytest.fixture
def giants(tmp_path: Path) -> Iterator[Path]:
    """Four pairs as Arrow: the second has a giant picture, the last a giant caption."""
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    pictures = [PNG, b"x" * GIANT, OTHER, PNG]
    record = {"image": pictures, "text": ["a", "b", "c", "d" * 1_000_001]}
    datasets.Dataset.from_dict(record, features=features).save_to_disk(str(tmp_path / "disk"))
    (tmp_path / "arrow").mkdir()
    (tmp_path / "disk" / "data-00000-of-00001.arrow").rename(tmp_path / "arrow" / "train.arrow")
    (tmp_path / "disk" / "data-00000-of-00001.arrow").symlink_to(tmp_path / "arrow" / "train.arrow")
    yield tmp_path


@pytest.mark.parametrize("form", ["disk", "arrow"])
def test_a_giant_cell_of_arrow_costs_its_own_row_and_is_not_read(giants: Path, form: str) -> None:
    source = open_source(IngestConfig(source=f"hf:{giants}/{form}", max_image_bytes=1_000_000))
    tracemalloc.start()
    rows = list(source.rows(0))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    found = [(r.key, r.image.reason.value if isinstance(r.image, Refused) else r.image) for r in rows]
    assert found == [
        ("train#0", PNG),
        ("train#1", "too_many_bytes"),
        ("train#2", OTHER),
        ("train#3", "caption_too_long"),
    ]
    assert rows[1].image == Refused("too_many_bytes", f"{GIANT} bytes, the limit is 1000000", GIANT)  # type: ignore[arg-type]
    assert most < GIANT / 4, "a mapped file is not copied"
    for start in (1, 2, 4):
        assert [row.key for row in source.rows(start)] == [row.key for row in rows[start:]]


def test_arrow_files_are_read_in_both_formats_and_damage_names_them(tmp_path: Path) -> None:
    table = pa.table({"image": [PNG, OTHER, PNG], "text": [["a", "b"], ["c"], ["d"]]})
    for name, new in (("train-0", pa.ipc.new_stream), ("train-1", pa.ipc.new_file)):
        with pa.OSFile(str(tmp_path / f"{name}.arrow"), "wb") as sink, new(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    captions = ["a", "b", "c", "d"] * 2
    for start in (0, 1, 3, 6):
        assert [row[1] for row in seen(f"hf:{tmp_path}", start)] == captions[start:]
    data = (tmp_path / "train-1.arrow").read_bytes()
    source = open_source(IngestConfig(source=f"hf:{tmp_path}"))
    (tmp_path / "train-1.arrow").write_bytes(data[: len(data) // 2])
    with pytest.raises(SourceError, match=r"train-1\.arrow is damaged"):
        list(source.rows(0))


@pytest.mark.parametrize(
    ("value", "kind", "size"),
    [
        (b"12345", pa.binary(), 5),
        ("äöü", pa.string(), 6),
        ("äöü", pa.large_string(), 6),
        (b"12345", pa.binary_view(), 5),
        ({"bytes": b"123", "path": "12"}, pa.struct({"bytes": pa.binary(), "path": pa.string()}), 5),
        (None, pa.string(), 0),
        (7, pa.int64(), 0),
    ],
)
def test_the_size_of_a_value_is_known_before_it_is_read(value: Any, kind: pa.DataType, size: int) -> None:
    scalar = pa.array([b"before" if kind == pa.binary() else None, value], kind)[1]
    assert value_within(scalar, size) == value
    if size:
        assert value_within(scalar, size - 1).score == size
    many = pa.array([["a" * 50] * 3], pa.list_(pa.string()))[0]
    assert value_within(many, 1000) == ["a" * 50] * 3 and isinstance(value_within(many, 149), Refused)


def test_archives_of_a_data_set_are_read_with_the_bounds_of_webdataset(tmp_path: Path) -> None:
    """The library takes every member into memory, and ends the run at a damaged archive or a sample without a part."""
    folder = tmp_path / "set" / "train"
    folder.mkdir(parents=True)
    members = {
        "1.jpg": PNG,
        "1.txt": b"one",
        "2.jpg": b"x" * 2_000_000,
        "2.txt": b"two",
        "3.png": OTHER,
        "3.txt": b"three",
    }
    tar_of(folder / "a-0.tar", members)
    tar_of(folder / "a-1.tar", {"4.jpg": PNG, "4.json": json.dumps({"caption": "four", "mine": "4"}).encode()})
    with (folder / "a-1.tar").open("r+b") as damaged:
        damaged.truncate(3 * 512 + -(-len(PNG) // 512) * 512)  # two members, and no end mark
    source = f"hf:{tmp_path}/set"
    found = seen(source, max_image_bytes=1_000_000)
    assert found == [
        ("train/a-0.tar/1", "one", ""),
        ("train/a-0.tar/2", "two", "too_many_bytes"),
        ("train/a-0.tar/3", "three", ""),
        ("train/a-1.tar/4", "four", ""),
        ("train/a-1.tar", "", "unreadable_file"),
    ]
    assert seen(source, 2, max_image_bytes=1_000_000) == found[2:]
    opened = open_source(IngestConfig(source=source))
    assert (opened.count(), opened.name) == (0, "hf") and opened.identity()["hf.split"] == "train"
    assert [row[1] for row in seen(source, caption_column="txt", image_column="png")] == [
        "one",
        "two",
        "three",
        "four",
        "",
    ]
    assert [row[2] for row in seen(source, image_column="png")][:3] == ["no_image", "no_image", ""]
    assert [row[1] for row in seen(source, caption_column="mine")] == ["one", "two", "three", "4", ""]
    with pytest.raises(SourceError, match=r"ingest\.image_column=mask"):
        seen(source, image_column="mask")


def test_archives_are_read_by_their_address_and_a_network_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = pytest.importorskip("fsspec").filesystem("memory")
    tar_of(tmp_path / "a.tar", {"1.jpg": PNG, "1.txt": b"one", "2.jpg": OTHER, "2.txt": b"two"})
    memory.pipe_file("/user/set@main/data/a.tar", (tmp_path / "a.tar").read_bytes())
    archives = split_archives(["memory://user/set@main/data/a.tar"], None, "", "", 1_000_000)
    assert [(row.key, row.caption, row.image) for row in archives.rows(0)] == [
        ("data/a.tar/1", "one", PNG), ("data/a.tar/2", "two", OTHER)
    ]  # fmt: skip
    assert archives.bytes_read() == (0, 0)
    memory.pipe_file("/user/set@main/data/a.tar", (tmp_path / "a.tar").read_bytes())
    stream = memory.open("/user/set@main/data/a.tar")

    def cut_off(size: int) -> bytes:
        raise ConnectionResetError("by peer")

    monkeypatch.setattr(stream, "read", cut_off)
    monkeypatch.setattr("datasets.utils.file_utils.xopen", lambda *_: stream)
    with pytest.raises(SourceError, match=r"a\.tar cannot be read \(by peer\); run again to go on"):
        list(archives.rows(0))
    memory.rm("/user", recursive=True)


def test_a_picture_behind_an_address_is_read_up_to_the_limit(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("giant.png", b"x" * 3_000_000)
        packed.writestr("1.png", PNG)
    table = pa.table({"image": [{"bytes": None, "path": f"zip://{name}::a.zip"} for name in ("giant.png", "1.png")], "text": ["a", "b"]})  # fmt: skip
    with pa.OSFile(str(tmp_path / "train.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    source = open_source(IngestConfig(source=f"hf:{tmp_path}", max_image_bytes=1_000_000))
    too_large, image = (row.image for row in source.rows(0))
    assert isinstance(too_large, Refused) and too_large.detail == "more than 1000000 bytes"
    assert image == PNG
