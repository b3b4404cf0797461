"""Large columns of Parquet files: page by page, and the same rows as the library reads."""

import io
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dalle_model.decoding import Refused
from dalle_model.errors import SourceError
from dalle_model.sources import parquet_large, parquet_pages
from dalle_model.sources.base import Row
from dalle_model.sources.parquet import ParquetFiles

LIMIT = 500  # bytes of a picture


def _table() -> pa.Table:
    random.seed(0)
    pictures = [random.randbytes(n % 7 * 60) if n % 11 else None for n in range(300)]
    pictures[17] = pictures[150] = random.randbytes(9000)
    structs = [{"bytes": p, "path": f"{n}.png"} if n % 13 else None for n, p in enumerate(pictures)]
    texts = [None if n % 17 == 0 else f"caption {n % 40}" * (n % 5) for n in range(300)]
    return pa.table({"image": pa.array(structs), "text": texts, "n": range(300), "thumbnail": [b"t" * 50] * 300})


def _rows(path: Path, start: int = 0) -> list[Row]:
    return list(ParquetFiles(path.as_posix(), max_image_bytes=LIMIT).rows(start))


def _what(row: Row) -> tuple[Any, ...]:
    image = row.image
    if isinstance(image, bytes) and len(image) > LIMIT:  # refused where it is decoded
        return row.key, row.caption, "too_many_bytes", len(image), row.extra
    return (
        row.key,
        row.caption,
        *((image.reason, image.score) if isinstance(image, Refused) else (image, "")),
        row.extra,
    )


@pytest.mark.parametrize("compression", ["snappy", "none", "gzip", "zstd", "brotli", "lz4"])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"use_dictionary": False},
        {"data_page_version": "2.0"},
        {"data_page_version": "2.0", "use_dictionary": False, "data_page_size": 2000, "write_batch_size": 7},
        {"row_group_size": 90, "dictionary_pagesize_limit": 3000, "data_page_size": 1000, "write_batch_size": 5},
    ],
)
def test_pages_give_the_rows_that_the_library_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str, how: dict[str, Any]
) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(_table(), path, compression=compression, **how)
    usual = [_what(row) for row in _rows(path)]
    monkeypatch.setattr(parquet_large, "LARGE_CHUNK_BYTES", 0)
    monkeypatch.setattr(ParquetFiles, "_open", _no_large_column(ParquetFiles._open))
    assert [_what(row) for row in _rows(path)] == usual
    assert [row[2] for row in usual].count("too_many_bytes") == 2
    assert [_what(row) for row in _rows(path, 131)] == usual[131:]


def _no_large_column(opened: Any) -> Any:
    """The library is asked for numbers only: texts and bytes were read apart."""

    class File:
        def __init__(self, file: Any) -> None:
            self._file = file

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

        def iter_batches(self, size: int, *, row_groups: list[int], columns: list[str]) -> Any:
            assert columns == ["n"]
            return self._file.iter_batches(size, row_groups=row_groups, columns=columns)

    return lambda self, path: File(opened(self, path))


def test_what_only_the_library_reads_it_reads_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(_table(), path)
    want = [_what(row) for row in _rows(path)]
    encoding = {"image.bytes": "DELTA_LENGTH_BYTE_ARRAY", "text": "DELTA_BYTE_ARRAY"}
    pq.write_table(_table(), path, use_dictionary=False, column_encoding=encoding)
    monkeypatch.setattr(parquet_large, "LARGE_CHUNK_BYTES", 0)
    assert [_what(row) for row in _rows(path)] == want
    monkeypatch.setattr(parquet_large, "MOST_UNREADABLE_BYTES", 10_000)
    found = _rows(path)
    assert len(found) == len(want)
    assert all(isinstance(row.image, Refused) and "smaller row groups" in row.image.detail for row in found)


def test_a_giant_picture_is_refused_and_its_neighbours_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_large, "LARGE_CHUNK_BYTES", 10_000)
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [b"a", b"x" * 20_000, b"c"], "text": ["a", "b", "c" * 2_000_000]}), path)
    rows = _rows(path)
    assert rows[0].image == b"a"
    assert isinstance(rows[1].image, Refused) and rows[1].image.detail == f"20000 bytes, the limit is {LIMIT}"
    assert isinstance(rows[2].image, Refused) and rows[2].image.reason == "caption_too_long"


def test_large_columns_stand_beside_lists_and_may_have_a_dot_in_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_large, "LARGE_CHUNK_BYTES", 0)
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"jpg.data": [b"a", b"b"], "text": [["one", "two"], ["three"]]}), path)
    rows = ParquetFiles(path.as_posix(), image_column="jpg.data").rows(0)
    assert [(row.image, row.caption) for row in rows] == [(b"a", "one"), (b"a", "two"), (b"b", "three")]


def test_a_page_that_would_fill_the_memory_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index of the file says that it is small: a bomb would."""
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [bytes(5_000_000), b"a"], "text": ["a", "b"]}), path, compression="zstd")
    monkeypatch.setattr(parquet_large, "LARGE_CHUNK_BYTES", 1_000_000)
    monkeypatch.setattr(parquet_pages, "MOST_PAGE_BYTES", 1_000_000)
    monkeypatch.setattr(parquet_large, "MOST_UNREADABLE_BYTES", 1_000_000)
    data, size = path.read_bytes(), pq.ParquetFile(path).metadata.row_group(0).column(0).total_uncompressed_size
    assert data.count(_varint(2 * size)) == 1
    path.write_bytes(data.replace(_varint(2 * size), _varint(2 * (size - 4_500_000), len(_varint(2 * size)))))
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).total_uncompressed_size < 1_000_000
    rows = _rows(path)
    assert [row.caption for row in rows] == ["a", "b"]
    for row in rows:
        assert isinstance(row.image, Refused) and "smaller row groups" in row.image.detail
    pq.write_table(pa.table({"image": pa.array([bytes(5_000_000), b"a"]), "text": ["a", "b"]}), path,
                   use_dictionary=False, column_encoding={"image": "DELTA_LENGTH_BYTE_ARRAY", "text": "PLAIN"})  # fmt: skip
    assert all("DELTA_LENGTH_BYTE_ARRAY, are not read" in row.image.detail for row in _rows(path))  # type: ignore[union-attr]


def _varint(number: int, length: int = 0) -> bytes:
    found = bytearray()
    while number > 127 or len(found) + 1 < length:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def test_damage_is_an_error_that_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_large, "LARGE_CHUNK_BYTES", 0)
    path = tmp_path / "x.parquet"
    pq.write_table(_table().slice(0, 60), path, data_page_size=2000, write_batch_size=20)
    whole = path.read_bytes()
    first = pq.ParquetFile(path).metadata.row_group(0).column(0)
    end = len(whole) - int.from_bytes(whole[-8:-4], "little") - 8
    random.seed(1)
    places = [first.dictionary_page_offset, first.data_page_offset, *(random.randrange(4, end) for _ in range(30))]
    ended = []
    for at in places:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            ended.append(len(_rows(path)))
        except SourceError as error:
            assert "x.parquet is damaged" in str(error)
            ended.append(0)
    assert ended[:2] == [0, 0] and set(ended) <= {0, 60}


def test_numbers_in_runs_and_packs() -> None:
    packed = bytes([3 << 1 | 1]) + int.to_bytes(sum(n % 8 << 3 * n for n in range(24)), 9, "little")
    run = bytes([40 << 1, 5])
    assert parquet_pages._hybrid(packed + run, 3, 30).tolist() == [n % 8 for n in range(24)] + [5] * 6
    assert parquet_pages._hybrid(b"\x08", 0, 4).tolist() == [0] * 4
    for bad in (b"", b"\x00", bytes([3])):
        with pytest.raises(parquet_pages.DamagedPage):
            parquet_pages._hybrid(bad, 3, 30)
    with pytest.raises(parquet_pages.DamagedPage):
        parquet_pages._page(io.BytesIO(b"\xff" * 50), 0)
