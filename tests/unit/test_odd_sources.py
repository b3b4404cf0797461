"""Sources as people have them: several captions of a picture, packed lists, Windows paths, ranges of archives."""

import bz2
import gzip
import io
import json
import lzma
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.bad_images import encoded, photo
from support.data_steps import Data, write_folder
from support.source_rows import seen, tar_of

from dalle_model.config import IngestConfig
from dalle_model.decoding import Refused
from dalle_model.errors import SourceError, UsageError
from dalle_model.sources import json_records, parquet_large, unpacking
from dalle_model.sources.captions import MAX_CAPTIONS
from dalle_model.sources.huggingface_parquet import ParquetSplit
from dalle_model.sources.metadata import read_lines
from dalle_model.sources.registry import open_source

PNG, OTHER = encoded(photo(40, 30), "PNG"), encoded(photo(40, 30, seed=1), "PNG")


def test_several_captions_of_a_picture_are_as_many_rows_in_every_source(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    captions = [["one", "two"], [], ["three"], ["x"] * (MAX_CAPTIONS + 1)]
    table = pa.table({"image": [PNG, OTHER, PNG, OTHER], "text": captions})
    (tmp_path / "p").mkdir()
    pq.write_table(table, tmp_path / "p" / "a.parquet", row_group_size=1)
    datasets.Dataset(table).save_to_disk(str(tmp_path / "disk"))
    pictures = {"a.png": PNG, "b.png": OTHER, "c.png": PNG, "d.png": OTHER}
    lines = [{"file_name": name, "text": texts} for name, texts in zip(pictures, captions, strict=True)]
    write_folder(tmp_path / "f", pictures, lines)
    members = {name: data for n, (png, data) in enumerate(pictures.items()) for name, data in
               ((png, data), (f"{png[0]}.json", json.dumps({"text": captions[n]}).encode()))}  # fmt: skip
    tar_of(tmp_path / "t.tar", members)
    expected = [("one", ""), ("two", ""), (None, ""), ("three", ""), ("", "bad_metadata")]
    for source in (f"parquet:{tmp_path}/p", f"hf:{tmp_path}/disk", f"hf:{tmp_path}/p", f"imagefolder:{tmp_path}/f",
                   f"jsonl:{tmp_path}/f/metadata.jsonl", f"webdataset:{tmp_path}/t.tar"):  # fmt: skip
        found = seen(source)
        assert [row[1:] for row in found] == expected, source
        assert found[0][0] == found[1][0], "the key is the picture's"
        for start in (1, 4):
            assert seen(source, start) == found[start:], source
    data = Data(tmp_path)
    manifest = data.ingest(IngestConfig(source=f"parquet:{tmp_path}/p", image_px=32, rows_per_shard=2))
    assert [row["caption"] for row in data.rows(manifest, "pairs")] == ["one", "two", "three"]
    assert manifest.stats["reasons"] == {"bad_metadata": 1, "no_caption": 1}


@pytest.mark.parametrize("kind", ["parquet", "hf"])
def test_resuming_behind_several_captions_reads_no_earlier_picture(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("datasets")
    table = pa.table({"image": [b"%d" % n for n in range(9)], "text": [["one", "two"]] * 9})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    source: Any = open_source(IngestConfig(source=f"{kind}:{tmp_path}"))
    make, made = source._row, []
    source._row = lambda record, *words: made.append(record["image"]) or make(record, *words)
    assert [(row.image, row.caption) for row in source.rows(15)] == [(b"7", "two"), (b"8", "one"), (b"8", "two")]
    assert made == [b"7", b"8"]
    assert not list(source.rows(18)) and not list(source.rows(30))


def test_captions_that_are_stored_as_bytes_are_texts(tmp_path: Path) -> None:
    texts = pa.array(["é".encode(), b"\xff"], pa.binary())
    pq.write_table(pa.table({"image": [PNG, OTHER], "text": texts}), tmp_path / "a.parquet")
    for source in (f"parquet:{tmp_path}/a.parquet", f"hf:{tmp_path}"):
        assert [row[1] for row in seen(source)] == ["é", b"\xff"]


def zst(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(data)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(("suffix", "pack"), [("bz2", bz2.compress), ("xz", lzma.compress), ("zst", zst)])
def test_packed_lists_are_unpacked_and_damage_is_a_row(tmp_path: Path, suffix: str, pack: Any) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    lines = b"".join(b'{"file_name": "a.png", "text": "row %d"}\n' % n for n in range(2_000))
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(pack(lines))
    assert seen(f"jsonl:{tmp_path}/a.jsonl.{suffix}", 1_999) == [("a.png", "row 1999", "")]
    assert open_source(IngestConfig(source=f"jsonl:{tmp_path}/a.jsonl.{suffix}")).count() == 2_000
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(pack(lines)[:-20])
    *_, last = seen(f"jsonl:{tmp_path}/a.jsonl.{suffix}")
    assert last[2] == "unreadable_file"
    for name, cells in (("csv", "file_name,text\na.png,x\n"), ("TSV", "file_name\ttext\na.png\tx\n")):
        (tmp_path / f"a.{name}.{suffix}").write_bytes(pack(cells.encode()))
        assert seen(f"csv:{tmp_path}/a.{name}.{suffix}") == [("a.png", "x", "")]
    (tmp_path / f"u.txt.{suffix}").write_bytes(pack(b"ftp://x/a one\n"))
    assert seen(f"urls:{tmp_path}/u.txt.{suffix}") == [("ftp://x/a", "one", "bad_url")]
    with pytest.raises(SourceError, match=r"is no \.jsonl file"):
        seen(f"jsonl:{tmp_path}/a.csv.{suffix}")


def test_paths_of_windows_and_addresses_among_paths(tmp_path: Path) -> None:
    pictures = {"a/1.png": PNG, "a\\2.png": OTHER}
    names = ["a\\1.png", "a\\2.png", "a\\..\\..\\1.png", "C:\\a\\1.png", "https://example.org/1.png"]
    lines = [{"file_name": name, "text": f"{n}"} for n, name in enumerate(names)]
    write_folder(tmp_path / "set", pictures, lines)
    found = seen(f"jsonl:{tmp_path}/set/metadata.jsonl")
    assert [row[0] for row in found[:2]] == ["a/1.png", "a\\2.png"], "a name of this system may hold a backslash"
    assert [row[2] for row in found] == ["", "", "outside_source", "", "bad_metadata"]
    data = Data(tmp_path)
    manifest = data.ingest(IngestConfig(source=f"imagefolder:{tmp_path}/set", image_px=32))
    assert manifest.rows == 2 and manifest.stats["rows_in"] == 5, "what is named is not found a second time as nameless"


def test_a_range_of_archives(tmp_path: Path) -> None:
    for n in (8, 9, 10):
        tar_of(tmp_path / f"s-{n:04d}.tar", {"A.JPG": PNG, "A.TXT": f"picture {n}".encode()})
    found = seen(f"webdataset:{tmp_path}/s-{{0008..0010}}.tar")
    assert [row[:2] for row in found] == [(f"s-{n:04d}.tar/A", f"picture {n}") for n in (8, 9, 10)]
    with pytest.raises(SourceError, match=r"s-0011\.tar does not exist"):
        seen(f"webdataset:{tmp_path}/s-{{0008..0011}}.tar")
    for bad in ("s-{3..1}.tar", "s-{0..9999999}.tar", "{0..1}/s.tar"):
        with pytest.raises(UsageError, match="one range"):
            seen(f"webdataset:{tmp_path}/{bad}")
    tar_of(tmp_path / "dots.tar", {"c.v2.jpg": PNG, "c.v2.txt": b"x"})
    (row,) = open_source(IngestConfig(source=f"webdataset:{tmp_path}/dots.tar")).rows(0)
    assert isinstance(row.image, Refused) and ".v2.jpg, .v2.txt" in row.image.detail


def test_rows_of_a_data_set_lead_nowhere_else(tmp_path: Path) -> None:
    """A row may say where its picture lies, and ``datasets`` opens whatever address that is."""
    pytest.importorskip("datasets")
    folder, secret = tmp_path / "set", tmp_path / "secret.png"
    folder.mkdir()
    secret.write_bytes(PNG)
    (folder / "mine.png").write_bytes(PNG)
    paths = [f"file://{secret}", "http://127.0.0.1:9/a.png", f"zip://a.png::{tmp_path}/other.zip", f"simplecache::file://{secret}",
             f"zip://a::file://{secret}", "../secret.png", "mine.png"]  # fmt: skip
    table = pa.table(
        {"image": [{"bytes": None, "path": p} for p in paths], "text": [f"{n}" for n in range(len(paths))]}
    )
    pq.write_table(table, folder / "a.parquet")
    rows = list(open_source(IngestConfig(source=f"hf:{folder}")).rows(0))
    assert [r.image.reason.value if isinstance(r.image, Refused) else "" for r in rows] == ["outside_source"] * 6 + [""]


def test_a_giant_cell_of_a_parquet_data_set_costs_its_own_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library would read the row group as a whole, and raise or run out of memory."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(parquet_large, "LARGE_CHUNK_BYTES", 1_000)
    features = {"image": datasets.Image(), "mask": datasets.Image(), "text": datasets.Value("string")}
    pictures = [PNG, b"x" * 20_000_001, OTHER, PNG]
    record = {"image": pictures, "mask": [PNG, PNG, b"no picture", PNG], "text": ["a", "b", "c", "d" * 1_000_001]}
    data = datasets.Dataset.from_dict(record).cast(datasets.Features(features))
    (tmp_path / "set").mkdir()
    for part in (0, 1):
        data.shard(2, part).to_parquet(str(tmp_path / "set" / f"train-{part}.parquet"), batch_size=2)
    source = f"hf:{tmp_path}/set"
    found = seen(source)
    assert [(key, reason) for key, _, reason in found] == [
        ("train#0", ""), ("train#1", "too_many_bytes"), ("train#2", ""), ("train#3", "caption_too_long")
    ]  # fmt: skip
    for start in (1, 2, 3, 4):
        assert seen(source, start) == found[start:]
    assert open_source(IngestConfig(source=source)).count() == 4


def test_a_parquet_file_of_a_data_set_that_is_cut_off_is_named(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    pq.write_table(pa.table({"image": [PNG], "text": ["a"]}), tmp_path / "train-0.parquet")
    (tmp_path / "train-1.parquet").write_bytes((tmp_path / "train-0.parquet").read_bytes()[:-20])
    source = open_source(IngestConfig(source=f"hf:{tmp_path}"))
    for read in (source.count, lambda: list(source.rows(0))):
        with pytest.raises(SourceError, match=r"train-1\.parquet is no readable Parquet file"):
            read()


def test_a_data_set_may_hold_pictures_that_are_not_asked_for(tmp_path: Path) -> None:
    """The library decodes every picture of a record: a broken mask ended the run."""
    datasets = pytest.importorskip("datasets")
    record = {"image": [PNG, OTHER], "mask": [b"no picture", PNG], "text": ["a", "b"]}
    features = {"image": datasets.Image(), "mask": datasets.Image(), "text": datasets.Value("string")}
    datasets.Dataset.from_dict(record).cast(datasets.Features(features)).save_to_disk(str(tmp_path / "disk"))
    assert seen(f"hf:{tmp_path}/disk") == [("train#0", "a", ""), ("train#1", "b", "")]


def test_parquet_files_are_read_by_their_address(tmp_path: Path) -> None:
    """As those of the Hub are (hf://...)."""
    memory = pytest.importorskip("fsspec").filesystem("memory")
    pytest.importorskip("datasets")
    pq.write_table(
        pa.table({"image": [PNG, OTHER, PNG], "text": ["a", "b", "c"]}), tmp_path / "a.parquet", row_group_size=1
    )
    memory.pipe_file("/set/a.parquet", (tmp_path / "a.parquet").read_bytes())
    split = ParquetSplit(["memory://set/a.parquet", str(tmp_path / "a.parquet")], "text", "image", 1_000_000)
    assert [record["text"] for record in split.records(2)] == ["c", "a", "b", "c"]
    assert (list(split.records(4, ["text"])), split.count()) == ([{"text": "b"}, {"text": "c"}], 6)
    memory.rm("/set", recursive=True)


def test_a_pipe_in_the_place_of_a_file_is_told_and_not_waited_at(tmp_path: Path) -> None:
    for name in ("a.parquet", "a.tar"):
        os.mkfifo(tmp_path / name)
    for source in (f"parquet:{tmp_path}/a.parquet", f"webdataset:{tmp_path}/a.tar"):
        with pytest.raises(SourceError, match="a pipe, a socket or a device"):
            open_source(IngestConfig(source=source))
    with pytest.raises(SourceError, match="not a regular file"):
        open_source(IngestConfig(source=f"parquet:{tmp_path}"))
    assert [row[2] for row in seen(f"webdataset:{tmp_path}")] == ["unreadable_file"]


def test_texts_beside_pictures_are_read_as_editors_write_them(tmp_path: Path) -> None:
    texts = {"a": "caf\u00e9".encode("utf-16"), "b": "\ufeffcaf\u00e9".encode(), "c": b"x" * 1_000_001, "d": b"caf\xe9"}
    for name, data in texts.items():
        (tmp_path / f"{name}.png").write_bytes(PNG)
        (tmp_path / f"{name}.txt").write_bytes(data)
    tar_of(tmp_path / "t.tar", {"a.png": PNG, "a.txt": texts["a"]})
    assert seen(f"imagefolder:{tmp_path}") == [
        ("a.png", "caf\u00e9", ""), ("b.png", "caf\u00e9", ""), ("c.png", "", "caption_too_long"), ("d.png", "caf\udce9", "")
    ]  # fmt: skip
    assert seen(f"webdataset:{tmp_path}/t.tar") == [("t.tar/a", "caf\u00e9", "")]


def test_a_heading_that_stands_twice_is_refused_and_spaces_round_one_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "two.csv").write_text("file_name,text,text\na.png,one,two\n")
    (tmp_path / "spaced.csv").write_text("file_name, text ,,\na.png,one,,\n")
    assert [row[2] for row in seen(f"csv:{tmp_path}/two.csv")] == ["bad_metadata"]
    assert seen(f"csv:{tmp_path}/spaced.csv") == [("a.png", "one", "")]


# ------------------------------------------------------------------------------------------- packed to no good purpose


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
def test_a_list_that_unpacks_to_far_more_than_its_size_ends_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zst}[suffix]
    monkeypatch.setattr(unpacking, "MOST_BYTES", 100_000)
    (tmp_path / "a.png").write_bytes(PNG)
    line = b'{"file_name": "a.png", "text": "one"}\n'
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(pack(line + b" " * 2_000_000 + b"\n" + line))
    rows = list(open_source(IngestConfig(source=f"jsonl:{path}")).rows(0))
    assert [row.caption for row in rows] == ["one", ""]
    assert isinstance(rows[1].image, Refused) and rows[1].image.reason == "too_many_bytes"
    assert "over 100 times its size; if you trust it, unpack it" in rows[1].image.detail
    assert open_source(IngestConfig(source=f"jsonl:{path}")).count() < 3
    path.write_bytes(pack(b"".join(b'{"file_name": "a.png", "text": "row %d"}\n' % n for n in range(5_000))))
    assert seen(f"jsonl:{path}", 4_999) == [("a.png", "row 4999", "")], "three times the limit, ten times its size"


@pytest.mark.parametrize("suffix", ["tar.gz", "tgz", "tar.bz2", "tar.xz"])
def test_an_archive_that_unpacks_to_far_more_than_its_size_ends_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(unpacking, "MOST_BYTES", 100_000)
    pack = {"z2": bz2.compress, "xz": lzma.compress}.get(suffix[-2:], gzip.compress)
    tar_of(tmp_path / "a", {"1.png": PNG, "1.txt": b"one", "2.bin": bytes(3_000_000), "3.png": PNG, "3.txt": b"three"})
    bomb = tmp_path / f"a.{suffix}"
    bomb.write_bytes(pack((tmp_path / "a").read_bytes()))
    rows = list(open_source(IngestConfig(source=f"webdataset:{bomb}")).rows(0))
    assert [row.caption for row in rows] == ["one", None, ""]
    assert isinstance(rows[2].image, Refused) and rows[2].image.reason == "too_many_bytes"
    assert "unpack it and give what comes out; what follows is lost" in rows[2].image.detail
    (tmp_path / "a").rename(tmp_path / "a.tar")
    assert [row[1] for row in seen(f"webdataset:{tmp_path}/a.tar")] == ["one", None, "three"], "the remedy"


# ------------------------------------------------------------------------------------------------ metadata as it comes


def test_an_array_of_objects_is_read_like_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    records = [{"file_name": "a.png", "text": f"größer 猫 {n}", "parts": [{"a": "]}"}]} for n in range(50)]
    expected = [("a.png", f"größer 猫 {n}", "") for n in range(50)]
    path = tmp_path / "list.json"
    for text in (json.dumps(records), json.dumps(records, indent=2, ensure_ascii=False), json.dumps(records) + "\n\n"):
        for encoding in ("utf-8", "utf-8-sig", "utf-16"):
            for piece in (7, 1 << 16):
                monkeypatch.setattr(json_records, "_PIECE", piece)
                path.write_bytes(text.encode(encoding))
                assert seen(f"jsonl:{path}") == expected, (text[:20], encoding, piece)
    path.write_bytes("".join(json.dumps(record) + "\r\n" for record in records).encode("utf-16"))
    assert seen(f"jsonl:{path}") == expected, "lines in UTF-16"
    path.with_suffix(".json.gz").write_bytes(gzip.compress(json.dumps(records).encode()))
    assert seen(f"jsonl:{path}.gz", 49) == expected[49:]


@pytest.mark.parametrize(
    ("text", "captions", "words"),
    [
        ('[{"text": "a"}, 7, {"text": "b"}]', ["a", "", "b"], "a JSON int"),
        ('[{"text": "a"}, {"text": "x", "text": "y"}, {"text": "b"}]', ["a", "", "b"], "stands twice"),
        ('[{"text": "a"}, {"text": bad}, {"text": "b"}]', ["a", ""], "object 2 of the array is no whole JSON"),
        ('[{"text": "a"} {"text": "b"}]', [""], "no comma behind an object"),
        ('[{"text": "a"}, {"text": "b"', ["a", ""], "what follows is lost"),
        ('[{"text": "a"}', [""], "the array has no end"),
        ('[{"text": "a"}]\n[{"text": "b"}]', ["a", ""], "goes on behind its array"),
        ('[{"text": "a"}, {"text": "' + "x" * 1_100_000 + '"}]', ["a", ""], "more than 1000000 bytes"),
        ('[{"text": "a"}, {"text": ' + "[" * 200_000 + "}]", ["a", ""], "what follows is lost"),
        ('{\n  "images": [],\n  "annotations": []\n}\n', [""], "give one object a line, or an array of objects"),
        ('["a", "b"]\n{"text": "b"}\n', ["", "b"], "a JSON list, not an object"),
    ],
)
def test_what_is_no_object_of_an_array_is_told(tmp_path: Path, text: str, captions: list[str], words: str) -> None:
    (tmp_path / "list.json").write_text(text)
    records = [line.record for line in read_lines(tmp_path / "list.json")]
    assert [record["text"] if isinstance(record, dict) else "" for record in records] == captions
    assert [words in record.detail for record in records if isinstance(record, Refused)] == [True]


@given(
    st.lists(
        st.dictionaries(st.text(max_size=5), st.text(max_size=9) | st.lists(st.integers()), max_size=3), max_size=4
    ),
    st.data(),
)
def test_an_array_cut_anywhere_keeps_the_objects_before(records: list[dict[str, Any]], data: st.DataObject) -> None:
    text = json.dumps(records, indent=data.draw(st.sampled_from([None, 1]))).encode()
    cut = data.draw(st.integers(0, len(text)))
    read = [record for _, record in json_records.json_records(io.BytesIO(text[:cut]), 1000)]
    whole = [record for record in read if isinstance(record, dict)]
    assert whole == records[: len(whole)]
    assert len(read) - len(whole) <= 1, "one row says what is lost"
    if cut == len(text):
        assert whole == records


@pytest.mark.parametrize("headings", [("File_Name", "Text", "Licence"), ("FILENAME", "CAPTION", "License"),
                                      ("image", "prompt", "licence"), ("Path", "Title", "LICENSE")])  # fmt: skip
def test_headings_are_found_small_or_capital(tmp_path: Path, headings: tuple[str, str, str]) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "metadata.csv").write_text(f"{','.join(headings)},Place\na.png,one,CC0,here\n")
    (row,) = open_source(IngestConfig(source=f"imagefolder:{tmp_path}")).rows(0)
    assert (row.key, row.caption, row.licence, row.extra) == ("a.png", "one", "CC0", {"Place": "here"})
    pq.write_table(pa.table({"Image": [PNG], "Text": ["one"]}), tmp_path / "t.parquet")
    assert seen(f"parquet:{tmp_path}/t.parquet") == [("t.parquet#0", "one", "")]


def test_columns_of_a_folder_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "metadata.csv").write_text("file_name;Bild;text;Titel\nno.png;a.png;no;ein Herz\n")
    config = IngestConfig(source=f"imagefolder:{tmp_path}", caption_column="titel", image_column="Bild")
    assert [(row.key, row.caption) for row in open_source(config).rows(0)] == [("a.png", "ein Herz")]
    assert seen(f"imagefolder:{tmp_path}")[0] == ("no.png", "no", "")
    (tmp_path / "metadata.csv").write_text("pic,text\na.png,x\n")
    (row, _) = open_source(IngestConfig(source=f"imagefolder:{tmp_path}")).rows(0)
    assert isinstance(row.image, Refused) and "ingest.image_column names another" in row.image.detail


def test_a_table_of_metadata_is_read_as_hugging_face_reads_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").write_bytes(PNG)
    table = pa.table({"file_name": ["a.png", "../x", "a.png"], "text": [["one", "two"], ["x"], None], "n": [1, 2, 3]})
    pq.write_table(table.append_column("bytes", pa.array([b"x"] * 3)), tmp_path / "sub" / "metadata.parquet")
    source = open_source(IngestConfig(source=f"imagefolder:{tmp_path}"))
    assert source.count() == 3
    assert seen(f"imagefolder:{tmp_path}") == [("sub/a.png", "one", ""), ("sub/a.png", "two", ""), ("x", "x", ""), ("sub/a.png", None, "")]  # fmt: skip
    assert next(iter(source.rows(0))).extra == {"n": 1}
    (tmp_path / "sub" / "metadata.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(SourceError, match=r"metadata\.parquet is damaged"):
        seen(f"imagefolder:{tmp_path}")


def test_metadata_that_would_be_passed_over_is_read_or_told(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "set", tmp_path / "elsewhere.jsonl"
    write_folder(folder, {"a.png": PNG}, [{"file_name": "a.png", "text": "one"}])
    (folder / "metadata.jsonl").rename(folder / "notes.jsonl")
    (folder / "metadata.jsonl").symlink_to("notes.jsonl")
    assert seen(f"imagefolder:{folder}") == [("a.png", "one", "")]
    (folder / "notes.jsonl").rename(elsewhere)
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.jsonl").symlink_to(elsewhere)
    with pytest.raises(SourceError, match=r"leads out of .*; put a copy of the file there"):
        seen(f"imagefolder:{folder}")
    (folder / "metadata.jsonl").unlink()
    elsewhere.rename(folder / "Metadata.JSONL")
    assert seen(f"imagefolder:{folder}") == [("a.png", "one", "")]
    (folder / "metadata.csv").write_text("file_name,text\na.png,two\n")
    with pytest.raises(SourceError, match=r"both Metadata\.JSONL and metadata\.csv.*keep one"):
        seen(f"imagefolder:{folder}")


def test_a_linked_folder_is_not_passed_over_silently(tmp_path: Path) -> None:
    for name in ("set/a", "elsewhere/b"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.png").write_bytes(PNG)
        (tmp_path / name / "1.txt").write_text("one")
    (tmp_path / "set" / "b").symlink_to(tmp_path / "elsewhere" / "b")
    (tmp_path / "set" / "c").symlink_to("a")  # whose pictures are there
    assert seen(f"imagefolder:{tmp_path}/set") == [("a/1.png", "one", ""), ("b", "", "not_a_file")]


def test_a_list_of_addresses_in_utf16_or_as_an_array_is_read(tmp_path: Path) -> None:
    expected = [("ftp://x/a", "größer", "bad_url")]
    (tmp_path / "u.txt").write_bytes("ftp://x/a größer\r\n".encode("utf-16"))
    assert seen(f"urls:{tmp_path}/u.txt") == expected
    for name in ("u.json", "u.jsonl"):
        (tmp_path / name).write_text(json.dumps([{"URL": "ftp://x/a", "TEXT": "größer"}], indent=1))
        assert seen(f"urls:{tmp_path}/{name}") == expected
