"""Files that end too early or too late: the rows before that are kept, and what is lost is told, never left out silently."""

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.bad_images import encoded, photo
from support.data_steps import Data, write_folder

from dalle_model.config import IngestConfig
from dalle_model.decoding import Refused
from dalle_model.errors import SourceError
from dalle_model.sources.base import Row
from dalle_model.sources.metadata import count_lines
from dalle_model.sources.registry import open_source
from dalle_model.sources.webdataset import WebDataset

JPG = encoded(photo(), "JPEG")
HEADER_OF_2 = 2 * 2 * 512 + 2 * (-(-len(JPG) // 512) + 1) * 512  # where the third of three samples begins
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "gzip, a piece at a time": lambda data: b"".join(
        gzip.compress(data[at : at + 100]) for at in range(0, len(data), 100)
    ),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}


def three_samples() -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for n in range(3):
            for name, data in ((f"{n}.jpg", JPG), (f"{n}.txt", b"caption")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return whole.getvalue()


def read(path: Path) -> tuple[list[str], str]:
    """Keys of the samples, and what is said of the archive ("" for nothing)."""
    rows = list(WebDataset(str(path), "", 1_000_000).rows(0))
    samples = [row.key.rpartition("/")[2] for row in rows if not isinstance(row.image, Refused)]
    said = [row for row in rows if isinstance(row.image, Refused)]
    assert rows[len(samples) :] == said
    assert all(row.key == path.name and row.image.reason == "unreadable_file" for row in said)  # type: ignore[union-attr]
    return samples, " | ".join(words(row) for row in said)


def words(row: Row) -> str:
    assert isinstance(row.image, Refused)
    return row.image.detail


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize(
    ("change", "samples", "said"),
    [
        (lambda tar: tar, ["0", "1", "2"], ""),
        (lambda tar: tar + bytes(100_000), ["0", "1", "2"], ""),
        (lambda tar: tar[:HEADER_OF_2], ["0", "1"], "no end mark: it is cut off after 4 members"),
        (lambda tar: tar[:HEADER_OF_2] + bytes(512), ["0", "1"], ""),  # half an end mark: nothing can be lost
        (lambda tar: tar[: HEADER_OF_2 + 100], ["0", "1"], "cut off within a header after 4 members"),
        (lambda tar: tar[: HEADER_OF_2 + 700], ["0", "1"], "damaged or cut off (ReadError) after 5 members"),
        (lambda tar: tar[:HEADER_OF_2] + b"x" * 512 + tar[HEADER_OF_2 + 512 :], ["0", "1"], "damaged header after 4"),
        (lambda tar: tar + b"rubbish", ["0", "1", "2"], "goes on behind its end mark"),
        (lambda tar: tar + tar, ["0", "1", "2"], "several joined in one file? give each as a file"),
    ],
    ids=["whole", "padded", "between members", "one block", "in a header", "in a member", "header", "rubbish", "two"],
)
def test_a_tar_that_ends_elsewhere_than_it_should_says_so(
    tmp_path: Path, packer: str, change: Callable[[bytes], bytes], samples: list[str], said: str
) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(PACKERS[packer](change(three_samples())))
    found, told = read(path)
    assert found == samples
    assert said in told
    assert bool(said) == bool(told) == ("fetch or write the archive again" in told)


@pytest.mark.parametrize(
    "change",
    [
        lambda packed: packed[:-4],
        lambda packed: packed[:-9],
        lambda packed: packed[:-6] + bytes([packed[-6] ^ 1]) + packed[-5:],
        lambda packed: packed + b"rubbish",
    ],
    ids=["no length", "no checksum", "wrong checksum", "rubbish behind"],
)
def test_a_packed_tar_is_checked_to_its_last_byte(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(change(gzip.compress(three_samples())))
    found, told = read(path)
    assert found == ["0", "1", "2"]
    assert "damaged or cut off" in told


def test_zeros_without_end_behind_a_tar_are_not_all_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(three_samples()) + gzip.compress(bytes(1 << 20)) * 18)
    assert "goes on behind its end mark" in read(path)[1]


def test_a_cut_archive_is_a_row_of_the_ledger(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(three_samples()[: HEADER_OF_2 + 100])
    data = Data(tmp_path / "run", 1)
    made = data.ingest(IngestConfig(source=f"webdataset:{tmp_path}/a.tar"))
    assert data.outcomes(made) == {"a.tar/0": "kept", "a.tar/1": "kept", "a.tar": "unreadable_file"}


@pytest.mark.parametrize("kind", ["jsonl", "csv", "txt"])
@pytest.mark.parametrize(
    "change",
    [lambda gz: gz[:-12], lambda gz: gz + b"rubbish", lambda gz: gz[:-6] + bytes([gz[-6] ^ 1]) + gz[-5:]],
    ids=["cut", "rubbish behind", "wrong checksum"],
)
def test_a_packed_list_keeps_the_lines_before_the_damage(
    tmp_path: Path, kind: str, change: Callable[[bytes], bytes]
) -> None:
    # No caption, so that nothing is fetched.
    line = {
        "jsonl": '{"url": "http://h.example/%d"}\n',
        "csv": "http://h.example/%d,\n",
        "txt": "http://h.example/%d\n",
    }
    path = tmp_path / f"list.{kind}.gz"
    path.write_bytes(change(gzip.compress("".join(line[kind] % n for n in range(5000)).encode())))
    source = open_source(IngestConfig(source=f"urls:{path}"))
    rows = list(source.rows(0))
    assert "cut off or damaged after line" in words(rows[-1])
    assert "fetch or write it again" in words(rows[-1])
    assert [row.key for row in rows[:-1]] == [f"http://h.example/{n}" for n in range(len(rows) - 1)]
    assert len(rows) > 1
    assert count_lines(path) <= 5000


def test_a_parquet_file_without_its_end_is_named_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "b.parquet"
    pq.write_table(pa.table({"image": [JPG] * 5, "text": ["x"] * 5}), tmp_path / "a.parquet")
    path.write_bytes((tmp_path / "a.parquet").read_bytes()[:-100])
    for words_of_source in (f"parquet:{path}", f"parquet:{tmp_path}"):
        with pytest.raises(SourceError, match=r"b\.parquet is no readable Parquet file .* write the file again"):
            open_source(IngestConfig(source=words_of_source)).count()


def test_metadata_of_a_folder_that_is_cut_in_a_line_loses_that_line_only(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", {"1.jpg": JPG}, [{"file_name": "1.jpg", "text": "one"}, '{"file_na'])
    rows = list(open_source(IngestConfig(source=f"imagefolder:{folder}")).rows(0))
    assert [row.caption for row in rows] == ["one", ""]
    assert isinstance(rows[1].image, Refused)
