"""Which prompts are not drawn: listed words in every disguise, and nothing harmless."""

import pytest

from dalle_model.curation.word_lists import parse_list
from dalle_model.prompt_policy import MAX_PROMPT_CHARS, PromptPolicy

OWN = parse_list(b"dragonfruit\nblue whale\nzorb*\n", "own.txt")
POLICY = PromptPolicy.standard(OWN)


@pytest.mark.parametrize(
    "prompt",
    [
        "a dragonfruit on a plate",
        "A DRAGONFRUIT!",
        "dr\u0430gonfruit",  # a Cyrillic a
        "ｄｒａｇｏｎｆｒｕｉｔ",  # full width
        "dr4g0nfru1t",
        "drag\u200bon\u00adfruit",  # zero-width space, soft hyphen
        "drag\u200con\u200dfruit",  # joiners
        "d r a g o n f r u i t",
        "d.r.a.g.o.n.f.r.u.i.t please",
        "__d_r_a_g_o_n_f_r_u_i_t_",
        "drágònfrüit",
        "draaaagonfruit",
        "draagonfruuit",  # letters that English does not double
        "drag-on-fruit",
        "dr.agon_fruit",
        "dr*gonfr**t",
        "drag#nfruit",
        "d/r/a/g/o/n/f/r/u/i/t",
        "d, r, a, g, o, n, f, r, u, i, t",
        "d🔥r🔥a🔥g🔥o🔥n🔥f🔥r🔥u🔥i🔥t",
        "d•r•a•g•o•n•f•r•u•i•t",
        "dra\u0261onfru\u0131t",  # a script g, an i without its dot
        "ԁгаgօnfrսit",  # Cyrillic and Armenian
        "ᴅʀᴀɢᴏɴꜰʀᴜɪᴛ",
        "🅳🆁🅰🅶🅾🅽🅵🆁🆄🅸🆃",
        "🅓ragonfruit",
        "drag\U000e0100on\u20e3fruit",  # a variation selector, an enclosing mark
        "zorbing people",
        "one blue whale",
    ],
)
def test_a_listed_word_is_found_in_every_disguise(prompt: str) -> None:
    refusal = POLICY.judge(prompt)
    assert refusal is not None and refusal.rule == "own list", prompt
    assert "own list" in refusal.reason


@pytest.mark.parametrize(
    "prompt",
    [
        "a red heart",
        "a blue dress and a whale",
        "Scunthorpe in the rain",  # a town, not the word inside it
        "a cockatoo, a blue tit and a bass",
        "flag: Cook Islands",
        "t h e  l e t t e r s",
        "版画の猫",
        "woman: medium-dark skin tone 👩🏾",
        "a b c d",
        "A, B, C, or D",
        "the flags 🇩🇪 and 🇫🇷",
        "прага, город на Влтаве",
        "a drragonfruit",  # two r are English: "later" is not "latter", and an own list is not held against that
        "the river Niger",  # fewer letters than a listed word
        "Adele's hit, a shih-tzu, C# and 5*3",
    ],
)
def test_harmless_prompts_are_drawn(prompt: str) -> None:
    assert POLICY.judge(prompt) is None


def test_lists_in_other_scripts_are_read_in_them() -> None:
    russian = PromptPolicy.standard(parse_list("дрянь\nգինի\n".encode(), "own.txt"))
    for prompt in ("какая дрянь", "ДРЯНЬ", "գինի"):
        assert russian.judge(prompt) is not None


def test_prompts_that_are_none_or_endless_are_refused_with_the_reason() -> None:
    assert POLICY.judge("  ").rule == "empty"  # type: ignore[union-attr]
    assert str(MAX_PROMPT_CHARS) in POLICY.judge("a" * (MAX_PROMPT_CHARS + 1)).reason  # type: ignore[union-attr]


def test_without_the_package_list_only_the_own_one_counts_and_the_record_names_what_was_applied() -> None:
    only_own = PromptPolicy.standard(OWN, packaged=False)
    assert only_own.record()["lists"] == {"own list": OWN.digest}
    assert set(POLICY.record()["lists"]) == {"profanity", "own list"}
    assert PromptPolicy.standard(None, packaged=False).judge("dragonfruit") is None


@pytest.mark.parametrize("rubbish", ["_", "_a", "a_ ", "__ ", "a ", "a  b"])
def test_no_prompt_takes_long_to_judge(rubbish: str) -> None:
    assert POLICY.judge((rubbish * 2000)[:1900] + "ab") is None  # a row of "_" had 2^n readings


def test_in_the_list_of_the_package_any_letter_may_stand_twice() -> None:
    for prompt in ("poorn", "niggger", "a fucck", "sh*t", "f-u-c-k", "fu-ck"):
        assert POLICY.judge(prompt) is not None, prompt


def test_a_negative_prompt_asks_for_less_of_it_and_is_refused_where_guidance_leads_towards_it() -> None:
    for guidance in (1.0, 2.0, 50.0):
        assert POLICY.judge("a red heart", "dragonfruit, porn", guidance) is None
    assert POLICY.judge("a red heart", "dragonfruit", 0.5).rule == "own list"  # type: ignore[union-attr]
    assert POLICY.judge("a red heart", "hands", 0.0) is None
    assert POLICY.judge("a dragonfruit", "porn", 2.0).found == "dragonfruit"  # type: ignore[union-attr]
    too_long = POLICY.judge("a red heart", "a" * (MAX_PROMPT_CHARS + 1), 2.0)
    assert too_long is not None and too_long.rule == "negative prompt too long"


def test_a_word_of_stars_is_judged_at_once() -> None:
    for prompt in ("*" * 2000, "a" + "*" * 1990 + "b", "a*" * 1000, "aa" * 1000, "ab" * 1000):
        assert POLICY.judge(prompt) is None
