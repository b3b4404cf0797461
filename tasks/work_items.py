"""What a batch of pictures is made of, and how it is cut into pieces that any run can finish and every run finds.

A piece is named by what is in it (model, sampler, format, and for each picture prompt, negative prompt, seed, index and
tags), not by the run that draws it or its place in the list. A killed run, one started twice, the next schedule and
a prompt set that has grown therefore meet at the same receipts, and a picture that has one is not drawn again.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dalle_model.config import GenerateConfig
from dalle_model.errors import UsageError
from tasks.artifacts import fingerprint
from tasks.prompts import Prompt

MAX_PICTURES = 5_000_000  # of one batch: all of them are known before the first is drawn
PIECE_VERSION = 1  # raised when the same piece would be drawn or stored differently


@dataclass(frozen=True)
class Item:
    """One picture to make."""

    prompt: str
    seed: int
    index: int
    negative: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Piece:
    """Pictures that are drawn, stored and receipted together. ``key``: the fingerprint of their receipt."""

    key: str
    items: tuple[Item, ...]


def items_of(prompts: Sequence[Prompt], config: GenerateConfig) -> list[Item]:
    """Every picture of a prompt list, prompt by prompt. One that several rows ask for is made once, with all their tags.

    Raises UsageError when there are more than ``MAX_PICTURES``.
    """
    wanted = sum(config.n if p.n is None else p.n for p in prompts)
    if wanted > MAX_PICTURES:
        raise UsageError(
            f"{len(prompts):,} prompts ask for {wanted:,} pictures, and a batch holds {MAX_PICTURES:,}; split the prompt set, or lower n"
        )
    found: dict[tuple[str, str, int, int], Item] = {}
    for p in prompts:
        seed = config.seed if p.seed is None else p.seed
        for index in range(config.n if p.n is None else p.n):
            key = (p.text, p.negative, seed, index)
            before = found[key].tags if key in found else ()
            found[key] = Item(p.text, seed, index, p.negative, tuple(dict.fromkeys((*before, *p.tags))))
    return list(found.values())


def pieces(items: Sequence[Item], rows: int, about: Mapping[str, Any], model: str) -> list[Piece]:
    """Cut ``items`` into pieces of at most ``rows`` pictures. ``about``: everything else that decides the pixels."""
    return [
        Piece(fingerprint("drawing", PIECE_VERSION, {**about, "items": _named(piece)}, {"model": model}), piece)
        for piece in _cut(items, rows)
    ]


def _cut(items: Sequence[Item], rows: int) -> Iterator[tuple[Item, ...]]:
    """Between prompts whose hash says so, every rows / 2 pictures on average, and where a piece is full.

    A cut depends on the prompt before it alone. A prompt added to or taken from the list so changes the piece around
    it and leaves the others as they were, which fixed places could not promise.
    """
    piece: list[Item] = []
    for at, item in enumerate(items):
        piece.append(item)
        last_of_prompt = at + 1 == len(items) or (items[at + 1].prompt, items[at + 1].seed) != (item.prompt, item.seed)
        if len(piece) >= rows or (last_of_prompt and _is_border(item, rows)):
            yield tuple(piece)
            piece = []
    if piece:
        yield tuple(piece)


def _is_border(item: Item, rows: int) -> bool:
    digest = hashlib.sha256(f"{item.prompt}\0{item.seed}".encode()).digest()
    pictures = item.index + 1  # of this prompt: its last index
    return int.from_bytes(digest[:8], "big") % max(rows, 1) < 2 * pictures


def _named(items: Sequence[Item]) -> list[list[Any]]:
    return [[i.prompt, i.negative, i.seed, i.index, list(i.tags)] for i in items]
