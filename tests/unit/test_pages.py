"""The gallery and the report: nothing from outside becomes markup, nothing is asked of the network, equal gives equal."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sample_pages import HOSTILE, picture, report_data, row, rows

from tasks.pages import ReportData, data_uri, gallery_html, report_html, shown, tags_of


class Walk(HTMLParser):
    """What a browser would make of a page: its tags with attributes, and the text of some of them."""

    def __init__(self, page: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.tags.append((tag, attributes))
        name = attributes.get("class", "").split(" ")[0] or attributes.get("id") or tag
        self._open.append(name)
        self.text.setdefault(name, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        if self._open:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open:
            self.text[self._open[-1]][-1] += data


def gallery(*given_rows: dict[str, object]) -> bytes:
    return gallery_html(given_rows, title="Pictures", facts={"Model": "abc"}, tile_px=128)


def structure(page: bytes) -> list[tuple[str, list[str]]]:
    return [(tag, sorted(attributes)) for tag, attributes in Walk(page).tags]


def data_of(page: bytes) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.decode())
    assert found
    return json.loads(found[1])


def test_equal_input_gives_equal_bytes():
    assert gallery(*rows()) == gallery(*rows())
    assert report_html(report_data()) == report_html(report_data())


@pytest.mark.parametrize("page", [gallery(*rows()), report_html(report_data())], ids=["gallery", "report"])
def test_a_page_names_no_address_outside_itself(page):
    for tag, attributes in Walk(page).tags:
        for name in {"src", "href", "srcset", "action", "data", "poster"} & attributes.keys():
            assert attributes[name].startswith(("data:", "#")), f"<{tag} {name}={attributes[name][:80]}>"


@pytest.mark.parametrize("page", [gallery(*rows()), report_html(report_data())], ids=["gallery", "report"])
def test_the_policy_admits_the_pages_own_style_and_script_and_nothing_else(page):
    text = page.decode()
    policy = next(a["content"] for t, a in Walk(page).tags if a.get("http-equiv") == "Content-Security-Policy")
    directives = dict(part.split(" ", 1) for part in policy.split("; "))
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)

    def digest(code: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"

    assert directives["default-src"] == "'none'"
    assert directives["img-src"] == "data:"
    assert directives["style-src"] == digest(style)
    assert (
        [directives["script-src"]] == [digest(code) for code in scripts] if scripts else "script-src" not in directives
    )
    # Inline styles and handlers would be blocked by that policy, so a page that has one is broken.
    assert not [t for t, a in Walk(page).tags if "style" in a or any(name.startswith("on") for name in a)]


@pytest.mark.parametrize("prompt", HOSTILE)
def test_a_hostile_prompt_changes_no_tag_of_the_gallery(prompt):
    hostile = gallery(row(prompt, image=picture("red", "ring")))
    assert structure(hostile) == structure(gallery(row("harmless", image=picture("red", "ring"))))
    assert Walk(hostile).text["prompt"] == [shown(prompt)]
    assert data_of(hostile)["cards"][0]["prompt"] == prompt


@pytest.mark.parametrize("caption", HOSTILE)
def test_a_hostile_caption_changes_no_tag_of_the_report(caption):
    page = report_html(report_data(caption))
    assert structure(page) == structure(report_html(report_data()))
    assert shown(caption) in Walk(page).text["caption"]


@given(text=st.text(max_size=60), reason=st.text(min_size=1, max_size=30))
@settings(max_examples=30)
def test_no_text_at_all_changes_the_structure(text, reason):
    drawn, refused = row(text or "x", image=picture("red", "ring")), row("y" + text, reason=reason)
    harmless = gallery(row("x", image=picture("red", "ring")), row("y", reason="r"))
    assert structure(gallery(drawn, refused)) == structure(harmless)


def test_seeds_of_64_bits_reach_the_page_to_the_last_digit():
    page = gallery(row("x", image=picture("red", "ring")) | {"seed": 2**63 - 1})
    assert data_of(page)["cards"][0]["pictures"] == [[0, "9223372036854775807", 0]]


def test_pictures_stand_under_their_prompt_with_their_own_bytes():
    images = [picture("red", "ring"), picture("blue", "ring"), picture("green", "ring")]
    page = gallery(row("one", 0, image=images[0]), row("two", 0, image=images[1]), row("one", 1, image=images[2]))
    sources = [a["src"] for t, a in Walk(page).tags if t == "img" and "src" in a]
    assert [base64.b64decode(s.split(",")[1]) for s in sources] == [images[0], images[2], images[1]]
    assert [len(card["pictures"]) for card in data_of(page)["cards"]] == [2, 1]


def test_a_refused_prompt_is_a_row_with_its_reason():
    page = gallery(row("forbidden", reason="blocked_word"))
    assert Walk(page).text["refusal"] and "blocked word" in page.decode()
    assert data_of(page)["cards"][0]["pictures"] == []


def test_refusals_of_every_picture_of_a_prompt_are_said_once():
    refused = [row("forbidden", i, reason="blocked_word") for i in range(4)]
    assert gallery(*refused).decode().count("blocked word") == 1


def test_a_drawn_picture_may_carry_a_remark():
    page = gallery(row("a long one", image=picture("red", "ring")) | {"reason": "cut to 32 tokens"})
    assert Walk(page).text["remark"] == [""] and "cut to 32 tokens" in page.decode()
    assert "refusal" not in Walk(page).text


def test_pictures_that_are_none_are_said_to_be_none():
    assert "not a picture" in gallery(row("x", image=b"GARBAGE")).decode()
    assert data_uri(b"<svg onload=alert(1)>") == ""


def test_an_empty_batch_is_a_page_that_says_so():
    assert "no prompts" in gallery().decode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", []), ("a, b;a", ["a", "b"]), ('["x, y", "z", ""]', ["x, y", "z"]), ("[broken", ["[broken"])],
)
def test_tags_are_a_json_list_or_words_between_commas(text, expected):
    assert tags_of(text) == expected


def test_hidden_and_reordering_characters_are_named_and_joiners_stay():
    assert shown("a\u202eb\x00c\u200b") == "a⟨U+202E⟩b⟨U+0000⟩c⟨U+200B⟩"
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f مرحبا"
    assert shown(family) == family


def test_a_report_without_sections_is_still_a_report():
    page = report_html(ReportData("Evaluation", "Nothing was measured."))
    assert Walk(page).text["h1"] == ["Evaluation"]
    assert "<section" not in page.decode() and "<a " not in page.decode()


def test_every_section_of_a_full_report_is_reached_from_its_head():
    walk = Walk(report_html(report_data()))
    sections = [a["id"] for t, a in walk.tags if t == "section"]
    assert [a["href"] for t, a in walk.tags if t == "a"] == [f"#{name}" for name in sections]
    assert len(sections) == len(set(sections)) == 11


def test_a_report_answers_in_the_order_of_a_readers_questions_and_tables_come_last():
    sections = [a["id"] for t, a in Walk(report_html(report_data())).tags if t == "section"]
    assert sections[:4] == ["headlines", "compared", "worst", "copying"]
    assert sections[4:6] == ["samples-1", "heldout"]
    assert sections.index("metrics") > sections.index("funnel") > sections.index("curves") > 5


def test_long_sheets_are_folded_and_lose_no_sample():
    page = report_html(report_data())
    samples = [a for t, a in Walk(page).tags if a.get("class") == "sample"]
    assert len(samples) == 30 + 1 + 1 + 1  # sheet, held out, worst, neighbour
    assert "Show the other 6" in page.decode()


def test_reasons_are_listed_with_the_most_frequent_first():
    page = report_html(report_data()).decode()
    assert page.index("<td>duplicate</td>") < page.index("<td>caption too short</td>")


@pytest.mark.parametrize(
    ("better", "previous", "said"), [("higher", 0.7, "better"), ("lower", 0.7, "worse"), ("higher", 0.8, "worse")]
)
def test_a_change_is_called_better_or_worse_by_the_metrics_own_direction(better, previous, said):
    data = report_data()
    metric = replace(data.metrics[0], better=better, previous=previous)
    changes = Walk(report_html(replace(data, metrics=(metric,)))).text
    assert changes["gain" if said == "better" else "loss"][0].endswith(said)
