"""Hostile and damaged archives: nothing is written, nothing is followed, nothing is lost without a row."""

import gzip
import io
import json
import random
import tarfile
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import pytest
from support.bad_images import encoded, photo
from support.data_steps import Data

from dalle_model.config import IngestConfig
from dalle_model.decoding import Refused
from dalle_model.errors import SourceError
from dalle_model.sources.webdataset import WebDataset

JPG = encoded(photo(), "JPEG")


def member(
    name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, link
    return info, data


def tar(path: Path, members: Iterable[tuple[tarfile.TarInfo, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return path


def rows(path: Path) -> dict[str, str]:
    return {
        row.key: row.image.reason.value if isinstance(row.image, Refused) else str(row.caption)
        for row in WebDataset(str(path), "", 1_000_000).rows(0)
    }


def test_samples_are_gathered_by_name(tmp_path: Path) -> None:
    described = json.dumps({"caption": "from json", "licence": "CC0", "n": 3}).encode()
    tar(
        tmp_path / "a.tar",
        [
            member("1.jpg", JPG),
            member("1.txt", b"one"),
            member("d/2.jpg", JPG),
            member("d/2.json", described),
            member("3.txt", b"none"),
        ],
    )
    tar(
        tmp_path / "b.tar.gz",
        [member("1.png", JPG), member("1.txt", b"again"), member("2.jpg", JPG), member("2.cls", b"7")],
        "w:gz",
    )
    assert rows(tmp_path) == {
        "a.tar/1": "one",
        "a.tar/d/2": "from json",
        "a.tar/3": "no_image",
        "b.tar.gz/1": "again",
        "b.tar.gz/2": "None",
    }
    data = Data(tmp_path / "run")
    manifest = data.ingest(IngestConfig(source=f"webdataset:{tmp_path}/a.tar", rows_per_shard=2))
    assert data.outcomes(manifest) == {"a.tar/1": "kept", "a.tar/d/2": "kept", "a.tar/3": "no_image"}
    assert data.rows(manifest, "pairs")[1]["licence"] == "CC0"


def test_names_that_lead_out_links_and_devices_go_nowhere(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "evil.tar",
        [
            member("../../escape.jpg", JPG),
            member("../../escape.txt", b"out"),
            member("/tmp/absolute.jpg", JPG),
            member("/tmp/absolute.txt", b"abs"),
            member("link.jpg", kind=tarfile.SYMTYPE, link="/etc/passwd"),
            member("hard.jpg", kind=tarfile.LNKTYPE, link="../../x"),
            member("device.jpg", kind=tarfile.CHRTYPE),
            member("pipe.jpg", kind=tarfile.FIFOTYPE),
            member("twice.jpg", JPG),
            member("twice.jpg", JPG),
            member("twice.txt", b"two"),
            member("ok.jpg", JPG),
            member("ok.txt", b"fine"),
        ],
    )
    before = sorted(tmp_path.rglob("*"))
    found = rows(path)
    assert sorted(tmp_path.rglob("*")) == before, "nothing is extracted"
    assert list(found.values()) == [
        "out",
        "not_a_file",
        "not_a_file",
        "not_a_file",
        "not_a_file",
        "abs",
        "bad_metadata",
        "fine",
    ]


def test_a_bomb_is_refused_without_being_held_in_memory(tmp_path: Path) -> None:
    zeros = io.BytesIO(bytes(150_000_000))
    with tarfile.open(tmp_path / "bomb.tar.gz", "w:gz", compresslevel=9) as archive:
        for name in ("a.jpg", "a.json"):
            info = tarfile.TarInfo(name)
            info.size = 150_000_000
            zeros.seek(0)
            archive.addfile(info, zeros)
        info, data = member("z.jpg", JPG)
        archive.addfile(info, io.BytesIO(data))
    del zeros
    assert (tmp_path / "bomb.tar.gz").stat().st_size < 1_000_000
    tracemalloc.start()
    assert rows(tmp_path / "bomb.tar.gz") == {"bomb.tar.gz/a": "too_many_bytes", "bomb.tar.gz/z": "None"}
    assert tracemalloc.get_traced_memory()[1] < 60_000_000  # a skipped member of 150 MB, read in pieces
    tracemalloc.stop()


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_cut_archive_is_one_refused_row_and_the_next_one_is_read(tmp_path: Path, mode: str) -> None:
    suffix = ".tar" if mode == "w" else ".tar.gz"
    pairs = [
        m
        for n in range(6)
        for m in (member(f"{n}.jpg", encoded(photo(seed=n), "JPEG")), member(f"{n}.txt", b"cap %d" % n))
    ]
    whole = tar(tmp_path / f"a{suffix}", pairs, mode)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    tar(tmp_path / f"b{suffix}", pairs, mode)
    (tmp_path / "c.tar").write_bytes(b"no tar at all" * 100)
    (tmp_path / "d.tar").write_bytes(b"")
    found = rows(tmp_path)
    assert found[f"a{suffix}"] == "unreadable_file"
    assert found["c.tar"] == found["d.tar"] == "unreadable_file"
    assert sum(key.startswith("b") for key in found) == 6
    assert 1 <= sum(key.startswith(f"a{suffix}/") for key in found) <= 3


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_an_archive_cut_between_two_members_is_told_and_what_came_before_is_kept(tmp_path: Path, mode: str) -> None:
    pairs = [m for n in range(4) for m in (member(f"{n}.jpg", JPG), member(f"{n}.txt", b"cap %d" % n))]
    suffix = ".tar" if mode == "w" else ".tar.gz"
    plain = tar(tmp_path / "whole", pairs, "w").read_bytes()
    with tarfile.open(tmp_path / "whole") as archive:
        at = archive.getmembers()[4].offset
    (tmp_path / "whole").unlink()
    (tmp_path / f"a{suffix}").write_bytes(plain[:at] if mode == "w" else gzip.compress(plain[:at]))
    (tmp_path / f"b{suffix}").write_bytes((plain[:at] if mode == "w" else gzip.compress(plain[:at])) + b"\1" * 600)
    found = rows(tmp_path)
    assert found == {
        f"{archive}{suffix}{key}": outcome
        for archive in "ab"
        for key, outcome in (("/0", "cap 0"), ("/1", "cap 1"), ("", "unreadable_file"))
    }


def test_a_folder_without_archives_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no \.tar"):
        WebDataset(str(tmp_path), "", 1)


def test_jsonl_and_csv_files_of_any_name_are_sources(tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "1.jpg").write_bytes(JPG)
    (tmp_path / "unnamed.jpg").write_bytes(JPG)
    (tmp_path / "list.jsonl").write_text(
        '{"file_name": "pics/1.jpg", "prompt": "one"}\n{"file_name": "../x.jpg", "prompt": "x"}\n{bad\n'
    )
    (tmp_path / "list.csv").write_text("file_name,text\npics/1.jpg,one\n")
    data = Data(tmp_path / "run")
    lines = data.ingest(IngestConfig(source=f"jsonl:{tmp_path}/list.jsonl"))
    assert data.outcomes(lines) == {
        "pics/1.jpg": "kept",
        "list.jsonl#2": "outside_source",
        "list.jsonl#3": "bad_metadata",
    }
    table = data.ingest(IngestConfig(source=f"csv:{tmp_path}/list.csv"))
    assert data.outcomes(table) == {"pics/1.jpg": "kept"}
    (tmp_path / "unnamed.jpg").write_bytes(JPG + b" ")
    assert data.ingest(IngestConfig(source=f"jsonl:{tmp_path}/list.jsonl")).fingerprint == lines.fingerprint, (
        "not part of this source"
    )
    (tmp_path / "pics" / "1.jpg").write_bytes(encoded(photo(seed=5), "JPEG"))
    assert data.ingest(IngestConfig(source=f"jsonl:{tmp_path}/list.jsonl")).fingerprint != lines.fingerprint
    with pytest.raises(SourceError, match=r"no \.csv file"):
        data.ingest(IngestConfig(source=f"csv:{tmp_path}/list.jsonl"))


@pytest.mark.parametrize("claimed", [2**33, 10**14, 2**62])
def test_a_member_that_claims_more_than_there_is_ends_the_archive_at_once(tmp_path: Path, claimed: int) -> None:
    good = [member("1.jpg", JPG), member("1.txt", b"whole"), member("2.jpg", JPG)]
    good[2][0].pax_headers = {"size": str(claimed)}
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in good:
            archive.addfile(info, io.BytesIO(data))
    assert rows(tmp_path) == {
        "a.tar/1": "whole",
        "a.tar/2": "too_many_bytes",
        "a.tar": "unreadable_file",
    }  # each piece was asked for: 10^9 of them


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_long_names_and_pax_headers_are_bounded(tmp_path: Path, kind: bytes) -> None:
    long = member("bomb", b"", kind)[0]
    long.size = 50_000_000
    with gzip.open(tmp_path / "a.tar.gz", "wb", 1) as out:
        for info, body in (member("1.jpg", JPG), member("1.txt", b"whole")):
            out.write(info.tobuf(tarfile.USTAR_FORMAT) + body + bytes(-len(body) % 512))
        out.write(long.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(50):
            out.write(bytes(1_000_000))
    tracemalloc.start()
    found = rows(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == {"a.tar.gz/1": "whole", "a.tar.gz": "unreadable_file"}
    assert peak < 10_000_000


def test_how_many_bytes_of_how_many_are_read_is_known_while_rows_are_not(tmp_path: Path) -> None:
    noise = random.Random(0)
    samples = [member(f"{n}.{kind}", noise.randbytes(50_000)) for n in range(20) for kind in ("jpg", "txt")]
    for name, mode in (("a.tar", "w"), ("b.tar.gz", "w:gz")):
        tar(tmp_path / name, samples, mode)
    source = WebDataset(str(tmp_path), "", 1_000_000)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert source.bytes_read() == (0, size) and source.count() == 0
    for _ in range(2):  # a source may be read again
        seen = []
        for _ in source.rows(0):
            read, total = source.bytes_read()
            assert total == size
            seen.append(read)
        assert seen == sorted(seen) and len(set(seen)) > 20 and seen[0] < size / 20
        assert source.bytes_read() == (size, size)
