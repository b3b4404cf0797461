"""Caption tokens: determinism, round trips, dropout."""

import pytest

from dalle_model.captions import CaptionTokenizer, train_bpe
from dalle_model.errors import DataError
from dalle_model.runtime import Runtime

CAPTIONS = [
    f"{who} {what} {tone} skin tone"
    for who in ("man", "woman")
    for what in ("cook", "pilot")
    for tone in ("dark", "medium-dark", "light")
]
TOKENIZER = CaptionTokenizer.from_json(train_bpe(CAPTIONS, 400))


def test_training_is_deterministic_and_independent_of_order() -> None:
    assert train_bpe(CAPTIONS, 400) == train_bpe(list(reversed(CAPTIONS)), 400)


def test_bytes_come_first_and_padding_is_zero() -> None:
    small = CaptionTokenizer.from_json(train_bpe(["a"], 257))
    assert small.vocab_size == 257
    assert sorted({i for i in small.encode("Ünïcode 🙂 ~")}) and 0 not in small.encode("Ünïcode 🙂 ~")


@pytest.mark.parametrize("text", ["woman pilot dark skin tone", "Zebra!", "日本 🙂", "a  b\tc"])
def test_decode_gives_the_lower_cased_caption_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == " ".join(text.lower().split())


def test_decode_stops_at_padding() -> None:
    assert TOKENIZER.decode([*TOKENIZER.encode("man"), 0, *TOKENIZER.encode("cook")]) == "man"


def test_hyphenated_word_becomes_one_token() -> None:
    assert len(TOKENIZER.encode("medium-dark")) == 1
    assert TOKENIZER.encode("medium-dark") == TOKENIZER.encode("man medium-dark")[1:]


def test_punctuation_stands_alone() -> None:
    assert TOKENIZER.encode("man: dark, light")[0] == TOKENIZER.encode("man dark")[0]
    assert TOKENIZER.decode(TOKENIZER.encode("man: dark, light")) == "man: dark, light"


def test_empty_caption_has_no_tokens() -> None:
    assert TOKENIZER.encode("") == TOKENIZER.encode("   ") == []


def test_dropout_splits_words_but_keeps_the_text_and_repeats_by_seed() -> None:
    text = "woman pilot medium-dark skin tone"
    once, again = (TOKENIZER.encode(text, 0.5, Runtime().generator(3)) for _ in range(2))
    assert once == again
    assert len(once) > len(TOKENIZER.encode(text))
    assert TOKENIZER.decode(once) == text


@pytest.mark.parametrize("text", ["woman pilot medium-dark skin tone", "unseen wörds"])
def test_own_merging_without_dropping_equals_the_library(text: str) -> None:
    assert TOKENIZER.encode(text, 1e-12, Runtime().generator(0)) == TOKENIZER.encode(text)


def test_dropout_without_a_generator_is_refused() -> None:
    with pytest.raises(DataError, match="generator"):
        TOKENIZER.encode("man", 0.1)


def test_foreign_json_is_refused() -> None:
    with pytest.raises(DataError, match="not a caption tokenizer"):
        CaptionTokenizer.from_json(b"{}")
