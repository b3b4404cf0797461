"""Open Clip Art Library: about 8,100 drawings with titles and keywords, from Debian's packages openclipart-png and -svg.

The pictures come from the PNG package; titles, keywords and authors stand in the metadata of the SVG of the same name.
Nearly all are in the public domain, and what a file says about its licence is carried along. The set is dirty: copies,
junk titles, odd pixel modes; curation has real work with it.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from dalle_model.errors import SourceError
from dalle_model.sources.base import Row, existing, inside, trace_of, walk
from dalle_model.sources.contents import content_digest
from dalle_model.sources.telling import Tell, silent

DEFAULT_ROOT = "/usr/share/openclipart"
RULES_VERSION = 1
_DC = "{http://purl.org/dc/elements/1.1/}"
_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"


@dataclass(frozen=True, slots=True)
class Facts:
    """What an SVG says of itself; empty where it does not."""

    title: str = ""
    keywords: tuple[str, ...] = ()
    author: str = ""
    licence: str = ""


class OpenClipart:
    """Every PNG below ``png/`` with the facts of the SVG beside it below ``svg/``. ``path``: where the two folders are."""

    name = "openclipart"
    vector = False

    def __init__(self, path: str = "") -> None:
        place = path or DEFAULT_ROOT
        if not (Path(place).expanduser() / "png").is_dir() or not (Path(place).expanduser() / "svg").is_dir():
            raise SourceError(
                f"source openclipart: {place} has no folders png and svg; run `apt-get install openclipart-png openclipart-svg`, or give openclipart:PATH"
            )
        self._root: Path = existing(place, "openclipart")
        found = [p for p in walk(self._root / "png", hidden=False) if p.suffix.lower() == ".png"]
        # A fixed shuffle: the first n rows are then a fair sample, not n animals.
        self._files = sorted(found, key=lambda p: hashlib.sha256(self._key(p).encode(errors="replace")).digest())

    def identity(self, tell: Tell = silent) -> dict[str, str]:
        digest = content_digest(self._root, self._pictures(), tell)
        return {"openclipart": digest, "openclipart.rules": str(RULES_VERSION)}

    def trace(self) -> str:
        return trace_of(self._pictures())

    def count(self) -> int:
        return len(self._files)

    def rows(self, start: int) -> Iterator[Row]:
        for path in self._files[start:]:
            name = path.relative_to(self._root / "png")
            facts = read_facts(self._root / "svg" / name.with_suffix(".svg"))
            yield Row(
                self._key(path),
                caption_of(name.stem, facts),
                inside(self._root, path.parent, path.name),
                facts.licence,
                facts.author,
                {"keywords": ", ".join(facts.keywords), "category": name.parts[0] if name.parts[1:] else ""},
            )

    def _pictures(self) -> Iterator[Path]:
        return (path for folder in ("png", "svg") for path in walk(self._root / folder, hidden=False))

    def _key(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()


def caption_of(stem: str, facts: Facts) -> str:
    """The title, behind the words of the file's name where the two have none in common: "dolphin, Flat Icon Collection".

    Whole series share one title, and then the name alone says what is drawn.
    """
    named, title = words_of(stem), facts.title or ", ".join(facts.keywords)
    if {word.lower() for word in named.split()} & {word.lower() for word in words_of(title).split()}:
        return title
    return ", ".join(words for words in (named, title) if words)


def words_of(stem: str) -> str:
    """The words in a file name: "red_heart_01" -> "red heart". Numbers at the end tell copies apart and say nothing."""
    words = stem.replace("_", " ").replace("-", " ").split()
    while words and words[-1].isdigit():
        words.pop()
    return " ".join(words)


def read_facts(path: Path) -> Facts:
    """Title, keywords, author and licence of an SVG; none of them when it is missing or no XML."""
    try:
        with path.open("rb") as stream:
            for _, element in ElementTree.iterparse(stream):
                if element.tag.rpartition("}")[2] == "Work":
                    return _facts(element)
    except (OSError, ElementTree.ParseError, ValueError, LookupError):  # LookupError: an encoding nobody knows
        return Facts()
    return Facts()


def _facts(work: ElementTree.Element) -> Facts:
    keywords = [" ".join((item.text or "").split()) for item in work.iterfind(f"{_DC}subject//{_RDF}li")]
    licences = [item.get(f"{_RDF}resource") for item in work if item.tag.rpartition("}")[2] == "license"]
    return Facts(
        " ".join((work.findtext(f"{_DC}title") or "").split()),
        tuple(dict.fromkeys(word for word in keywords if word)),
        " ".join((work.findtext(f"{_DC}creator//{_DC}title") or "").split()),
        _licence_of(next((licence for licence in licences if licence), "")),
    )


def _licence_of(uri: str) -> str:
    """The SPDX-like name of a licence's URI, the URI itself when it is another one."""
    return "public domain" if uri.lower().rstrip("/").endswith("publicdomain") else uri
