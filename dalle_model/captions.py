"""Captions as tokens: a byte-level BPE trained on the captions themselves, lower-cased as in the paper.

Id layout: 0 is padding and the end of a caption; 1..256 are the bytes; the merges follow in the order learnt. Every
string can be encoded, none maps to an unknown token. A word with a hyphen ("medium-dark") can become one token;
punctuation stands alone, so that "man" and "man:" share theirs.
"""

import itertools
import json
from collections.abc import Iterable

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from dalle_model.errors import DataError
from dalle_model.records import normalise_caption

PAD_TOKEN = "<pad>"
_PIECE = r" ?[\p{L}\p{M}\p{N}'’-]+| ?[^ ]"  # a word, or one other character, with the space before it


def train_bpe(captions: Iterable[str], vocab_size: int) -> bytes:
    """Learn merges from captions until there are ``vocab_size`` entries (fewer when pairs run out) -> JSON bytes.

    Deterministic: the same captions in any order give the same bytes.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECE), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[PAD_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # a leading space makes the first word the same piece as everywhere else
    tokenizer.train_from_iterator((" " + normalise_caption(c) for c in sorted(captions)), trainer)
    if tokenizer.token_to_id(PAD_TOKEN) != 0:
        raise DataError("the padding token did not get id 0; the tokenizers package changed its layout")
    return tokenizer.to_str().encode()


class CaptionTokenizer:
    """Captions to token ids and back."""

    def __init__(self, data: bytes) -> None:
        self._tokenizer = Tokenizer.from_str(data.decode())
        model = json.loads(data)["model"]
        self._ids: dict[str, int] = model["vocab"]
        pairs = (tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"])
        self._ranks: dict[tuple[str, ...], int] = {pair: rank for rank, pair in enumerate(pairs)}

    @classmethod
    def from_json(cls, data: bytes) -> "CaptionTokenizer":
        """From what ``train_bpe`` gave. DataError when it is not a tokenizer."""
        try:
            return cls(data)
        except Exception as error:  # the tokenizers package raises bare Exception
            raise DataError(
                f"not a caption tokenizer: {str(error)[:120]}; give the `bpe` object of a tokens or model artifact"
            ) from error

    @property
    def vocab_size(self) -> int:
        """Number of ids, padding included."""
        return int(self._tokenizer.get_vocab_size())

    def spelled_by(self, other: "CaptionTokenizer") -> list[list[int]]:
        """For each of our ids the ids of ``other`` that spell the same bytes: one where it has the same entry."""
        symbols = sorted(self._ids, key=self._ids.__getitem__)
        return [
            [other._ids[s]] if s in other._ids else [t.id for t in other._tokenizer.model.tokenize(s)] for s in symbols
        ]

    def encode(self, text: str, dropout: float = 0.0, generator: torch.Generator | None = None) -> list[int]:
        """Token ids of a caption, without padding, not cut.

        dropout: each possible merge is passed over with this probability (Provilkov et al. 2020), drawn from
        ``generator``, which is required then.
        """
        plain = normalise_caption(text)
        if not plain:
            return []
        spaced = " " + plain
        if dropout <= 0.0:
            return list(self._tokenizer.encode(spaced).ids)
        if generator is None:
            raise DataError(
                "BPE dropout needs a generator, so that a resumed run draws the same; pass Runtime.generator(...)"
            )
        normal = self._tokenizer.normalizer.normalize_str(spaced)
        pieces = (piece for piece, _ in self._tokenizer.pre_tokenizer.pre_tokenize_str(normal))
        return [self._ids[symbol] for piece in pieces for symbol in self._merge(list(piece), dropout, generator)]

    def _merge(self, symbols: list[str], dropout: float, generator: torch.Generator) -> list[str]:
        """Apply merges by rank, passing over each candidate with probability ``dropout`` at every turn."""
        while len(symbols) > 1:
            draws = torch.rand(len(symbols) - 1, generator=generator).tolist()
            pairs = itertools.pairwise(symbols)
            options = [(self._ranks[p], i) for i, p in enumerate(pairs) if p in self._ranks and draws[i] >= dropout]
            if not options:
                break
            _, i = min(options)
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
        return symbols

    def decode(self, ids: Iterable[int]) -> str:
        """Ids, up to the first padding, -> text (lower-cased)."""
        kept: list[int] = []
        for i in ids:
            if i == 0:
                break
            kept.append(int(i))
        return str(self._tokenizer.decode(kept)).strip()
