"""The Arrow schemas of what crosses storage. Stages meet here and nowhere else.

A schema's version rises when a column changes its meaning; readers refuse a version they do not know.
"""

import hashlib
import re
import unicodedata

import pyarrow as pa

SCHEMA_VERSION = "1"


def _schema(name: str, *fields: pa.Field) -> pa.Schema:
    return pa.schema(list(fields), metadata={"record": name, "record_version": SCHEMA_VERSION})


# One image with its caption. `image` is a clean re-encoding (PNG, or JPEG for photographs) of an RGB picture:
# oriented, in sRGB, without alpha or metadata. `key` is the path or URL inside the source; `extra` is JSON. `weight` is
# that of its source: how often it is seen in training relative to others.
PAIR = _schema(
    "Pair",
    pa.field("id", pa.string(), nullable=False),
    pa.field("image", pa.binary(), nullable=False),
    pa.field("caption", pa.string(), nullable=False),
    pa.field("width", pa.int32(), nullable=False),
    pa.field("height", pa.int32(), nullable=False),
    pa.field("source", pa.string(), nullable=False),
    pa.field("key", pa.string(), nullable=False),
    pa.field("licence", pa.string(), nullable=False),
    pa.field("author", pa.string(), nullable=False),
    pa.field("extra", pa.string(), nullable=False),
    pa.field("weight", pa.float32(), nullable=False),
)

# What became of every input row: in = kept + rejected. `reason` is empty for a kept row. `rule` names the check,
# `score` what it measured, `detail` is free text for a person: why not, or of a kept row who was asked before it was
# fetched. A rejected fetch has the rule fetch.transient, fetch.permanent or fetch.refused.
LEDGER = _schema(
    "Ledger",
    pa.field("id", pa.string(), nullable=False),
    pa.field("source", pa.string(), nullable=False),
    pa.field("key", pa.string(), nullable=False),
    pa.field("kept", pa.bool_(), nullable=False),
    pa.field("reason", pa.string(), nullable=False),
    pa.field("rule", pa.string(), nullable=False),
    pa.field("score", pa.float64(), nullable=True),
    pa.field("detail", pa.string(), nullable=False),
)

# One score of one curation rule for one pair; the verdict is score against threshold, so thresholds can move
# without computing scores again.
SCORE = _schema(
    "Score",
    pa.field("id", pa.string(), nullable=False),
    pa.field("rule", pa.string(), nullable=False),
    pa.field("rule_version", pa.int32(), nullable=False),
    pa.field("score", pa.float64(), nullable=True),
    pa.field("passed", pa.bool_(), nullable=False),
    pa.field("model", pa.string(), nullable=True),  # kind and digest of the model that gave the score
)

# A curated pair points into the shards of its `pairs` artifact (object number and row) and adds what curation
# decided. `split` is train, valid, test or heldout.
CURATED = _schema(
    "Curated",
    pa.field("id", pa.string(), nullable=False),
    pa.field("shard", pa.int32(), nullable=False),
    pa.field("row", pa.int32(), nullable=False),
    pa.field("caption", pa.string(), nullable=False),
    pa.field("split", pa.string(), nullable=False),
    pa.field("weight", pa.float32(), nullable=False),
    pa.field("cluster", pa.string(), nullable=False),
)


# Which pairs are kin: one row for every pair that passed the rules of single pairs. `tier` is what joined it to its
# cluster (bytes, hash, embedding) at `distance` from its nearest kin there (0, bits of 64, the embedding's distance);
# one row per cluster, the best under the survivor rule, joined nothing. `survivor`: it is among the curated pairs.
CLUSTER = _schema(
    "Cluster",
    pa.field("id", pa.string(), nullable=False),
    pa.field("cluster", pa.string(), nullable=False),
    pa.field("tier", pa.string(), nullable=False),
    pa.field("distance", pa.float64(), nullable=True),
    pa.field("survivor", pa.bool_(), nullable=False),
)


def token_row(num_image_tokens: int) -> pa.Schema:
    """Schema of one tokenised pair: ``image_tokens`` is a fixed-size list of ``num_image_tokens`` uint16."""
    return _schema(
        "TokenRow",
        pa.field("id", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("weight", pa.float32(), nullable=False),
        pa.field("text_tokens", pa.list_(pa.uint16()), nullable=False),
        pa.field(
            "image_tokens", pa.list_(pa.field("item", pa.uint16(), nullable=False), num_image_tokens), nullable=False
        ),
        pa.field("augmentation", pa.int32(), nullable=False),  # 0: the pair itself, k: its k-th augmented copy
    )


# One generated picture with all that is needed to draw it again.
GENERATION = _schema(
    "Generation",
    pa.field("prompt", pa.string(), nullable=False),
    pa.field("prompt_sha256", pa.string(), nullable=False),
    pa.field("index", pa.int32(), nullable=False),
    pa.field("seed", pa.int64(), nullable=False),
    pa.field("status", pa.string(), nullable=False),  # drawn | refused
    pa.field("reason", pa.string(), nullable=False),
    pa.field("tags", pa.string(), nullable=False),
    pa.field("image", pa.binary(), nullable=False),  # PNG with provenance in its text chunks
    pa.field("image_tokens", pa.list_(pa.uint16()), nullable=False),
    pa.field("model", pa.string(), nullable=False),  # fingerprint of the model artifact
    pa.field("sampler", pa.string(), nullable=False),  # JSON of the sampler settings
    pa.field("code_version", pa.string(), nullable=False),
    pa.field("negative", pa.string(), nullable=False),  # negative prompt, empty = none
)


# Zero-width non-joiner and joiner. Persian and other languages of the Arabic script spell with the first, Indic scripts
# with both, and emoji are put together by the second (Unicode 16, sections 9.2, 12.1 and 23.2; UTS 51).
_JOINERS = re.compile("[\u200c\u200d]+")
_EMOJI = re.compile("[\u2190-\u21ff\u2300-\u2bff\U0001f000-\U0001faff]\ufe0f?")
_JOINABLE = re.compile("[\u0600-\u08ff\u0900-\u0dff\u1000-\u109f\u1780-\u18af\u1b00-\u1b7f\ua980-\ua9df]")
_VIRAMAS = frozenset("\u094d\u09cd\u0a4d\u0acd\u0b4d\u0bcd\u0c4d\u0ccd\u0d4d\u0dca")


def normalise_caption(caption: str) -> str:
    """NFC, control and format characters dropped, white space folded to single spaces.

    Joiners of zero width stay where they join: between letters of scripts that are spelled with them, and between emoji.
    Characters that this Python's Unicode does not know yet, new emoji say, stay: another Python would keep them.
    """
    if caption.isascii() and caption.isprintable():  # most are, and need no look at each character
        return " ".join(caption.split())
    text = unicodedata.normalize("NFC", caption)
    kept = "".join(" " if c.isspace() else c for c in text if c.isspace() or not _is_invisible(c))
    if "\u200c" in kept or "\u200d" in kept:
        kept = _JOINERS.sub(_joiner, kept)
    # Once more: what stood on both sides of a dropped character may be one letter.
    return " ".join(unicodedata.normalize("NFC", kept).split())


def _joiner(found: re.Match[str]) -> str:
    """The first of some joiners in a row, "" where it joins nothing: there it could only hide a word."""
    text, (start, end) = found.string, found.span()
    before, after = text[max(start - 2, 0) : start], text[end : end + 1]
    if _is_joinable(before[-1:]) and (_is_joinable(after) or (found[0][0] == "\u200d" and before[-1] in _VIRAMAS)):
        return found[0][0]
    emoji = found[0][0] == "\u200d" and (_EMOJI.fullmatch(before) or _EMOJI.fullmatch(before[-1:]))
    return "\u200d" if emoji and _EMOJI.fullmatch(after) else ""


def _is_joinable(char: str) -> bool:
    return _JOINABLE.match(char) is not None and unicodedata.category(char)[0] in "LM"


def _is_invisible(char: str) -> bool:
    kind, code = unicodedata.category(char), ord(char)
    if kind == "Cn":  # not assigned, or one of those that never will be
        return code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF
    return kind[0] == "C" and char not in "\u200c\u200d"


def pair_id(image: bytes, caption: str) -> str:
    """SHA-256 over the source image bytes and the normalised caption: the identity of a pair everywhere."""
    return pair_id_of(hashlib.sha256(image).digest(), normalise_caption(caption))


def pair_id_of(image_sha256: bytes, caption: str) -> str:
    """``pair_id`` where the digest of the image bytes is known already, and the caption is normalised."""
    return hashlib.sha256(image_sha256 + caption.encode()).hexdigest()
