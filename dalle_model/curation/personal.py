"""Personal data in captions: e-mail addresses, telephone numbers, payment cards, street addresses.

What is found is replaced by a word in brackets, e.g. ``[email]``; the masked caption is what goes on. The patterns look
for the forms that people write, not for every number: a date or the size of a picture stays. Names of people are not
looked for, and a number in words is not seen.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

KINDS = ("email", "card", "phone", "address")

_AT, _DOT = r"(?:@|＠| ?[\[({] ?at ?[\])}] ?)", r"(?:\.| ?[\[({] ?dot ?[\])}] ?)"
# Looks for an address only where a run of its characters begins and never tries a shorter run: from every place of a
# long run without an @, the work would grow with the square of its length.
_EMAIL = re.compile(rf"(?<![\w.+%-])(?:[\w.+%-]++{_AT}[\w-]+(?:{_DOT}[\w-]+)+)+", re.IGNORECASE)
_CARD = re.compile(r"(?<![\w.])\d(?:[ -]?\d){12,18}(?![\w])")
_GAP = r"(?: ?[./-] ?| )?"
_PHONE = re.compile(
    rf"(?<![\w.+])(?:(?:\+|00)\d{{1,3}}{_GAP}(?:\(0?\d{{1,4}}\){_GAP})?\d(?:{_GAP}\d){{5,12}}"  # +49 (0)30 123456
    rf"|\(0?\d{{2,4}}\){_GAP}\d(?:{_GAP}\d){{5,9}}"  # (030) 123456
    r"|\d{3}[-. ]\d{3}[-. ]\d{4}"  # 555-010-9999
    r"|0\d{2,4}[ /-]\d{3,4}[ -]?\d{2,5})(?![\w])"  # 030 1234567
)
_CALLED = re.compile(
    r"(?<!\w)(?:tel(?:ephone)?|phone|mobile|cell|call|whatsapp|fax)\b[.: ]*(?:me |us |now |at |on |no\.? |number )*"
    rf"(\+?\d(?:{_GAP}\d){{5,13}})(?!\w)",
    re.IGNORECASE,
)
_STREET = r"(?:street|st|avenue|ave|road|rd|boulevard|blvd|lane|ln|drive|dr|court|ct|square|sq|way|place|pl|terrace|close|crescent)"
_ADDRESS = re.compile(
    rf"(?<![\w.])(?:\d{{1,5}}[A-Za-z]? (?:[A-ZÀ-Þ][\w'’.-]* ){{1,3}}(?i:{_STREET})\b\.?"  # 12 Main Street
    rf"|\d{{2,5}} \w+ (?:street|avenue|road|boulevard|lane)(?!\w)"  # 12 main street
    r"|\b\w+(?:straße|strasse|str\.|gasse|allee|platz) \d{1,4} ?[a-z]?(?!\w)"  # Hauptstraße 12
    r"|\d{1,4},? (?:rue|avenue|boulevard|place|chemin) (?:d[eu]s? |de la |d['’])?[A-ZÀ-Þ]\w+"  # 12, rue de Rivoli
    r"|(?i:p\.? ?o\.? box) \d+)",
    re.UNICODE,
)
# Rows that match neither the first two nor both of the last hold nothing of the above; RE2 sorts them out quickly.
_AT_HINT = r"[@＠]|[\[({] ?(?i:at) ?[\])}]"
_NUMBER_HINT = r"\p{Nd}(?:\P{Nd}{0,4}\p{Nd}){5}"
_DIGIT_HINT = r"\p{Nd}"
_STREET_HINT = rf"(?i)\b(?:{_STREET[3:-1]}|rue|chemin|box)\b|straße|strasse|str\.|gasse|allee|platz"


@dataclass(frozen=True, slots=True)
class Masked:
    """Columns of a table: the caption that goes on (null where nothing was found) and what was found, by kind."""

    caption: pa.Array  # string, nullable
    kinds: pa.Array  # string: kinds between spaces, one for each finding
    count: pa.Array  # float64: findings


def mask(caption: str) -> tuple[str, Counter[str]]:
    """The caption with personal data replaced -> (masked, findings by kind). Masking a masked caption changes nothing."""
    found: Counter[str] = Counter()

    def replaced(kind: str, valid: Callable[[str], bool] = lambda _: True) -> Callable[[re.Match[str]], str]:
        def replace(match: re.Match[str]) -> str:
            if not valid(match.group()):
                return match.group()
            found[kind] += 1
            return f"[{kind}]"

        return replace

    text = _EMAIL.sub(replaced("email"), caption)
    text = _CARD.sub(replaced("card", _is_card), text)
    text = _PHONE.sub(replaced("phone"), text)
    text = _CALLED.sub(lambda match: match.group().replace(match.group(1), replaced("phone")(match)), text)
    text = _ADDRESS.sub(replaced("address"), text)
    return text, found


def mask_column(captions: pa.Array) -> Masked:
    """``mask`` over a column."""
    at, number, digit, street = (
        pc.match_substring_regex(captions, hint).to_numpy(zero_copy_only=False)
        for hint in (_AT_HINT, _NUMBER_HINT, _DIGIT_HINT, _STREET_HINT)
    )
    suspects = np.flatnonzero(at | number | (digit & street))
    masked: list[str | None] = [None] * len(captions)
    kinds, counts = [""] * len(captions), np.zeros(len(captions), np.float64)
    for place in suspects.tolist():
        text, found = mask(captions[place].as_py())
        if found:
            masked[place] = text
            kinds[place] = " ".join(kind for kind in KINDS for _ in range(found[kind]))
            counts[place] = found.total()
    return Masked(pa.array(masked, pa.string()), pa.array(kinds, pa.string()), pa.array(counts, pa.float64()))


def _is_card(number: str) -> bool:
    """Whether the digits are those of a payment card: its first digit, and the check digit (Luhn, ISO/IEC 7812-1)."""
    digits = [int(c) for c in number if c.isdecimal()]
    if digits[0] not in (2, 3, 4, 5, 6) or len(set(digits)) == 1:
        return False
    doubled = (d * 2 - 9 if d > 4 else d * 2 for d in digits[-2::-2])
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0
