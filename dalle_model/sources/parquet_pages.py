"""Values of a large Parquet column, page by page, each no larger than allowed.

The library makes five copies or more of a column chunk's bytes on their way to a value: a row of 300 MB takes 2 GB
before anybody can say that it is too large. Here a page is unpacked once, and a value that is too large is passed over
in it. Pages that would take too much are not unpacked at all.

Of the format (https://parquet.apache.org/docs/file-format/, parquet.thrift) this reads what is met in columns of
pictures and captions: byte arrays without repetition, plain or by a dictionary, pages of version 1 and 2.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from dalle_model.decoding import Reason, Refused

MOST_PAGE_BYTES = 2**30  # of a page, unpacked: twice that is in memory for a moment
_MOST_VALUES = 2**24  # of a page
_HEADER_BYTES, _MOST_HEADER_BYTES = 2**12, 2**20
_READABLE = frozenset({"PLAIN", "RLE", "BIT_PACKED", "PLAIN_DICTIONARY", "RLE_DICTIONARY"})
_CODECS = {"SNAPPY": "snappy", "GZIP": "gzip", "ZSTD": "zstd", "BROTLI": "brotli", "LZ4": "lz4_raw", "UNCOMPRESSED": ""}
_DATA, _DICTIONARY, _DATA_2 = 0, 2, 3  # kinds of pages
_PLAIN, _INDICES, _RLE = 0, (2, 8), 3  # encodings
_DEEPEST = 16

Value = bytes | Refused | None


class DamagedPage(ValueError):
    """A page that is not what its file says."""


@dataclass(frozen=True, slots=True)
class _Page:
    kind: int
    bytes: int  # unpacked
    packed: int
    facts: dict[int, Any]  # of its kind, by the numbers of the format


def page_bytes(stream: BinaryIO, chunk: Any) -> int:
    """Bytes of a column chunk's pages, unpacked, as the pages say: the file's index may say anything."""
    at, end = _extent(chunk)
    found = 0
    while at < end:
        page, at = _page(stream, at)
        found += page.bytes
        at += page.packed
    return found


def readable(chunk: Any) -> bool:
    """Whether ``values`` knows the codec and the encodings of a column chunk."""
    return chunk.compression in _CODECS and set(chunk.encodings) <= _READABLE


def values(stream: BinaryIO, chunk: Any, max_def_level: int, max_value_bytes: int) -> Iterator[Value]:
    """The values of a column chunk in order; a Refused for each that is too large or in a page that is not unpacked.

    chunk: pyarrow's metadata of the chunk. max_def_level: of its column; a value with a lower one is None.
    Raises DamagedPage.
    """
    count: int = chunk.num_values
    if not readable(chunk):
        words = f"{chunk.total_uncompressed_size} bytes in one column chunk of {chunk.compression}, {', '.join(chunk.encodings)}"
        yield from _refused(count, f"{words}, are not read; write the file with smaller row groups")
        return
    at, end = _extent(chunk)
    dictionary: list[Value] | Refused = []
    while at < end and count > 0:
        page, at = _page(stream, at)
        if page.kind == _DICTIONARY:
            body = _body(stream, at, page, chunk.compression)
            dictionary = (
                body if isinstance(body, Refused) else list(_plain(body, page.facts.get(1, 0), max_value_bytes))
            )
        elif page.kind in (_DATA, _DATA_2):
            if page.facts.get(1, 0) > count:
                raise DamagedPage("more values than its chunk has")
            for value in _values_of(stream, at, page, chunk.compression, max_def_level, max_value_bytes, dictionary):
                count -= 1
                yield value
        at += page.packed
    if count != 0:
        raise DamagedPage(f"{count} values are missing")


def _extent(chunk: Any) -> tuple[int, int]:
    first = chunk.data_page_offset
    if chunk.dictionary_page_offset:  # older writers say 0 for none
        first = min(first, chunk.dictionary_page_offset)
    return first, first + chunk.total_compressed_size


def _refused(count: int, words: str) -> Iterator[Refused]:
    refused = Refused(Reason.TOO_MANY_BYTES, words)
    for _ in range(count):
        yield refused


def _values_of(
    stream: BinaryIO,
    at: int,
    page: _Page,
    codec: str,
    max_def_level: int,
    max_value_bytes: int,
    dictionary: list[Value] | Refused,
) -> Iterator[Value]:
    count = page.facts.get(1, 0)
    encoding = page.facts.get(4 if page.kind == _DATA_2 else 2)
    body = _body(stream, at, page, codec)
    if isinstance(body, Refused):
        yield from _refused(count, body.detail)
        return
    present: Any = np.ones(count, np.bool_)
    if max_def_level:
        if page.kind == _DATA and page.facts.get(3) != _RLE:
            raise DamagedPage(f"levels in encoding {page.facts.get(3)}")
        size = page.facts.get(5, 0) if page.kind == _DATA_2 else int.from_bytes(body.read(4), "little")
        levels = _hybrid(body.read(size), max_def_level.bit_length(), count)
        present = levels == max_def_level
    num_present = int(present.sum())
    if encoding == _PLAIN:
        found: Iterator[Value] = _plain(body, num_present, max_value_bytes)
    elif encoding in _INDICES and isinstance(dictionary, Refused):
        found = _refused(num_present, dictionary.detail)
    elif encoding in _INDICES and not isinstance(dictionary, Refused):
        width = body.read(1)[0] if num_present else 0
        indices = _hybrid(body.read(), width, num_present)
        if num_present and int(indices.max()) >= len(dictionary):
            raise DamagedPage("an index lies outside of its dictionary")
        found = map(dictionary.__getitem__, _some(indices))
    else:
        raise DamagedPage(f"encoding {encoding}")
    for there in _some(present):
        yield next(found) if there else None


def _some(numbers: "np.ndarray[Any, Any]") -> Iterator[Any]:
    """The same as Python's numbers, a few at a time."""
    for at in range(0, len(numbers), 4096):
        yield from numbers[at : at + 4096].tolist()


def _body(stream: BinaryIO, at: int, page: _Page, codec: str) -> Any:
    """What follows a page's header, unpacked, as a file; or why it is not unpacked."""
    size, count = max(page.bytes, page.packed), page.facts.get(1, 0)
    if size > MOST_PAGE_BYTES or count > _MOST_VALUES:
        words = f"a page of {count} values in {size} bytes, the limits are {_MOST_VALUES} and {MOST_PAGE_BYTES}"
        return Refused(Reason.TOO_MANY_BYTES, f"{words}; write the file with smaller row groups", size)
    stream.seek(at)
    data = pa.py_buffer(stream.read(page.packed))
    if data.size != page.packed:
        raise DamagedPage("a page is cut off")
    plain = 0  # bytes that are never packed: the levels of version 2
    if page.kind == _DATA_2:
        plain = page.facts.get(5, 0) + page.facts.get(6, 0)
        if not 0 <= plain <= min(data.size, page.bytes):
            raise DamagedPage("levels without end")
    name = _CODECS[codec]
    if not name or page.facts.get(7, True) is False:
        return pa.BufferReader(data)
    try:
        unpacked = pa.Codec(name).decompress(data.slice(plain), page.bytes - plain)
    except (pa.ArrowException, OSError) as error:
        raise DamagedPage(str(error)) from error
    return pa.BufferReader(data.slice(0, plain).to_pybytes() + unpacked.to_pybytes() if plain else unpacked)


def _plain(body: Any, count: int, max_value_bytes: int) -> Iterator[Value]:
    """Byte arrays, each behind its length. What is too large is passed over."""
    left = body.size() - body.tell()
    for _ in range(count):
        head = body.read(4)
        size = int.from_bytes(head, "little")
        left -= 4 + size
        if len(head) < 4 or left < 0:
            raise DamagedPage("a value goes on behind its page")
        if size > max_value_bytes:
            body.seek(body.tell() + size)
            yield Refused(Reason.TOO_MANY_BYTES, f"{size} bytes, the limit is {max_value_bytes}", size)
        else:
            yield body.read(size)


def _hybrid(data: bytes, width: int, count: int) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Numbers of ``width`` bits in runs and packs of eight, as levels and indices are written."""
    if not 0 <= width <= 32:
        raise DamagedPage(f"numbers of {width} bits")
    found, at, have = [np.zeros(0, np.int64)], 0, 0
    while have < count:
        try:
            head, at = _varint(data, at)
        except IndexError as error:
            raise DamagedPage("numbers are missing") from error
        if head & 1:
            size = min(head >> 1, -(-(count - have) // 8)) * width
            bits = np.unpackbits(np.frombuffer(data[at : at + size], np.uint8), bitorder="little")
            bits = bits[: len(bits) - len(bits) % width] if width else np.zeros(0, np.uint8)
            some = bits.reshape(-1, width).astype(np.int64) @ (1 << np.arange(width, dtype=np.int64)) if width else None
            numbers = np.zeros(count - have, np.int64) if some is None else some[: count - have]
            at += size
        else:
            size = (width + 7) // 8
            value = int.from_bytes(data[at : at + size], "little")
            numbers = np.full(min(head >> 1, count - have), value, np.int64)
            at += size
        if not len(numbers):
            raise DamagedPage("numbers are missing")
        found.append(numbers)
        have += len(numbers)
    return np.concatenate(found)


def _page(stream: BinaryIO, at: int) -> tuple[_Page, int]:
    """The page whose header stands at a place, and where its body begins."""
    size = _HEADER_BYTES
    while True:
        stream.seek(at)
        data = stream.read(size)
        try:
            facts, used = _fields(data, 0, 0)
            break
        except (IndexError, struct.error) as error:
            if len(data) < size or size >= _MOST_HEADER_BYTES:
                raise DamagedPage("no header of a page") from error
            size = _MOST_HEADER_BYTES
    kind, unpacked, packed = (facts.get(number) for number in (1, 2, 3))
    own = facts.get({_DATA: 5, _DICTIONARY: 7, _DATA_2: 8}.get(kind, 6), {})  # type: ignore[arg-type]
    numbers = all(isinstance(number, int) and number >= 0 for number in (kind, unpacked, packed))
    if not numbers or not isinstance(own, dict) or not _count_in(own):
        raise DamagedPage("no header of a page")
    return _Page(kind, unpacked, packed, own), at + used  # type: ignore[arg-type]


def _count_in(facts: dict[int, Any]) -> bool:
    return isinstance(facts.get(1, 0), int) and 0 <= facts.get(1, 0) < 2**31


def _fields(data: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """The fields of a struct in Thrift's compact protocol, by number, and where it ends. IndexError where data ends."""
    if depth > _DEEPEST:
        raise DamagedPage("structs in structs without end")
    found: dict[int, Any] = {}
    number = 0
    while head := data[at]:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            number, at = _zigzag(data, at)
        found[number], at = _field(data, at, head & 15, depth)
    return found, at + 1


def _field(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (1, 2):
        return kind == 1, at
    if kind == 3:
        return data[at], at + 1
    if kind in (4, 5, 6):
        return _zigzag(data, at)
    if kind == 7:
        return struct.unpack_from("<d", data, at)[0], at + 8
    if kind == 8:
        size, at = _varint(data, at)
        if at + size > len(data):
            raise IndexError("a text goes on")
        return data[at : at + size], at + size
    if kind == 12:
        return _fields(data, at, depth + 1)
    raise DamagedPage(f"a field of kind {kind}")  # lists and maps stand in no header of a page


def _zigzag(data: bytes, at: int) -> tuple[int, int]:
    number, at = _varint(data, at)
    return (number >> 1) ^ -(number & 1), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
    raise DamagedPage("a number without end")
