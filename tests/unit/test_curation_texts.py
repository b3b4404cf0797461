"""Rules that read captions: stock phrases, repetition, listed words, personal data, language, mined phrases."""

import random
import re
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_model.config import CurateConfig
from dalle_model.curation import texts
from dalle_model.curation.judging import check_languages
from dalle_model.curation.languages import foreign, language_columns, language_of
from dalle_model.curation.personal import mask, mask_column
from dalle_model.curation.phrases import Phrasebook, mine
from dalle_model.curation.texts import boilerplate, caption_chars, caption_words, word_repetition, words_of
from dalle_model.curation.word_lists import parse_list, profanity
from dalle_model.errors import DataError, UsageError
from dalle_model.pair_copies import may_be_mirrored
from dalle_model.records import normalise_caption


def column(*captions: str) -> pa.Array:
    return pa.array(captions, pa.string())


# ------------------------------------------------------------------------------------------------------ stock phrases


@pytest.mark.parametrize(
    ("caption", "score"),
    [("one two three", None), ("dog dog dog cat", 0.75), ("Dog dog DOG dog", 1.0), ("a b c d e", 0.2)],
)
def test_repetition_is_the_share_of_the_commonest_word(caption: str, score: float | None) -> None:
    found = word_repetition(column("x y z x", caption))[1]
    assert np.isnan(found) if score is None else found == score


@pytest.mark.parametrize(
    ("caption", "words"),
    [("一只白猫坐在木桌上", 4), ("猫", 1), ("白猫", 1), ("窓辺で 雨を眺める", 5), ("แมวสีขาว", 4), ("하얀 고양이", 2), ("a cat 猫", 3), ("क ख", 2)],
)  # fmt: skip
def test_scripts_without_spaces_have_words_too(caption: str, words: int) -> None:
    """A Chinese caption was one word, so each threshold of two refused it."""
    assert caption_words(column("x y", caption)).tolist() == [2, words]


def test_joiners_of_zero_width_cut_no_word() -> None:
    """ "می\u200cخواهم" is one word of Persian, and a listed one is found with and without its joiner."""
    words = words_of(column("میخواهم می\u200cخواهم", "x y"), letters=r"\p{L}\p{M}")
    assert words.vocabulary == ["میخواهم", "x", "y"]
    for listed in ("می\u200cخواهم", "میخواهم"):
        own = parse_list(listed.encode(), "own")
        assert own.counts(column("او می\u200cخواهم", "او میخواهم", "او می خواهم")).tolist() == [1, 1, 0]
        assert own.found("او می\u200cخواهم") == ["میخواهم"]


@given(st.lists(st.text().map(normalise_caption).filter(bool), max_size=20))
def test_columns_say_what_plain_python_says(captions: list[str]) -> None:
    array = pa.array(captions, pa.string())
    for caption, words in zip(captions, caption_words(array).tolist(), strict=True):
        spaced = all(c < "\u0e00" for c in caption)  # Thai is the first script without spaces
        assert words == len(caption.split(" ")) if spaced else words >= len(caption.split(" "))
    assert caption_chars(array).tolist() == [len(c) for c in captions]
    assert len(word_repetition(array)) == len(boilerplate(array)) == len(profanity().counts(array)) == len(captions)


@pytest.mark.parametrize(
    "caption",
    [
        "photo taken on 12 March 2016",
        "Picture was taken 2016-03-12",
        "March 12, 2016",
        "12/03/2016",
        "image captured on Sept. 3rd, 2011",
        "Wed Aug 25 23:29:46 2004",
        "IMG_20160312.jpg",
        "DSC00123",
        "royalty free images",
    ],
)
def test_stock_phrases_are_boilerplate(caption: str) -> None:
    assert boilerplate(column(caption))[0] > 0.8


@pytest.mark.parametrize(
    "caption",
    [
        "a man takes a photo of 3 dogs",
        "free bird over the sea",
        "a stock pot",
        "clock at 10:30",
        "27 red balloons in May",
    ],
)
def test_ordinary_captions_are_not(caption: str) -> None:
    assert boilerplate(column(caption))[0] < 0.5


# ------------------------------------------------------------------------------------------------------- listed words


@pytest.mark.parametrize(
    ("caption", "count"),
    [
        ("a dog in the grass", 0),
        ("fucking dog", 1),
        ("FUCKED up. Shit!", 2),
        ("fuuuuck this", 1),
        ("f\u00fcck and ｆｕｃｋ", 2),  # accents and full width
        ("sh1t", 1),
        ("ѕһіt", 1),  # Cyrillic look-alikes
        ("a son of a bitch", 1),
        ("a son of the bitch", 0),
        ("Scunthorpe, a cockerel, titmouse and assassin", 0),
        ("an afghan hound bitch with pups", 0),
        ("model 5417", 0),
        ("2 girls 4 xxx", 1),
        ("", 0),
    ],
)
def test_profanity_is_found_in_disguise_and_only_there(caption: str, count: int) -> None:
    assert profanity().counts(column("plain", caption)).tolist() == [0, count]


def test_an_own_list_is_checked_line_by_line() -> None:
    own = parse_list("# ours\nWeißwurst\nacme*\nblue pill  # a phrase\n".encode(), "own.txt")
    counts = own.counts(column("Acmecorp sells WEISSWURST", "a blue pill, a Blue Pill", "pill blue", "weiß wurst"))
    assert counts.tolist() == [2, 2, 0, 0]
    for bad, message in (
        (b"\xff", "not UTF-8"),
        (b"ok\n***\n", "line 2"),
        (b"a b c d e f g", "no term"),
        (b"a b*", "no term"),
    ):
        with pytest.raises(DataError, match=message):
            parse_list(bad, "own.txt")


# ------------------------------------------------------------------------------------------------------ personal data


@pytest.mark.parametrize(
    ("caption", "masked"),
    [
        ("write to jane.doe+x@mail.example.co.uk now", "write to [email] now"),
        ("jane (at) example (dot) org", "[email]"),
        ("call +49 (0)30 1234567 today", "call [phone] today"),
        ("Tel. 030 / 123 45 67", "Tel. [phone]"),
        ("phone: 5550109999", "phone: [phone]"),
        ("(212) 555-0109 or 212.555.0109", "[phone] or [phone]"),
        ("card 4111 1111 1111 1111 exp", "card [card] exp"),
        ("card 4111-1111-1111-1112", "card 4111-1111-1111-1112"),  # the check digit is wrong
        ("at 12 Main Street, London", "at [address], London"),
        ("221b Baker St. door", "[address] door"),
        ("Hauptstraße 12 in Ulm", "[address] in Ulm"),
        ("12, rue de Rivoli", "[address]"),
        ("PO Box 1234", "[address]"),
    ],
)
def test_personal_data_is_masked(caption: str, masked: str) -> None:
    assert mask(caption)[0] == masked
    assert mask(masked)[0] == masked, "a masked caption stays as it is"


@pytest.mark.parametrize(
    "caption",
    [
        "photo of 12 March 2016 at 10:30",
        "2016-03-12 and 12/03/2016",
        "1920x1080 wallpaper, 100% wool, 3.14159265",
        "keycap: 10",
        "Boeing 747-400 of 1989",
        "ISBN 978-3-16-148410-0",
        "a crowd of 1 000 000 people",
        "2 dogs on a street",
        "user @ home",
        "route 66",
    ],
)
def test_other_numbers_stay(caption: str) -> None:
    assert mask(caption)[0] == caption


@given(
    st.lists(
        st.lists(
            st.sampled_from(
                [
                    "0",
                    "1",
                    "5",
                    "23",
                    "030",
                    "1234567",
                    "+",
                    "(",
                    ")",
                    "-",
                    ".",
                    "/",
                    "@",
                    "Main",
                    "Street",
                    "rue",
                    "de",
                    "Rivoli",
                    "Platz",
                    "4111",
                    "tel",
                    "a",
                ]
            )
        ).map(" ".join)
    )
)
def test_no_row_is_sorted_out_that_holds_personal_data(captions: list[str]) -> None:
    found = mask_column(pa.array(captions, pa.string())).caption.to_pylist()
    assert found == [text if (text := mask(c)[0]) != c else None for c in captions]


def assert_grows_with_the_length(work: Callable[[str], object], rubbish: str) -> None:
    def seconds(chars: int) -> float:
        text = (rubbish * chars)[:chars]
        took = []
        for _ in range(3):
            start = time.process_time()
            work(text)
            took.append(time.process_time() - start)
        return min(took)

    # Sixteen times the length: about 16 times the work; a pattern that begins anew at every character needs 256 times.
    assert seconds(32_000) < 64 * max(seconds(2_000), 1e-4)


@pytest.mark.parametrize(
    "rubbish", ["mon", "jan", "tue, ", "photo taken on ", "jan 1", "12 jan", "royalty free", "img_"]
)
def test_the_work_of_stock_phrases_grows_with_the_length_and_not_with_its_square(rubbish: str) -> None:
    assert_grows_with_the_length(lambda text: boilerplate(column("stock " + text)), rubbish)


@pytest.mark.parametrize("rubbish", ["‘", "'a", "a ‘", "'"])
def test_the_work_of_looking_for_quotes_grows_with_the_length(rubbish: str) -> None:
    assert_grows_with_the_length(may_be_mirrored, rubbish)


def test_stock_phrases_are_those_that_the_plain_pattern_finds_one_after_the_other() -> None:
    plain = re.compile(texts._STOCK)
    pieces = [
        "photo",
        "taken",
        "shot ",
        "on ",
        " ",
        "jan",
        "March",
        "monday,",
        "tue",
        "12",
        "1st",
        "2019",
        "1.2.",
        "10:30",
    ]
    pieces += [
        "IMG_",
        "dsc",
        "0042",
        ".jpg",
        "stock",
        "free",
        "royalty-",
        "images",
        "all rights reserved",
        "click here",
        "é",
    ]
    draw = random.Random(0)
    captions = [
        "".join(draw.choice(pieces) + draw.choice(["", " ", " "]) for _ in range(draw.randint(1, 12)))
        for _ in range(4000)
    ]
    scores = boilerplate(pa.array(captions))
    found = [sum(len(match.group()) for match in plain.finditer(caption)) / len(caption) for caption in captions]
    hinted = pc.match_substring_regex(pa.array(captions), texts._STOCK_HINT).to_pylist()
    assert scores.tolist() == [score if hint else 0.0 for score, hint in zip(found, hinted, strict=True)]
    assert 1000 < np.count_nonzero(scores) < 3500


@pytest.mark.parametrize(
    "rubbish",
    [
        "a.a.a.a@",
        "a",
        "a.",
        "a@",
        "a@b [dot] ",
        "1",
        "1 ",
        "+49 (0)1-",
        "call ",
        "tel me now ",
        "1 A'1-",
        "12 Aa ",
        "x strasse",
    ],
)
def test_the_work_of_masking_grows_with_the_length_and_not_with_its_square(rubbish: str) -> None:
    assert_grows_with_the_length(mask, rubbish)


def test_addresses_without_a_gap_are_all_masked() -> None:
    assert mask("me@b.io%you@c.io")[0] == "[email]"


def test_the_column_finds_what_single_captions_do() -> None:
    captions = ["plain", "a@b.io and 4111111111111111", "12 Main Street", ""]
    found = mask_column(pa.array(captions))
    assert found.caption.to_pylist() == [None, "[email] and [card]", "[address]", None]
    assert found.kinds.to_pylist() == ["", "email card", "address", ""]
    assert found.count.to_pylist() == [0, 2, 1, 0]


# ----------------------------------------------------------------------------------------------------------- language


@pytest.mark.parametrize(
    ("caption", "code"),
    [
        ("a red bicycle leaning on a wall", "en"),
        ("ein Hund spielt im Garten mit dem Ball", "de"),
        ("le chat est sur la table", "fr"),
        ("roter Hund", ""),  # too short to say
        ("красный дом", "CYRILLIC"),  # two languages are written so; neither is English
        ("красный дом стоит у моря", "ru"),
        ("빨간 집", "ko"),
        ("猫", "CJK"),
        ("赤い家と海", "ja"),
        ("🔥 12 !!", ""),
        ("", ""),
    ],
)
def test_language_is_judged_with_care(caption: str, code: str) -> None:
    assert language_of(caption).code == code


def test_doubt_keeps_a_row_and_other_alphabets_do_not() -> None:
    captions = [
        "roter Hund",
        "красный дом",
        "vintage poster art deco style",
        "le chat est sur la table",
        "the cat sat on it",
    ]
    codes, confidence = language_columns(pa.array(captions))
    scores = foreign(np.array(codes.to_pylist(), object), confidence.to_numpy(), "en")
    passed = np.isnan(scores) | (scores <= CurateConfig().max_foreign)
    assert passed.tolist() == [True, False, True, False, True]
    kept = foreign(np.array(codes.to_pylist(), object), confidence.to_numpy(), "fr,ru")
    assert kept[1] == kept[3] == 0.0


def test_an_unknown_language_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="'xx' is not known"):
        check_languages(CurateConfig(languages="en,xx"))


# ----------------------------------------------------------------------------------------------------- mined phrases


def corpus(seed: int = 0) -> list[str]:
    words = [a + b + c for a in "bdfgkl" for b in "aeiou" for c in "mnprstvwxz"]
    rng = random.Random(seed)
    rows = [" ".join(rng.sample(words, 6)) for _ in range(400)]
    rows += [
        f"{rng.choice(words)} {rng.choice(words)}, from the Flat Icon Collection (Aug {n % 28}, 2004)"
        for n in range(60)
    ]
    return rows + ["gramastar"] * 30 + ["a thing"] * 5


def test_mined_phrases_are_the_longest_ones_that_many_captions_share() -> None:
    captions = corpus()
    found = {
        (row["phrase"], row["kind"]): row["captions"] for row in mine(lambda: [pa.array(captions)], 0.01).to_pylist()
    }
    dated = [f"from the flat icon collection aug {day} ####" for day in ("#", "##")]
    assert found.keys() == {
        *((phrase, "phrase") for phrase in dated),
        ("from the flat icon collection aug", "phrase"),
        ("gramastar", "caption"),
    }
    assert found["from the flat icon collection aug", "phrase"] == 60
    assert found["gramastar", "caption"] == 30
    shares = Phrasebook.of(mine(lambda: [pa.array(captions)], 0.01)).shares(pa.array(captions))
    assert (shares[:400] == 0).all() and (shares[-5:] == 0).all()
    assert (shares[460:490] == 1).all()
    assert (shares[400:460] >= 0.6).all()


@settings(max_examples=6)
@given(st.integers(0, 1000), st.sampled_from([7, 64, 1000]))
def test_mining_does_not_depend_on_the_order_or_on_shards(seed: int, size: int) -> None:
    captions = corpus()
    straight = mine(lambda: [pa.array(captions)], 0.02)
    shuffled = list(captions)
    random.Random(seed).shuffle(shuffled)
    shards = [pa.array(shuffled[i : i + size]) for i in range(0, len(shuffled), size)]
    assert mine(lambda: shards, 0.02).equals(straight)


def test_allowed_phrases_are_listed_and_do_not_count() -> None:
    captions = pa.array(corpus())
    table = mine(lambda: [captions], 0.01, allow="Flat icon; other")
    assert [row["allowed"] for row in table.to_pylist() if "flat icon" in row["phrase"]]
    assert Phrasebook.of(table).phrases == frozenset()
    assert Phrasebook.of(table).shares(captions)[400:460].max() == 0


def test_nothing_to_mine_is_no_error() -> None:
    assert mine(list, 0.01).num_rows == 0
    assert mine(lambda: [pa.array([""] * 50)], 0.01).num_rows == 0
    assert Phrasebook().shares(pa.array(["a b c", ""])).tolist() == [0, 0]


def test_words_are_the_same_however_captions_are_held_and_whatever_stands_between_them() -> None:
    texts = ["A, b", "c d", "x  y", " z ", "", "...", "e\u0301t\u00a0a"]
    wanted = [(0, "a"), (0, "b"), (1, "c"), (1, "d"), (2, "x"), (2, "y"), (3, "z"), (6, "e\u0301t"), (6, "a")]
    for held in (pa.array(texts), pa.chunked_array([texts[:1], texts[1:]]), pa.array(texts, pa.large_string())):
        words = words_of(held, letters=r"\p{L}\p{M}")
        assert [(row, words.vocabulary[code]) for row, code in zip(words.row, words.codes, strict=True)] == wanted
