"""Headers of tar members that would fill the memory or the stack: ``tarfile`` believes all they say."""

import gc
import gzip
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from dalle_model.decoding import Refused
from dalle_model.sources.webdataset import WebDataset

END = bytes(1024)


def block(name: str, body: bytes = b"", kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = len(body), kind
    return info.tobuf(tarfile.USTAR_FORMAT) + body + bytes(-len(body) % 512)


def record(key: bytes, value: bytes) -> bytes:
    rest = b" " + key + b"=" + value + b"\n"
    size = len(rest) + 1
    while len(str(size)) + len(rest) != size:
        size = len(str(size)) + len(rest)
    return str(size).encode() + rest


def pax(key: bytes, value: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    return block("facts", record(key, value), kind)


def sparse(blocks: int) -> bytes:
    """A sparse file in GNU's old form whose list goes on for so many blocks."""
    head = bytearray(block("holes.jpg", b"", tarfile.GNUTYPE_SPARSE))
    head[482] = 1  # "extended"
    head[148:156] = b"%06o\0 " % (sum(head[:148]) + 8 * 32 + sum(head[156:]))
    entry = b"%011o\0" % 512 + b"%011o\0" % 1
    return bytes(head) + (entry * 21 + b"\1" + bytes(7)) * blocks


def sparse_1_0(listed: bytes) -> bytes:
    facts = (b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.name", b"holes.jpg")
    return block("facts", b"".join(record(*fact) for fact in facts), tarfile.XHDTYPE) + block("x.jpg", listed)


GOOD = block("good.jpg", b"picture") + block("good.txt", b"whole")


def rows(path: Path) -> dict[str, str]:
    return {
        row.key: row.image.detail if isinstance(row.image, Refused) else str(row.caption)
        for row in WebDataset(str(path), "", 1_000_000).rows(0)
    }


@pytest.mark.parametrize(
    ("trap", "error"),
    [
        pytest.param(pax(b"comment", b"x") * 2000, "ReadError", id="PAX headers in a row"),
        pytest.param(
            block("LongLink", b"n.jpg\0", tarfile.GNUTYPE_LONGNAME) * 2000, "ReadError", id="long names in a row"
        ),
        pytest.param(pax(b"comment", b"x", tarfile.XGLTYPE) * 2000, "ReadError", id="global headers in a row"),
        pytest.param(sparse(1200), "ReadError", id="a long list of holes"),
        pytest.param(sparse_1_0(b"99999999\n" + b"0\n" * 300_000), "ReadError", id="a long list of holes in PAX"),
        pytest.param(block("facts", b"1" * 500_000, tarfile.XHDTYPE), "ReadError", id="a number without end"),
        pytest.param(
            block("facts", b"9" * 30 + b" a=b\n", tarfile.XHDTYPE), "OverflowError", id="a record of 10^30 bytes"
        ),
    ],
)
def test_a_header_without_end_ends_the_archive(tmp_path: Path, trap: bytes, error: str) -> None:
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(GOOD + trap + GOOD + END, 1))
    found = rows(tmp_path / "a.tar.gz")
    assert found.pop("a.tar.gz").startswith(f"the archive is damaged or cut off ({error}) after 2 members")
    assert found == {"a.tar.gz/good": "whole"}


def test_usual_headers_are_read(tmp_path: Path) -> None:
    long = "d/" * 100 + "long"
    named = pax(b"path", long.encode() + b".jpg") + block("x", b"p") + pax(b"path", long.encode() + b".txt")
    (tmp_path / "a.tar").write_bytes(
        pax(b"comment", b"x", tarfile.XGLTYPE) + GOOD + named + block("x", b"c") + sparse(3)[:-8] + bytes(8) + END
    )
    found = rows(tmp_path / "a.tar")
    assert found.pop("a.tar/holes").startswith("holes.jpg has ")
    assert found == {"a.tar/good": "whole", f"a.tar/{long}": "c"}


def held() -> int:
    """Members of archives in memory; what earlier tests left for the collector is collected."""
    gc.collect()
    return sum(type(found) is tarfile.TarInfo for found in gc.get_objects())


def test_members_are_forgotten_once_they_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"".join(block(f"{n}.jpg", b"x") for n in range(500)) + END)
    most, others = 0, held()
    for n, _ in enumerate(WebDataset(str(tmp_path / "a.tar"), "", 1_000_000).rows(0)):
        if n % 250 == 249:
            most = max(most, held() - others)
    assert most < 20, "tarfile keeps all members of an archive while it is open"


def test_facts_for_all_members_are_forgotten_where_nobody_uses_them(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.tar.gz", "wb", 1) as out:
        for n in range(30):
            out.write(pax(b"key-%d" % n, b"v" * 100_000, tarfile.XGLTYPE) + block(f"{n}.jpg", b"x"))
        out.write(END)
    tracemalloc.start()
    found = rows(tmp_path / "a.tar.gz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 30
    assert peak < 2_500_000, "3 MB of values"
