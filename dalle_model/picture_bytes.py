"""What the bytes of a picture tell before any of it is decoded."""

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"BM", "BMP"),
)
_LOOKAHEAD = 16
_AVIF = {b"avif", b"avis"}
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"}


def sniff(data: bytes) -> str | None:
    """Format by magic bytes among those we read; the file's name and declared type are no evidence."""
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return "AVIF" if _AVIF & _brands(data) else None


def unread(data: bytes) -> str:
    """The name of a format of pictures that is not read, "" where the bytes are of none that is known."""
    if _HEIC & _brands(data):
        return "HEIC"
    if data.startswith((b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")):
        return "JPEG XL"
    if data.startswith((b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  ")):
        return "JPEG 2000"
    if data.startswith(b"%PDF-"):
        return "PDF"
    return "SVG" if b"<svg" in data[:1000] else ""


def _brands(data: bytes) -> set[bytes]:
    """What a file in boxes (ISO/IEC 14496-12) says it is: its major brand and those it is compatible with."""
    if data[4:8] != b"ftyp":
        return set()
    size = min(int.from_bytes(data[:4], "big"), 256)
    return {data[at : at + 4] for at in (8, *range(16, size, 4))}


def webp_size(data: bytes) -> tuple[int, int]:
    """(width, height) from the first chunk of a WebP (RFC 9649); ValueError when it is none of the three kinds."""
    chunk, start = data[12:16], data[20:30]
    if len(start) < 10:
        raise ValueError("the header is cut off")
    if chunk == b"VP8X":
        return 1 + int.from_bytes(start[4:7], "little"), 1 + int.from_bytes(start[7:10], "little")
    if chunk == b"VP8L":
        bits = int.from_bytes(start[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 ":
        return int.from_bytes(start[6:8], "little") & 0x3FFF, int.from_bytes(start[8:10], "little") & 0x3FFF
    raise ValueError(f"first chunk {chunk!r}")


def without_end(data: bytes) -> bytes:
    """A JPEG with a few zeros in the place of its end mark, where its rows come in one scan of Huffman codes.

    At an end mark in the midst of the rows libjpeg leaves the rest grey, and its warning does not pass through Pillow. Where the
    data just stop, Pillow raises. The zeros are for the decoder, which reads up to 8 bytes ahead of the last pixel.
    """
    if not data.endswith(b"\xff\xd9"):
        return data
    at, components = 2, 0
    while at + 10 <= len(data) and data[at] == 0xFF:
        mark, size = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if mark in (0xC0, 0xC1):
            components = data[at + 9]
        elif mark == 0xDA:  # start of scan: of several (and in SOF2, progressive) all are wanted up to the end mark
            return data[:-2] + bytes(_LOOKAHEAD) if data[at + 4] == components else data
        at += 1 if mark == 0xFF else 2 + size
    return data
