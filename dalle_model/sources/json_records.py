"""JSON of unknown quality -> records: one object a line, or one array of objects.

Nothing is held but the object that is read. What is none is an outcome, not an exception.
"""

import codecs
import io
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

from dalle_model.decoding import Reason, Refused

_PIECE = 1 << 16
_SPACE = re.compile(r"[ \t\r\n]*")
_ARRAY = re.compile(r"\s*\[\s*(?:\{|$)")  # of objects: a line of a JSON-lines file may be a list of something else
_ACROSS = re.compile(rb"\s*\{\s*$")
Record = dict[str, Any] | Refused


def json_records(stream: BinaryIO, max_bytes: int) -> Iterator[tuple[int, Record]]:
    """(line, record) of JSON lines, (number from 1, record) of an array. UTF-8, or UTF-16 behind its mark.

    max_bytes: of a line, or about of an object of an array.
    """
    start = buffered(stream)
    head = start.peek(1)
    encoding = encoding_of(head)
    if _ARRAY.match(head.decode(encoding, "replace")):
        yield from _of_array(text_stream(start, encoding).read, max_bytes)
    else:
        yield from _of_lines(byte_lines(start), max_bytes)


def byte_lines(stream: BinaryIO) -> Callable[[int], bytes]:
    """A function that gives a line of at most so many bytes, or characters, in UTF-8 without a mark."""
    start = buffered(stream)
    encoding = encoding_of(start.peek(1))
    if encoding == "utf-16":
        text = text_stream(start, encoding)
        return lambda size: text.readline(size).encode()
    if start.peek(3).startswith(codecs.BOM_UTF8):
        start.read(3)
    return start.readline


def buffered(stream: BinaryIO) -> "io.BufferedReader[Any]":
    """The stream with a look ahead."""
    return stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(cast(Any, stream))


def encoding_of(head: bytes) -> str:
    """By the mark at the beginning of a text: UTF-16 is what spreadsheets and shells of Windows write."""
    return "utf-16" if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def text_stream(stream: Any, encoding: str) -> io.TextIOWrapper:
    """Text of a stream; bytes that are no UTF-8 become lone surrogates: they cost their own record alone, the caption check refuses them."""
    return io.TextIOWrapper(stream, encoding, "replace" if encoding == "utf-16" else "surrogateescape", newline="")


def _of_lines(readline: Callable[[int], bytes], max_bytes: int) -> Iterator[tuple[int, Record]]:
    number = 0
    while line := readline(max_bytes + 1):
        number += 1
        if len(line) > max_bytes and not line.endswith(b"\n"):
            while (rest := readline(max_bytes)) and not rest.endswith(b"\n"):
                continue
            yield number, Refused(Reason.BAD_METADATA, f"line of more than {max_bytes} bytes; {_FORM}")
        elif number == 1 and _ACROSS.match(line):
            yield number, Refused(Reason.BAD_METADATA, f"one object over several lines; {_FORM}")
            return
        elif line.strip():
            yield number, json_record(line)


_FORM = "give one object a line, or an array of objects"


def json_record(line: bytes) -> Record:
    """The object that a JSON text of unknown quality holds, or why it holds none."""
    try:
        record = _DECODER.decode(line.decode())
    except (ValueError, RecursionError) as error:  # covers bad UTF-8, bad JSON, doublets, too deep nesting
        return Refused(Reason.BAD_METADATA, f"{type(error).__name__}: {error}"[:200])
    return _object(record)


def _object(value: Any) -> Record:
    return (
        value
        if isinstance(value, dict)
        else Refused(Reason.BAD_METADATA, f"a JSON {type(value).__name__}, not an object")
    )


_TWICE = "the same key stands twice in one object"  # JSON leaves open which value counts: two readers may differ


def _no_doublets(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError(_TWICE)
    return record


_DECODER = json.JSONDecoder(object_pairs_hook=_no_doublets)


def _of_array(read: Callable[[int], str], max_bytes: int) -> Iterator[tuple[int, Record]]:
    """The elements of an array. What follows an element that is no JSON is lost: where the next begins is not known."""
    doublets: list[bool] = []

    def noted(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(pairs)
        if len(record) < len(pairs):
            doublets.append(True)
        return record

    decoder = json.JSONDecoder(object_pairs_hook=noted)
    text, at, number = read(_PIECE).lstrip()[1:], 0, 0
    while True:
        at = _behind_space(text, at)
        trouble = "the array has no end"
        if text[at : at + 1] == "]":
            if (text[at + 1 :] + read(_PIECE)).strip():
                yield number + 1, Refused(Reason.BAD_METADATA, "the file goes on behind its array; give that as a file")
            return
        if at < len(text):
            doublets.clear()
            try:
                value, end = decoder.raw_decode(text, at)
                end = _behind_space(text, end)
                mark = text[end : end + 1]
                if mark in (",", "]"):  # else it may go on in the next piece
                    number += 1
                    yield number, Refused(Reason.BAD_METADATA, _TWICE) if doublets else _object(value)
                    at = end + (mark == ",")
                    continue
                trouble = "no comma behind an object" if mark else trouble
            except (ValueError, RecursionError) as error:
                trouble = f"{type(error).__name__}: {getattr(error, 'msg', error)}"[:200]
        piece = read(_PIECE) if len(text) - at <= max_bytes else ""
        if not piece:
            size = f", or has more than {max_bytes} bytes" if len(text) - at > max_bytes else ""
            words = (
                f"object {number + 1} of the array is no whole JSON ({trouble}){size}: what follows is lost; {_FORM}"
            )
            yield number + 1, Refused(Reason.BAD_METADATA, words)
            return
        text, at = text[at:] + piece, 0


def _behind_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at
