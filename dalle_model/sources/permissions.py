"""What the owner of a site allows: robots.txt (RFC 9309), X-Robots-Tag, and the TDM reservation protocol (W3C TDMRep).

Nothing here opens a connection; it reads what the fetcher brought.
"""

import codecs
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from protego import Protego

AGENT = "dalle-prefect"  # the product token that robots.txt and X-Robots-Tag are matched against
OPT_OUTS = frozenset({"noai", "noimageai", "noindex", "noimageindex", "noml", "none"})
_WITH_VALUE = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
_CRAWLER = re.compile(r"(\*|[a-z][a-z0-9_.-]*)(/\S*)?$")  # not the hour of a date
_MARKS = codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE


def tag_refuses(values: Iterable[str]) -> str:
    """The directive of X-Robots-Tag headers that speaks against this use, "" when none does.

    A directive may be addressed ("otherbot: noindex"); what is for another crawler does not count. Commas are due between
    directives; semicolons, spaces and quotes are understood as well, for who writes so means it.
    """
    for value in values:
        agent = ""
        for token in re.split("[,;]", value.lower()):
            name, colon, rest = token.partition(":")
            if name.strip() in _WITH_VALUE:
                continue
            if colon and (named := _CRAWLER.match(name.strip())):
                agent, token = named[1], rest
            if agent in ("", "*", AGENT) and (said := OPT_OUTS.intersection(token.replace('"', " ").split())):
                return min(said)
    return ""


def header_reserves(values: Iterable[str]) -> bool | None:
    """What TDM-Reservation headers say: reserved (one of them is enough), not reserved, or None when they say nothing."""
    said = {word.strip(' "') for value in values for word in re.split("[,;]", value)}
    return True if "1" in said else False if "0" in said else None


@dataclass(frozen=True, slots=True)
class TdmRules:
    """The rules of one ``/.well-known/tdmrep.json``: (pattern of paths, reserved)."""

    rules: tuple[tuple[str, bool], ...] = ()

    @classmethod
    def parse(cls, data: bytes) -> "TdmRules":
        """What can be understood of a file of unknown quality; a rule without a location is for the whole site."""
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            return cls()
        rules: list[tuple[str, bool]] = []
        for rule in found if isinstance(found, list) else [found]:
            if isinstance(rule, dict) and rule.get("tdm-reservation") in (0, 1, "0", "1"):
                location: Any = rule.get("location", "/*")
                if isinstance(location, str):
                    rules.append((location, int(rule["tdm-reservation"]) == 1))
        return cls(tuple(rules))

    def reserves(self, path: str) -> bool:
        """Whether a path is reserved. Where the first and the most specific rule disagree, the reservation counts."""
        matching = [(pattern, reserved) for pattern, reserved in self.rules if _matches(pattern, path)]
        if not matching:
            return False
        return matching[0][1] or max(matching, key=lambda rule: len(rule[0]))[1]


def _matches(pattern: str, path: str) -> bool:
    """Patterns as in robots.txt: a prefix in which * stands for anything, and $ at the end for the end.

    Each piece is taken where it first stands, which is right for such patterns and cannot run for ever, as a regular
    expression with many stars does.
    """
    first, *pieces = pattern.removesuffix("$").split("*")
    if not path.startswith(first):
        return False
    at = len(first)
    if not pattern.endswith("$"):
        last = ""
    elif pieces:
        last = pieces.pop()
    else:
        return path == first
    for piece in pieces:
        at = path.find(piece, at)
        if at < 0:
            return False
        at += len(piece)
    return len(path) - len(last) >= at and path.endswith(last)


@dataclass(frozen=True, slots=True)
class SiteRules:
    """What one site says to everybody; ``robots`` is None where there is no robots.txt."""

    robots: Any = None
    tdm: TdmRules = field(default_factory=TdmRules)
    note: str = ""  # how the rules were come by, for the record

    @classmethod
    def parse(cls, robots: bytes | None, tdm: bytes | None, note: str = "") -> "SiteRules":
        """From the two files, None = absent."""
        parsed = None if robots is None else Protego.parse(_text(robots))
        return cls(parsed, TdmRules() if tdm is None else TdmRules.parse(tdm), note)

    def allows(self, url: str) -> bool:
        """What robots.txt says of a URL."""
        return self.robots is None or bool(self.robots.can_fetch(url, AGENT))

    def delay_s(self) -> float:
        """Seconds between requests that robots.txt asks for, 0 = it does not."""
        return float((self.robots and self.robots.crawl_delay(AGENT)) or 0.0)


def _text(data: bytes) -> str:
    """A file as its owner wrote it: editors put marks at the start, and behind one that stays, no first rule is seen."""
    return data.decode("utf-16" if data.startswith(_MARKS) else "utf-8-sig", errors="replace")
