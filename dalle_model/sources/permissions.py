"""What the owner of a site allows: robots.txt (RFC 9309), X-Robots-Tag, the TDM reservation protocol (W3C TDMRep), and
usage preferences: Content-Usage (draft-ietf-aipref-attach) and Content-Signal (contentsignals.org).

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
_TRAINING = frozenset({"train-ai", "ai-train", "train-genai"})  # of both vocabularies, and of an earlier draft
_PREFERENCE = re.compile(r'([a-z-]+)\s*=\s*"?(yes|no|y|n)\b')
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


def training_preference(values: Iterable[str]) -> tuple[bool, str] | None:
    """(allowed, the words) that Content-Usage or Content-Signal values say of training; one no outweighs every yes."""
    said = [match for value in values for match in _PREFERENCE.finditer(value.lower()) if match[1] in _TRAINING]
    if not said:
        return None
    match = min(said, key=lambda match: match[2].startswith("y"))
    return match[2].startswith("y"), match[0]


@dataclass(frozen=True, slots=True)
class UsageRules:
    """Usage preferences in one robots.txt for this crawler: (pattern of paths, training allowed, the line)."""

    rules: tuple[tuple[str, bool, str], ...] = ()

    @classmethod
    def parse(cls, robots: str) -> "UsageRules":
        """Those of this crawler's groups, else of the groups for all; lines before any group are for all as well."""
        groups: dict[str, list[tuple[str, bool, str]]] = {"*": []}
        agents, naming = {"*"}, False
        for line in robots.splitlines():
            label, colon, value = (part.strip() for part in line.partition("#")[0].partition(":"))
            if not colon:
                continue
            if label.lower() == "user-agent":
                agents = agents if naming else set()
                if (agent := value.lower().partition("/")[0].strip()) in ("*", AGENT):  # others are not ours to keep
                    agents.add(agent)
                    groups.setdefault(agent, [])
                naming = True
                continue
            naming = False
            if label.lower() not in ("content-usage", "content-signal"):
                continue
            path = value.split()[0] if value.startswith(("/", "*")) else "/"
            if (said := training_preference([value.removeprefix(path)])) is not None:
                for agent in agents:
                    groups[agent].append((path, said[0], f"{label}: {said[1]}"))
        return cls(tuple(groups.get(AGENT, groups["*"])))

    def refuses(self, path: str) -> str:
        """The line that speaks against training on what is at a path, "" = none: the longest pattern counts, then a no."""
        matching = [rule for rule in self.rules if _matches(rule[0], path)]
        _, allowed, line = min(matching, key=lambda rule: (-len(rule[0]), rule[1]), default=("", True, ""))
        return "" if allowed else line


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
    usage: UsageRules = field(default_factory=UsageRules)
    note: str = ""  # how the rules were come by, for the record

    @classmethod
    def parse(cls, robots: bytes | None, tdm: bytes | None, note: str = "") -> "SiteRules":
        """From the two files, None = absent."""
        text = None if robots is None else _text(robots)
        parsed = None if text is None else Protego.parse(text)
        return cls(parsed, TdmRules() if tdm is None else TdmRules.parse(tdm), UsageRules.parse(text or ""), note)

    def allows(self, url: str) -> bool:
        """What robots.txt says of a URL."""
        return self.robots is None or bool(self.robots.can_fetch(url, AGENT))

    def delay_s(self) -> float:
        """Seconds between requests that robots.txt asks for, 0 = it does not."""
        return float((self.robots and self.robots.crawl_delay(AGENT)) or 0.0)


def _text(data: bytes) -> str:
    """A file as its owner wrote it: editors put marks at the start, and behind one that stays, no first rule is seen."""
    return data.decode("utf-16" if data.startswith(_MARKS) else "utf-8-sig", errors="replace")
